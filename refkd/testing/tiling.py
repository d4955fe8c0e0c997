"""Where the entries of an array stand in a drawing on a plane.

A vector, a matrix, or tiles of a convolution's kernels; where there are too many entries
a cell stands for a block of them. What a cell looks like is not known here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "arrange", "indices"]

_LINE = 64  # cells in a line of a vector, or of tiles
_WIDEST, _TALLEST = 160, 256  # cells
_TICKS = 5


class Grid(NamedTuple):
    """Entries, or blocks of them, at their places in a drawing.

    Attributes
    ----------
    cells : array of float64
        The largest error of each block, or NaN where it has one.
    shape : tuple of int
        Of the parameter.
    axes : tuple of int
        Its axes that ``cells`` has; those of length one may be left out.
    blocks : tuple of int
        Entries in a cell, along each of these.
    """

    cells: NDArray[np.float64]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    blocks: tuple[int, ...]

    def place(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return the row and the column at which the entry ``index`` is drawn."""
        cell = [np.array(index[a] // b) for a, b in zip(self.axes, self.blocks, strict=True)]
        row, column = _places(tuple(cell), self.cells.shape)
        return int(row), int(column)

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the drawing, in cells."""
        return _extent(self.cells.shape)

    @property
    def places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of all cells."""
        return _places(tuple(np.indices(self.cells.shape)), self.cells.shape)

    def entries(self, cell: tuple[int, ...]) -> str:
        """Return what ``cell`` holds, as an index or slices of the parameter."""
        index = ["0"] * len(self.shape)
        for i, axis, block in zip(cell, self.axes, self.blocks, strict=True):
            stop = min((i + 1) * block, self.shape[axis])
            index[axis] = str(i) if block == 1 else f"{i * block}:{stop}"
        return f"[{', '.join(index)}]"

    def __str__(self) -> str:
        """How it is laid out, in words."""
        names = [f"axis {axis}" for axis in self.axes]
        match len(names):
            case 0:
                layout = "one entry"
            case 1:
                layout = names[0] if self.cells.size <= _LINE else f"{names[0]}, in lines"
            case 2:
                layout = f"{names[0]} down, {names[1]} across"
            case 3:
                layout = f"tiles: {names[0]}; in each {names[1]} down, {names[2]} across"
            case _:
                layout = (
                    f"tiles: {', '.join(names[:-3])} down, {names[-3]} across; "
                    f"in each {names[-2]} down, {names[-1]} across"
                )
        if math.prod(self.blocks) == 1:
            return layout
        size = " × ".join(map(str, self.blocks))
        return f"{layout}; each cell is the largest error of {size} entries"


def arrange(errors: NDArray[np.float64], most: int) -> Grid:
    """Lay out errors in at most ``most`` cells.

    A vector is a row, wrapped into lines; a matrix is drawn as it is; of an array with
    more axes the last two make a tile, the one before runs across and all others down.

    Parameters
    ----------
    errors : array of float64, not empty
    most : int
        At least 1.
    """
    axes = tuple(range(errors.ndim))
    if errors.ndim > 2 or errors.size > _LINE:
        axes = tuple(axis for axis in axes if errors.shape[axis] > 1)
    cells = errors.reshape([errors.shape[axis] for axis in axes])
    blocks = [1] * cells.ndim
    while not _fits(shape := _blocked(cells.shape, blocks), most):
        blocks[shape.index(max(shape))] *= 2
    for axis, block in enumerate(blocks):
        cells = np.maximum.reduceat(cells, np.arange(0, cells.shape[axis], block), axis=axis)
    return Grid(cells, errors.shape, axes, tuple(blocks))


def indices(grid: Grid) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Return the places of a few indices, in cells: those down the side, those across the top."""
    shape, blocks = grid.cells.shape, grid.blocks
    first = [range(0, n * block, block) for n, block in zip(shape, blocks, strict=True)]
    if len(shape) == 0:
        return [], []
    if len(shape) == 1:
        lines = list(enumerate(first[0][::_LINE]))
        return ([], _few(enumerate(first[0]))) if len(lines) == 1 else (_few(lines), [])
    if len(shape) == 2:
        return _few(enumerate(first[0])), _few(enumerate(first[1]))
    height, width = shape[-2] + 1, shape[-1] + 1

    def middles(indices: Iterable[object], pitch: int) -> list[tuple[float, str]]:
        return _few((i * pitch + pitch / 2 - 1, index) for i, index in enumerate(indices))

    if len(shape) == 3:
        across = max(1, _LINE // width)
        if shape[0] > across:
            return middles(first[0][::across], height), []
        return [], middles(first[0], width)
    outer = (", ".join(map(str, index)) for index in itertools.product(*first[:-3]))
    return middles(outer, height), middles(first[-3], width)


def _few(marks: Iterable[tuple[float, object]]) -> list[tuple[float, str]]:
    listed = [(place, str(index)) for place, index in marks]
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    return listed[:: next(step for step in steps if len(listed) <= step * _TICKS)]


def _blocked(shape: tuple[int, ...], blocks: Iterable[int]) -> tuple[int, ...]:
    return tuple(-(-length // block) for length, block in zip(shape, blocks, strict=True))


def _fits(shape: tuple[int, ...], most: int) -> bool:
    if math.prod(shape) > most:
        return False
    height, width = _extent(shape)
    return height <= _TALLEST and width <= _WIDEST


def _extent(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = _places(tuple(np.indices(shape)), shape)
    return int(rows.max()) + 1, int(columns.max()) + 1


def _places(
    index: tuple[NDArray[np.intp], ...], shape: tuple[int, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of cells; tiles stand one empty cell apart."""
    if len(shape) == 0:
        return np.array(0), np.array(0)
    if len(shape) == 1:
        return index[0] // _LINE, index[0] % _LINE
    if len(shape) == 2:
        return index[0], index[1]
    *outer, row, column = index
    height, width = shape[-2] + 1, shape[-1] + 1
    if len(shape) == 3:
        across = max(1, _LINE // width)
        down, right = outer[0] // across, outer[0] % across
    else:
        down, right = np.ravel_multi_index(tuple(outer[:-1]), shape[:-3]), outer[-1]
    return down * height + row, right * width + column
