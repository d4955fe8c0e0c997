"""Which tile makes a product of a convolution, and into how many parts its sums are cut."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

__all__ = [
    "DEPTH",
    "FMA",
    "GATHER_TILES",
    "SMALLEST",
    "TF32",
    "THREE_TERMS",
    "WEIGHT_TILES",
    "Tile",
    "tile_and_parts",
]

DEPTH = 16  # terms of the sums in one step
_STAGES = 3

FMA, THREE_TERMS, TF32 = "conv_fma", "conv_tensor", "conv_tf32"

_LEAST_STEPS, _MOST_PARTS = 4, 512  # of a part; of a sum


class _Speed(NamedTuple):
    """Microseconds of a step on an H100, by which a tile and the number of parts are chosen."""

    product: float  # of 128 × 128, of a multiprocessor
    copy: float  # of 128 rows and 128 columns, of a multiprocessor
    alone: float  # what no step of a block takes less than
    column: float  # and for each 32 columns of a warp


_SPEEDS = {
    FMA: _Speed(0.97, 0.37, 0.32, 0.52),
    THREE_TERMS: _Speed(0.02, 0.50, 0.01, 0.82),
    TF32: _Speed(0.02, 0.36, 0.27, 0.30),
}
_OVERLAP = 1.2  # between 1, nothing of what blocks do at a time, and infinity
_STEPS_TO_BEGIN = 1
_MICROSECONDS_OF_PARTS, _ENTRIES_PER_MICROSECOND = 4.0, 1e6  # to write and to add them


class Tile(NamedTuple):
    """The part of a product that a block makes.

    A warp makes 64 × 32 of it, or 64 × 64 of a wide one on tensor cores.
    """

    rows: int
    columns: int
    wide: bool = False

    def blocks(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)

    def warps(self, stem: str) -> int:
        return self.rows // 64 * (self.columns // (32 * self.width(stem)))

    def width(self, stem: str) -> int:
        """Return how many times 32 columns a warp makes."""
        return 2 if self.wide and stem != FMA else 1

    def resident(self, stem: str) -> int:
        """Return how many of its blocks a multiprocessor holds at a time, as they are compiled."""
        warps = 16 if stem == FMA else 8 if self.wide else 12
        return warps // self.warps(stem)

    def shared(self, stem: str, taps: int) -> int:
        """Return how many bytes of shared memory a block asks for, to gather along so many taps.

        No taps stand for the sums over pixels, whose A does not lie by rows.
        """
        pads = (4 * self.rows if taps else 8 * DEPTH) + 8 * DEPTH if stem == FMA else 0
        return 4 * _STAGES * (DEPTH * (self.rows + self.columns) + pads) + 16 * taps

    def fits(self, stem: str, taps: int, limit: int) -> bool:
        """Return whether a block finds it below a limit, with what it notes of pixels besides."""
        noted = 16 * self.rows if taps else 32 * 32 * self.warps(stem)
        return self.shared(stem, taps) + noted <= limit


SMALLEST = Tile(64, 64)
GATHER_TILES = {
    4: (Tile(128, 128, wide=True), Tile(128, 64, wide=True), SMALLEST, Tile(128, 32)),
    1: (Tile(128, 64), SMALLEST),
}
WEIGHT_TILES = {
    (4, 4): (Tile(128, 128, wide=True), Tile(64, 128, wide=True), SMALLEST),
    (4, 1): (SMALLEST,),
    (1, 1): (SMALLEST,),
}


@functools.lru_cache(maxsize=4096)
def tile_and_parts(
    stem: str,
    tiles: tuple[Tile, ...],
    rows: int,
    columns: int,
    count: int,
    steps: int,
    entries: int,
    taps: int,
    multiprocessors: int,
    shared_limit: int,
) -> tuple[Tile, int]:
    """Return a tile, and into how many parts to cut sums of ``steps``, that should be quickest.

    For ``count`` products of rows × columns whose results have ``entries`` altogether, of tiles
    whose shared memory is below the device's limit for so many taps (see :meth:`Tile.shared`).
    """
    tiles = tuple(tile for tile in tiles if tile.fits(stem, taps, shared_limit))
    speed = _SPEEDS[stem]
    most = max(1, min(steps // _LEAST_STEPS, _MOST_PARTS))

    def microseconds(choice: tuple[Tile, int]) -> float:
        tile, parts = choice
        blocks = tile.blocks(rows, columns) * count * parts
        together, left = divmod(-(-blocks // multiprocessors), tile.resident(stem))
        share = (tile.rows * tile.columns / 128**2, (tile.rows + tile.columns) / 256)
        work = speed.product * share[0] + speed.copy * share[1]
        alone = speed.alone + speed.column * tile.width(stem)

        def of_a_step(blocks: int) -> float:
            return ((work * blocks) ** _OVERLAP + alone**_OVERLAP) ** (1 / _OVERLAP)

        time = together * of_a_step(tile.resident(stem)) + (of_a_step(left) if left else 0)
        of_parts = _MICROSECONDS_OF_PARTS + (parts + 1) * entries / _ENTRIES_PER_MICROSECOND
        return time * (-(-steps // parts) + _STEPS_TO_BEGIN) + (of_parts if parts > 1 else 0)

    return min(itertools.product(tiles, range(1, most + 1)), key=microseconds)
