"""Axes of a matrix whose rows and columns are the classes, their names along both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refkd.report.svg import WIDTH, add_axes, new_figure
from refkd.report.words import clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["class_axes"]

_MOST_LABELS = 25
_TOP = 24.0


def class_axes(
    class_names: Sequence[str], *, right: float, below: str, cell_height: float = math.inf
) -> tuple[Figure, Axes]:
    """Return a figure and its axes, where row i and column j of a matrix meet at (j, i).

    Parameters
    ----------
    class_names : sequence of str
    right : float
        Points to leave free beside the matrix.
    below : str
        What the columns are; the rows are the true classes.
    cell_height : float
        At most so many points; cells are as wide as there is room, and at most as high.
    """
    names = [clipped(name, 12) for name in class_names]
    longest = max(map(len, names))
    name_room = 12 + 5.4 * longest
    side = WIDTH - name_room - 12 - right
    height = min(side, cell_height * len(names))
    upright = longest > (2 if len(names) > 6 else 8)
    bottom = 22 + (name_room - 6 if upright else 14)
    figure = new_figure(height + _TOP + bottom)
    axes = add_axes(
        figure, left=name_room + 12, right=right, top=_TOP, bottom=bottom, title="true class"
    )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    every = math.ceil(len(names) / _MOST_LABELS)
    places = range(0, len(names), every)
    axes.set_yticks(places, names[::every])
    axes.set_xticks(places, names[::every])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    if upright:
        for tick in axes.get_xticklabels():
            tick.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    axes.tick_params(length=0, labelsize=7.5 if len(names) > 12 else None)
    axes.set_xlabel(below)
    return figure, axes
