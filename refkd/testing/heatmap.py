"""A heat map of one parameter's errors as inline SVG: its colours and its drawing.

Cells of one colour are one path, so that a thousand of them take a few kilobytes, and
places are given in per cent, so that text and rings keep their size while the map
shrinks with the window. Where a cell stands is decided in :mod:`refkd.testing.tiling`,
the page around the map is :mod:`refkd.testing.html`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refkd.testing.tiling import Grid, indices

__all__ = ["STYLE", "colour_levels", "definitions", "draw", "legend", "scale"]

# The dark half of viridis, and a warm scale that is lighter throughout: no colour vision
# mixes them.
_BELOW = ("#440154", "#47297b", "#414487", "#39568c", "#31688e", "#2a788e")
_ABOVE = ("#fff0a8", "#ffdb74", "#ffc04a", "#ffa235", "#ff8233", "#ff5f35")
_NAN = len(_BELOW) + len(_ABOVE)
_LEGEND = _NAN + 2  # cells: a gap, and NaN

_CELL, _WIDTH, _HEIGHT = 16.0, 480.0, 384.0  # the largest cell and map, in CSS pixels
_NARROWEST = 64.0  # a map of a few long columns has wider cells
_GRID_FROM = 7.0  # pixels a cell needs for lines around it

STYLE = "\n".join(
    f"path.l{level} {{ stroke: {paint}; }} rect.l{level} {{ fill: {paint}; }}"
    for level, paint in enumerate([*_BELOW, *_ABOVE, "url(#nan)"])
)
"""CSS for the colours."""


def scale(tolerance: float) -> tuple[float, float, float]:
    """Return the error where colours begin, the tolerance, and the error where they end."""
    middle = tolerance if 1e-290 < tolerance < 1e290 else 1e-12
    return min(1e-16, middle / 1e4), middle, max(1.0, middle * 1e4)


def colour_levels(errors: NDArray[np.float64], tolerance: float) -> NDArray[np.intp]:
    """Return the colour of each error as a number from 0.

    The first half lies within the tolerance, the second above it, both equally spaced
    in the logarithm, and the last number is NaN's.
    """
    least, middle, largest = scale(tolerance)
    edges = np.concatenate(
        [
            np.geomspace(least, middle, len(_BELOW) + 1)[1:-1],
            [middle],
            np.geomspace(middle, largest, len(_ABOVE) + 1)[1:-1],
        ]
    )
    return np.where(np.isnan(errors), _NAN, np.searchsorted(edges, errors))


def draw(grid: Grid, tolerance: float, marked: tuple[int, ...] | None, titles: int) -> str:
    """Return the map as an ``<svg>`` as wide as its container allows.

    Parameters
    ----------
    grid : Grid
    tolerance : float
    marked : tuple of int, or None
        The entry to ring and to label.
    titles : int
        Up to so many cells, each has its index and its error as a tooltip.
    """
    height, width = grid.extent
    rows, columns = grid.places
    side = min(_CELL, _WIDTH / width, _HEIGHT / height)
    wide = max(width * side, min(width * _CELL, _NARROWEST))
    high = max(height * side, min(height * _CELL, _CELL))
    canvas = np.full((height, width + 1), -1)
    canvas[rows, columns] = colour_levels(grid.cells, tolerance)
    parts = [
        f'<svg class="map" role="img" aria-label="heat map" '
        f'style="max-width:{wide:.0f}px;aspect-ratio:{wide:.0f}/{high:.0f}">',
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none"><g class="cells">',
        *_runs(canvas),
        "</g>",
    ]
    if side >= _GRID_FROM:
        lines = [f"M0 {y}h{width}" for y in range(1, height)]
        lines += [f"M{x} 0v{height}" for x in range(1, width)]
        parts.append(f'<path class="grid" d="{"".join(lines)}"/>')
    if grid.cells.size <= titles:
        parts += _titles(grid, rows, columns)
    parts.append("</svg>")
    parts += _ticks(grid, height, width)
    if marked is not None:
        row, column = grid.place(marked)
        label = f"[{', '.join(map(str, marked))}]" if marked else ""
        leftwards = wide * column / width > _WIDTH / 3
        parts.append(_ring(_percent(row, height), _percent(column, width), label, leftwards))
    return "".join([*parts, "</svg>"])


def _runs(canvas: NDArray[np.intp]) -> list[str]:
    """Return one path per colour, of neighbours in a row as one line; -1 is blank."""
    columns = canvas.shape[1]
    flat = canvas.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    lines: dict[int, list[str]] = {}
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        row, column = divmod(start, columns)
        lines.setdefault(int(flat[start]), []).append(f"M{column} {row}h{length}")
    lines.pop(-1, None)
    return [f'<path class="l{level}" d="{"".join(d)}"/>' for level, d in sorted(lines.items())]


def _titles(grid: Grid, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> list[str]:
    squares = (
        f'<path d="M{column} {row}h1v1h-1z"><title>'
        f"{grid.entries(cell)} {grid.cells[cell]:.1e}</title></path>"
        for cell, row, column in zip(
            np.ndindex(grid.cells.shape), rows.flat, columns.flat, strict=True
        )
    )
    return ['<g class="titles">', *squares, "</g>"]


def _ticks(grid: Grid, height: int, width: int) -> list[str]:
    down, right = indices(grid)
    rows = [f'<text x="-6" y="{_percent(at, height)}" dy=".35em">{i}</text>' for at, i in down]
    columns = [f'<text x="{_percent(at, width)}" y="-5">{i}</text>' for at, i in right]
    sides = (("down", rows), ("right", columns))
    return [f'<g class="{side}">{"".join(texts)}</g>' for side, texts in sides if texts]


def _ring(row: str, column: str, label: str, leftwards: bool) -> str:
    side, shift = ("left", -13) if leftwards else ("beside", 13)
    return (
        f'<use href="#ring" x="{column}" y="{row}"/>'
        f'<text class="mark {side}" x="{column}" y="{row}" dx="{shift}" dy=".35em">{label}</text>'
    )


def _percent(cell: float, cells: int) -> str:
    return f"{100 * (cell + 0.5) / cells:.4g}%"


def definitions() -> str:
    """Return an invisible ``<svg>`` with what the maps and legends of a page refer to."""
    places = [*range(_NAN), _LEGEND - 1]
    swatches = (
        f'<rect class="l{level}" x="{place}" width="1" height="1"/>'
        for level, place in enumerate(places)
    )
    return (
        '<svg class="definitions" aria-hidden="true">'
        '<pattern id="nan" patternUnits="userSpaceOnUse" width=".4" height=".4">'
        '<path d="M0 0h.4v.4h-.4z" fill="#fff"/>'
        '<path d="M0 0h.2v.2h-.2zM.2 .2h.2v.2h-.2z" fill="#555"/></pattern>'
        f'<symbol id="colours" viewBox="0 0 {_LEGEND} 1" preserveAspectRatio="none">'
        f"{''.join(swatches)}</symbol>"
        '<g id="ring"><circle class="halo" r="8"/><circle class="ring" r="8"/></g></svg>'
    )


def legend(tolerance: float) -> str:
    """Return the colours with the errors they stand for, as an ``<svg>``."""
    least, middle, largest = scale(tolerance)
    half, whole = (f"{100 * cells / _LEGEND:.4g}%" for cells in (len(_BELOW), _NAN))
    return (
        '<svg class="legend" role="img" aria-label="colours of the scaled errors">'
        '<use href="#colours" width="100%" height="12"/>'
        f'<rect class="tolerance" x="{half}" width="2" height="18"/>'
        f'<text y="29">{least:.2g}</text>'
        f'<text x="{half}" y="29" text-anchor="middle">tolerance {middle:.2g}</text>'
        f'<text x="{whole}" y="29" text-anchor="end">{largest:.2g} and more</text>'
        '<text x="100%" y="29" text-anchor="end">NaN</text></svg>'
    )
