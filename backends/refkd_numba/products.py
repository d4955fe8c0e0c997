"""Products of matrices by the register-blocked tile, and the panels it reads them from.

An entry is summed in one order whatever the shapes: runs of STEPS products, one run after
another. So the logits of an example are the same bits in any company, and whatever the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from refkd_numba.compile import device
from refkd_numba.microkernel import COLUMNS, ROWS, tile

__all__ = [
    "FLOAT",
    "NONE",
    "ONCE",
    "PANEL",
    "STEPS",
    "address",
    "copy_into_panels",
    "counts",
    "floats",
    "panels_for",
    "part",
    "product",
    "transpose",
    "transpose_into_panels",
]

# NumPy's integers: of a literal Numba would make a type, and compile every callee anew.
FLOAT = np.int64(4)  # bytes
PANEL = np.int64(COLUMNS)
STEPS = np.int64(256)  # of a panel that stays in the level-1 cache
NONE, ONCE = np.int64(0), np.int64(1)


def _pointer_to(numba_type: types.Type, kind: ir.Type) -> Any:
    @intrinsic
    def pointer(typing_context, address):
        signature = types.CPointer(numba_type)(types.intp)

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], kind.as_pointer())

        return signature, generate

    return pointer


_to_float32 = _pointer_to(types.float32, ir.FloatType())
_to_int64 = _pointer_to(types.int64, ir.IntType(64))


@device(inline=True)
def address(array):
    """Return where an array lies, as a signed number."""
    return np.int64(array.ctypes.data)


@device(inline=True)
def floats(address, count):
    """Return the ``count`` float32 at an address as an array."""
    return carray(_to_float32(address), (count,))


@device(inline=True)
def counts(address, count):
    """Return the ``count`` int64 at an address as an array."""
    return carray(_to_int64(address), (count,))


@device(inline=True)
def panels_for(count):
    """Return how many panels hold ``count`` columns."""
    return (count + PANEL - 1) // PANEL


@device(inline=True)
def part(count, thread, threads):
    """Return where the part of ``thread`` begins and ends, in whole panels."""
    panels = panels_for(count)
    begin = panels * thread // threads * PANEL
    return min(count, begin), min(count, panels * (thread + 1) // threads * PANEL)


_SIDE = np.int64(8)  # of the blocks that are transposed in registers
_ROW = ir.VectorType(ir.FloatType(), int(_SIDE))


@intrinsic
def _transpose_block(typing_context: Any, x: Any, x_row: Any, y: Any, y_row: Any) -> Any:
    """Write y[j, i] = x[i, j] for i, j < 8."""
    signature = types.void(*[types.intp] * 4)

    def generate(context, builder, signature, arguments):
        x, x_row, y, y_row = arguments

        def at(start, distance, i):
            offset = builder.mul(distance, ir.Constant(ir.IntType(64), i))
            return builder.inttoptr(builder.add(start, offset), _ROW.as_pointer())

        side = int(_SIDE)
        rows = [builder.load(at(x, x_row, i), align=4) for i in range(side)]
        distance = side // 2
        while distance:  # exchange the two quarters off the diagonal, of ever smaller blocks
            upper = [j if not j & distance else side + j - distance for j in range(side)]
            lower = [j + distance if not j & distance else side + j for j in range(side)]
            for i in (i for i in range(side) if not i & distance):
                pair = rows[i], rows[i + distance]
                rows[i] = builder.shuffle_vector(*pair, _indices(upper))
                rows[i + distance] = builder.shuffle_vector(*pair, _indices(lower))
            distance //= 2
        for i, row in enumerate(rows):
            builder.store(row, at(y, y_row, i), align=4)
        return context.get_dummy_value()

    return signature, generate


def _indices(values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


@device
def transpose(x, x_row, rows, columns, y, y_row):
    """Write y[j, i] = x[i, j] for i < ``rows``, j < ``columns``; addresses, distances in bytes."""
    whole_rows, whole_columns = rows // _SIDE * _SIDE, columns // _SIDE * _SIDE
    for i in range(0, whole_rows, _SIDE):
        for j in range(0, whole_columns, _SIDE):
            _transpose_block(x + i * x_row + j * FLOAT, x_row, y + j * y_row + i * FLOAT, y_row)
    for i in range(rows):
        first = whole_columns if i < whole_rows else NONE
        source = floats(x + i * x_row, columns)
        for j in range(first, columns):
            floats(y + j * y_row + i * FLOAT, 1)[0] = source[j]


@device
def product(
    rows, panels, steps, a, a_row, a_step, b, b_panel, b_step, c, c_row, c_panel, before
):  # fmt: skip
    """Add C[m, p, :] (+)= Σ_t A[m, t] B[p, t, :] for m < ``rows``, p < ``panels``, t < ``steps``.

    Addresses and distances in bytes; ``steps`` is at most STEPS. With ``before`` nonzero the
    sums are added to what C holds.
    """
    for m in range(0, rows, ROWS):
        height = min(ROWS, rows - m)
        for p in range(panels):
            tile(
                height, a + m * a_row, a_row, a_step, NONE, b + p * b_panel, b_step, NONE, ONCE,
                steps, c + m * c_row + p * c_panel, c_row, before,
            )  # fmt: skip


@device
def transpose_into_panels(x, x_row, rows, begin, end, panels, panel_size):
    """Write x[n, i] into panels[n // PANEL, i − begin, n % PANEL] for begin <= i < end.

    Addresses and distances in bytes; lanes without a row are 0.
    """
    for p in range(panels_for(rows)):
        count = min(PANEL, rows - p * PANEL)
        panel = panels + p * panel_size
        source = x + p * PANEL * x_row + begin * FLOAT
        transpose(source, x_row, count, end - begin, panel, PANEL * FLOAT)
        if count < PANEL:
            values = floats(panel, (end - begin) * PANEL)
            for i in range(end - begin):
                for lane in range(count, PANEL):
                    values[i * PANEL + lane] = 0


@device
def copy_into_panels(x, x_row, rows, columns, panels, panel_size):
    """Write x[n, i] into panels[i // PANEL, n, i % PANEL].

    Addresses and distances in bytes; lanes without a column are 0.
    """
    for p in range(panels_for(columns)):
        count = min(PANEL, columns - p * PANEL)
        for n in range(rows):
            source = floats(x + n * x_row + p * PANEL * FLOAT, count)
            target = floats(panels + p * panel_size + n * PANEL * FLOAT, PANEL)
            if count == PANEL:
                for lane in range(PANEL):
                    target[lane] = source[lane]
            else:
                for lane in range(count):
                    target[lane] = source[lane]
                for lane in range(count, PANEL):
                    target[lane] = 0
