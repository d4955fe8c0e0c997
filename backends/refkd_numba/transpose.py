"""Transposing matrices, square tiles at a time, which lie in vector registers meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refkd_numba.compile import compiled

__all__ = ["transpose"]

_TILE = 8  # rows and columns
_LINES = 2 * _TILE  # of a block, so that whole cache lines are read and written
_CHUNK = 64  # columns whose rows stay in the level-2 cache until they are complete


def _tile_of(bits: int) -> Any:
    @intrinsic
    def tile(typing_context, source, source_pitch, target, target_pitch):
        """Write the transpose of a tile; addresses, and bytes from row to row."""
        signature = types.void(*[types.intp] * 4)
        vector = ir.VectorType(ir.IntType(bits), _TILE)
        # Row i is shuffled into row i + 4, three times: what was column becomes row.
        halves = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), _TILE),
                [first + k // 2 + k % 2 * _TILE for k in range(_TILE)],
            )
            for first in (0, _TILE // 2)
        ]

        def generate(context, builder, signature, arguments):
            source, source_pitch, target, target_pitch = arguments

            def row(start: Any, pitch: Any, i: int) -> Any:
                offset = builder.mul(pitch, ir.Constant(pitch.type, i))
                return builder.inttoptr(builder.add(start, offset), vector.as_pointer())

            rows = []
            for i in range(_TILE):
                value = builder.load(row(source, source_pitch, i))
                value.align = bits // 8
                rows.append(value)
            for _ in range(_TILE.bit_length() - 1):
                pairs = zip(rows[: _TILE // 2], rows[_TILE // 2 :], strict=True)
                rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
            for i, value in enumerate(rows):
                builder.store(value, row(target, target_pitch, i)).align = bits // 8
            return context.get_dummy_value()

        return signature, generate

    return tile


_tile_32, _tile_64 = map(_tile_of, (32, 64))


@compiled
def transpose(source, target, batch, rows, columns, thread, threads):
    """Write (N, R, C) as (N, C, R); of 4 or 8 bytes each."""
    size = source.itemsize
    height, width = np.uint64(rows), np.uint64(columns)  # so that no index has a sign
    chunks = (columns + _CHUNK - 1) // _CHUNK
    for unit in range(thread, batch * chunks, threads):
        n, chunk = unit // chunks, unit % chunks
        begin, end = chunk * _CHUNK, min((chunk + 1) * _CHUNK, columns)
        at = n * rows * columns
        values, to = source[at : at + rows * columns], target[at : at + rows * columns]
        tiled_rows, tiled_end = rows // _TILE * _TILE, begin + (end - begin) // _TILE * _TILE
        for first in range(0, tiled_rows, _LINES):
            for j in range(begin, tiled_end, _LINES):
                for i in range(first, min(first + _LINES, tiled_rows), _TILE):
                    for k in range(j, min(j + _LINES, tiled_end), _TILE):
                        one = values.ctypes.data + (i * columns + k) * size
                        other = to.ctypes.data + (k * rows + i) * size
                        if size == 4:
                            _tile_32(one, columns * size, other, rows * size)
                        else:
                            _tile_64(one, columns * size, other, rows * size)
        for i in range(np.uint64(tiled_rows)):
            for j in range(np.uint64(tiled_end), np.uint64(end)):
                to[j * height + i] = values[i * width + j]
        for j in range(np.uint64(begin), np.uint64(end)):
            for i in range(np.uint64(tiled_rows), height):
                to[j * height + i] = values[i * width + j]
