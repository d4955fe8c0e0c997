"""Pictures of the networks: the teacher's soft targets, calibration, and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refkd.report.class_axes import class_axes
from refkd.report.palette import LIGHT
from refkd.report.svg import WIDTH, Picture, add_axes, inline_svg, new_figure
from refkd.report.words import Network, clipped, human_bytes, networks, one_line, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration", "sizes", "soft_targets"]

_MOST_PRINTED = 12  # classes; beyond that numbers do not fit their cells


def soft_targets(result: Mapping[str, Any]) -> Picture | None:
    """Draw which classes the teacher finds similar: its mean probabilities off the diagonal.

    The diagonal is left out of the colours, which are logarithmic over at most four decades.
    """
    soft = result.get("soft_targets")
    if soft is None:
        return None
    matrix = np.asarray(soft["matrix"], dtype=float)
    others = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    positive = others[others > 0]
    top = float(positive.max()) if positive.size else 1e-4
    bottom = min(max(float(positive.min()) if positive.size else 0.0, 1e-4 * top), 0.5 * top)
    heights = np.log(np.maximum(others, bottom) / bottom) / math.log(top / bottom)

    figure, axes = class_axes(
        soft["class_names"], right=50, below="class that the teacher gives probability to"
    )
    axes.imshow(heights, cmap="viridis", vmin=0, vmax=1, interpolation="none", aspect="auto")
    if len(matrix) <= _MOST_PRINTED:
        _print_cells(axes, matrix, heights)
    _draw_scale(axes, bottom, top)
    a, b = np.unravel_index(np.nanargmax(others), others.shape)
    strongest = (
        f"Its strongest: images of {one_line(soft['class_names'][a])} get "
        f"{percent(others[a, b], 1)} for {one_line(soft['class_names'][b])}."
    )
    return Picture(
        name="soft-targets",
        title=f"What the teacher finds similar (T = {soft['temperature']:g})",
        caption="Row by row, the teacher's mean probability in percent for every class, over the "
        "test images of one true class; the colours leave the diagonal out. These small "
        f"probabilities are what the student learns beyond the labels. {strongest}",
        svg=inline_svg(
            figure, "soft-targets", f"Heat map of the teacher's soft targets. {strongest}"
        ),
    )


def _print_cells(axes: Axes, matrix: np.ndarray[Any, Any], heights: np.ndarray[Any, Any]) -> None:
    for (row, column), probability in np.ndenumerate(matrix):
        value = 100 * float(probability)
        if value < 0.05:
            continue
        # The map runs from dark to light, on either page; the diagonal shows the page.
        height = heights[row, column]
        colour = LIGHT["ink"] if row == column else "#050505" if height > 0.6 else "#ffffff"
        text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
        axes.text(column, row, text, color=colour, size=7.5, ha="center", va="center_baseline")


def _draw_scale(axes: Axes, bottom: float, top: float) -> None:
    box = axes.get_position()
    scale = axes.figure.add_axes((box.x1 + 12 / WIDTH, box.y0, 9 / WIDTH, box.height))
    scale.imshow(
        np.linspace(0, 1, 64)[:, None],
        cmap="viridis",
        interpolation="none",
        aspect="auto",
        origin="lower",
        extent=(0, 1, 0, 1),
    )
    decades = [step * 10.0**k for k in range(-12, 1) for step in (1, 2, 5)]
    inside = [value for value in decades if bottom <= value <= top]
    if top / bottom > 100:
        inside = [value for value in inside if f"{value:e}".startswith("1")]
    ends = inside if len(inside) > 1 else [bottom, top]
    scale.set_yticks(
        [math.log(value / bottom) / math.log(top / bottom) for value in ends],
        [f"{100 * value:.2g}%" for value in ends],
    )
    scale.yaxis.tick_right()
    scale.set_xticks([])
    scale.grid(False)
    scale.spines[:].set_visible(False)
    scale.tick_params(length=0, labelsize=8)


def calibration(result: Mapping[str, Any]) -> Picture | None:
    """Draw a reliability diagram of every network, with its expected calibration error."""
    measured = [n for n in networks(result) if n.side.get("calibration")]
    if not measured:
        return None
    across = 2 if len(measured) <= 4 else 3
    rows = math.ceil(len(measured) / across)
    left, bottom, gap, above = 34.0, 34.0, 20.0, 26.0
    panel = (WIDTH - left - 8 - (across - 1) * gap) / across
    figure = new_figure(bottom + rows * (panel + above))
    for i, network in enumerate(measured):
        row, column = divmod(i, across)
        x = left + column * (panel + gap)
        axes = add_axes(
            figure,
            left=x,
            right=WIDTH - x - panel,
            top=above + row * (panel + above),
            bottom=bottom + (rows - 1 - row) * (panel + above),
        )
        _draw_reliability(axes, network)
        if column > 0:
            axes.tick_params(labelleft=False)
        if i + across < len(measured):
            axes.tick_params(labelbottom=False)
    figure.text(left / WIDTH, 6 / (72 * figure.get_figheight()), "confidence", color=LIGHT["muted"])
    errors = ", ".join(f"{n.name} {percent(n.side['calibration']['ece'], 1)}" for n in measured)
    return Picture(
        name="calibration",
        title="Calibration",
        caption="Test images by the network's confidence (across) and the share of them it gets "
        "right (up); larger dots are more images. On the diagonal confidence is honest, below it "
        "is too high. ECE, the expected calibration error, is the mean distance from it.",
        svg=inline_svg(figure, "calibration", f"Reliability diagrams. ECE: {errors}"),
    )


def _draw_reliability(axes: Axes, network: Network) -> None:
    bins = network.side["calibration"]["bins"]
    confidence = [b["confidence"] for b in bins]
    accuracy = [b["accuracy"] for b in bins]
    total = sum(b["count"] for b in bins) or 1
    colour = LIGHT[network.role]
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.8)
    axes.plot(confidence, accuracy, color=colour, linewidth=1)
    areas = [14 + 130 * b["count"] / total for b in bins]
    axes.scatter(confidence, accuracy, s=areas, color=colour, alpha=0.8, linewidth=0, zorder=3)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.set_xticks((0, 0.5, 1), ("0", "50%", "100%"))
    axes.set_yticks((0, 0.5, 1), ("0", "50%", "100%"))
    axes.set_title(clipped(network.name, 17), color=colour, pad=4)
    error = f"ECE {percent(network.side['calibration']['ece'], 1)}"
    axes.text(0.97, 0.06, error, color=colour, ha="right", transform=axes.transAxes)


def sizes(result: Mapping[str, Any]) -> Picture | None:
    """Draw the bytes of the teacher and of the students; None where all are equally large."""
    groups: dict[tuple[int, int], list[Network]] = {}
    for network in networks(result):
        key = (network.side["bytes"], network.side["parameters"])
        groups.setdefault(key, []).append(network)
    if len(groups) < 2:
        return None
    teacher = result.get("teacher")
    row = 40
    figure = new_figure(row * len(groups) + 8)
    axes = add_axes(figure, left=2, right=8, top=0, bottom=4)
    largest = max(size for size, _ in groups)
    words = []
    for y, ((size, parameters), members) in enumerate(groups.items()):
        role = "distilled" if any(n.role == "distilled" for n in members) else members[0].role
        axes.barh(y + 0.16, size, height=0.34, color=LIGHT[role])
        name = ", ".join(n.name for n in members)
        if teacher and len(groups) == 2 and members[0].key != "teacher":
            name = "student"
        words.append(f"{clipped(name, 22)}: {human_bytes(size)}, {parameters:,} parameters")
        axes.text(0, y - 0.12, words[-1], color=LIGHT[role])
    axes.set(xlim=(0, largest), ylim=(len(groups) - 0.5, -0.5))
    axes.set_axis_off()
    return Picture(
        name="sizes",
        title="Sizes",
        caption="The bars are in proportion to the bytes of the parameters. "
        + (_ratio(teacher, result["student_distilled"]) if teacher else ""),
        svg=inline_svg(figure, "sizes", "Sizes. " + "; ".join(words)),
    )


def _ratio(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    ratio = teacher["parameters"] / student["parameters"]
    return f"The teacher has {ratio:.3g} times the parameters of the distilled student."
