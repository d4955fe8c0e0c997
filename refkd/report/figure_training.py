"""Pictures of the training: test accuracy and training loss by epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from refkd.report.palette import LIGHT, MARKERS
from refkd.report.svg import FONT_SIZE, Picture, add_axes, inline_svg, new_figure
from refkd.report.words import Network, clipped, networks, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "accuracy_curves", "loss_curves", "mean_curve", "spread"]


class Curve(NamedTuple):
    """A quantity by epoch: its mean over the seeds, and the least and greatest seed."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def mean_curve(history: Sequence[Sequence[Mapping[str, Any]]], key: str) -> Curve:
    """Average ``key`` over the seeds that have it, epoch by epoch.

    Epochs are counted through all stages. Seeds may have histories of unequal length.
    """
    curve = Curve([], [], [], [])
    for epoch, records in enumerate(itertools.zip_longest(*history, fillvalue={}), start=1):
        values = [record[key] for record in records if record.get(key) is not None]
        if values:
            curve.epochs.append(epoch)
            curve.mean.append(fmean(values))
            curve.low.append(min(values))
            curve.high.append(max(values))
    return curve


def accuracy_curves(result: Mapping[str, Any]) -> Picture | None:
    """Draw the test accuracy of every student by epoch, and the teacher's as a line."""
    teacher = [n for n in networks(result) if n.key == "teacher"]
    curves = _curves([n for n in networks(result) if n.key != "teacher"], "test_accuracy")
    if not curves:
        return None
    figure = new_figure(226)
    axes = add_axes(figure, left=34, right=100, top=22, bottom=34, title="test accuracy")
    _draw_curves(axes, curves)
    ends = [curve.mean[-1] for _, curve in curves] + [n.side["accuracy"] for n in teacher]
    # Students start near chance, and an axis from there would hide the differences: the
    # first two epochs and the first quarter of the way need not be seen.
    later = [c.low[max(len(c.low) // 4, min(2, len(c.low) - 1)) :] for _, c in curves]
    low, high = min([*ends, *map(min, later)]), max([*ends, *(max(c.high) for _, c in curves)])
    margin = max(0.05 * (high - low), 0.002)
    axes.set_ylim(low - margin, high + margin)
    labels = [
        (f"{clipped(n.name, 11)} {percent(c.mean[-1], 1)}", n.role, c.mean[-1]) for n, c in curves
    ]
    for network in teacher:
        level = network.side["accuracy"]
        axes.axhline(level, color=LIGHT["teacher"], linewidth=1.2, dashes=(5, 3))
        labels.append((f"{network.name} {percent(level, 1)}", "teacher", level))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}%")
    _end_labels(axes, labels)
    alt = "Test accuracy by epoch. At the end: " + ", ".join(text for text, _, _ in labels)
    return Picture(
        name="accuracy",
        title="Test accuracy while training",
        caption="Each line is the mean over the seeds and its band spans all of them; it ends "
        "with a mark where training ends, and dots carry its level on. "
        + _where_axis_starts(curves, low - margin),
        svg=inline_svg(figure, "accuracy", alt),
    )


def _where_axis_starts(curves: Sequence[tuple[Network, Curve]], bottom: float) -> str:
    if min(min(c.mean) for _, c in curves) >= bottom:
        return "The axis does not start at zero."
    return f"The axis starts at {percent(bottom, 1)}: the first epochs lie below it."


def loss_curves(result: Mapping[str, Any]) -> Picture | None:
    """Draw the training loss of every network by epoch."""
    curves = _curves(networks(result), "loss")
    if not curves:
        return None
    figure = new_figure(226)
    axes = add_axes(figure, left=34, right=100, top=22, bottom=34, title="training loss")
    lowest, highest = min(min(c.low) for _, c in curves), max(max(c.high) for _, c in curves)
    if lowest > 0 and highest > 20 * lowest:
        _set_log_scale(axes, highest / lowest)
    _draw_curves(axes, curves)
    _end_labels(axes, [(clipped(n.name, 17), n.role, c.mean[-1]) for n, c in curves])
    alt = "Training loss by epoch. At the end: " + ", ".join(
        f"{n.name} {c.mean[-1]:.3g}" for n, c in curves
    )
    return Picture(
        name="loss",
        title="Training loss",
        caption="See whether each line settles; heights of different losses (with and without "
        "soft targets) cannot be compared.",
        svg=inline_svg(figure, "loss", alt),
    )


def _set_log_scale(axes: Axes, ratio: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if ratio > 1e3 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.3g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curves(sides: Sequence[Network], key: str) -> list[tuple[Network, Curve]]:
    curves = [(n, mean_curve(n.side.get("history") or [], key)) for n in sides]
    return [(network, curve) for network, curve in curves if curve.epochs]


def _draw_curves(axes: Axes, curves: Sequence[tuple[Network, Curve]]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(curve.epochs[-1] for _, curve in curves)
    for network, curve in curves:
        colour = LIGHT[network.role]
        axes.fill_between(
            curve.epochs, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0
        )
        axes.plot(curve.epochs, curve.mean, color=colour)
        axes.plot(
            curve.epochs[-1],
            curve.mean[-1],
            color=colour,
            marker=MARKERS[network.role],
            clip_on=False,
        )
        axes.plot(
            [curve.epochs[-1], max(last, 2)], [curve.mean[-1]] * 2, ":", color=colour, linewidth=1
        )
    axes.set_xlim(1, max(last, 2))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")


def _end_labels(axes: Axes, labels: Sequence[tuple[str, str, float]]) -> None:
    """Write direct labels right of the axes, beside their heights but never overlapping.

    Parameters
    ----------
    axes : Axes
        With its final limits.
    labels : sequence of (text, role, y)
        ``y`` in data coordinates.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((1, y))[1]) for _, _, y in labels]
    gap = 1.25 * FONT_SIZE / axes.bbox.height
    for (text, role, _), y, placed in zip(labels, heights, spread(heights, gap), strict=True):
        colour = LIGHT[role]
        axes.plot(
            [1, 1.03],
            [y, placed],
            color=colour,
            linewidth=0.8,
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.text(1.04, placed, text, color=colour, va="center_baseline", transform=axes.transAxes)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions in [0, 1] apart until neighbours are ``gap`` apart, in their order.

    Where they do not all fit, the gap shrinks until they do.
    """
    gap = min(gap, 1 / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    floor = 0.0
    for i in order:
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    ceiling = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
