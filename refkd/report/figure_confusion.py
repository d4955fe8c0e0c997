"""Pictures of which classes the teacher and two of the students take for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refkd.report.class_axes import class_axes
from refkd.report.palette import LIGHT
from refkd.report.svg import Picture, inline_svg
from refkd.report.words import (
    confusion_matrices,
    human_count,
    short_name,
    strongest_confusion,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["confusions"]

_MOST_PRINTED = 20  # classes; beyond that numbers do not fit their cells
_MOST_OPAQUE = 0.42  # the page's ink can be read on a cell of any role's colour, light or dark
_ROLES = {"teacher": "teacher", "student_alone": "alone", "student_distilled": "distilled"}


def confusions(result: Mapping[str, Any]) -> list[Picture]:
    """Draw the confusion matrix of the first seed's networks on the test images."""
    names = result["data"]["class_names"]
    matrices = confusion_matrices(result)
    return [
        _draw(key, matrix, names, how_to_read=key == next(iter(matrices)))
        for key, matrix in matrices.items()
    ]


def _draw(
    key: str, counts: NDArray[np.float64], names: Sequence[str], *, how_to_read: bool
) -> Picture:
    sizes = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sizes, out=np.zeros_like(counts), where=sizes > 0)
    printed = len(names) <= _MOST_PRINTED
    figure, axes = class_axes(
        names,
        right=34 if printed else 8,
        below="class that the network says",
        cell_height=36 if printed else np.inf,
    )
    colour = LIGHT[_ROLES[key]]
    # The square root of a share tells apart what is rare, which is what errors are.
    if printed:
        _draw_cells(axes, counts, np.sqrt(shares), colour)
        _print_right(axes, np.diagonal(shares), sizes[:, 0])
    else:
        axes.imshow(
            np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, interpolation="none", aspect="auto"
        )
    title = f"Confusions: {short_name(key)}"
    name = f"confusion-{_ROLES[key]}"
    finding = strongest_confusion(counts, names)
    reading = _how_to_read(printed) if how_to_read else ""
    right = f"{counts.trace():,.0f} of {counts.sum():,.0f} test images are right."
    return Picture(
        name=name,
        title=title,
        caption=f"{reading}{finding}",
        svg=inline_svg(figure, name, f"Confusion matrix, {short_name(key)}. {right} {finding}"),
    )


def _how_to_read(printed: bool) -> str:
    if printed:
        return (
            "Test images of one true class (row) by what the network says (column), first seed; "
            "the deeper a colour, the greater the share of its row, and at the right the share "
            "that is right. "
        )
    return (
        "Test images of one true class (row) by what the network says (column), first seed; "
        "the brighter a cell, the greater its share of the row, on a square-root scale. "
    )


def _draw_cells(
    axes: Axes, counts: NDArray[np.float64], depths: NDArray[np.float64], colour: str
) -> None:
    size = len(counts)
    _fill(axes, 0, 0, size, LIGHT["grid"], 0.3)
    # A digit is 0.62 of its size wide, and the longest number shall not touch its neighbour.
    longest = max(len(human_count(count)) for count in counts.flat)
    font_size = min(9.0, 0.9 * axes.bbox.width / size / (0.62 * longest))
    for (row, column), count in np.ndenumerate(counts):
        if count > 0:
            depth = _MOST_OPAQUE * float(depths[row, column])
            _fill(axes, row, column, 1, colour, depth)
            text = human_count(count)
            axes.text(column, row, text, size=font_size, ha="center", va="center_baseline")


def _fill(axes: Axes, row: int, column: int, size: int, colour: str, opacity: float) -> None:
    """Fill the square of ``size`` cells whose first one is (row, column)."""
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, row - 0.5)
    axes.add_patch(
        Rectangle(corner, size, size, color=colour, alpha=opacity, linewidth=0, clip_on=False)
    )


def _print_right(axes: Axes, shares: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
    """Write the share that is right beside every row that has images."""
    texts = {
        row: f"{100 * share:.0f}%"
        for row, (share, size) in enumerate(zip(shares, sizes, strict=True))
        if size > 0
    }
    for row, text in {-1: "right", **texts}.items():
        height = -0.5 if row < 0 else row
        axes.annotate(
            text,
            (len(shares) - 0.5, height),
            (5, 8 if row < 0 else 0),
            textcoords="offset points",
            va="baseline" if row < 0 else "center_baseline",
            color=LIGHT["muted"],
            size=7.5,
        )
