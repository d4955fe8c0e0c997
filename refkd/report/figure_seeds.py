"""Pictures of the seeds: every seed's accuracy, and the paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refkd.report.palette import LIGHT, MARKERS
from refkd.report.svg import Picture, add_axes, inline_svg, new_figure
from refkd.report.words import clipped, difference_sentence, networks, percent, points, short_name

__all__ = ["accuracy_per_seed", "paired_differences"]


def accuracy_per_seed(result: Mapping[str, Any]) -> Picture:
    """Draw the accuracy of every seed of every student, equal seeds joined."""
    students = [n for n in networks(result) if n.key != "teacher"]
    crowded = len(students) > 4
    figure = new_figure(250 if crowded else 214)
    axes = add_axes(
        figure, left=40, right=26, top=22, bottom=62 if crowded else 24, title="test accuracy"
    )
    for (i, left), right in zip(enumerate(students), students[1:], strict=False):
        pairs = zip(left.side["accuracies"], right.side["accuracies"], strict=False)
        for pair in pairs:
            axes.plot([i, i + 1], pair, color=LIGHT["muted"], linewidth=0.8, alpha=0.7)
    means = any(n.side.get("interval") is not None for n in students)
    for i, network in enumerate(students):
        colour, marker = LIGHT[network.role], MARKERS[network.role]
        side = network.side
        axes.plot(
            [i] * len(side["accuracies"]), side["accuracies"], marker, color=colour, alpha=0.75
        )
        if side.get("interval") is not None:
            outside = i - 0.16 if i == 0 else i + 0.16
            axes.plot([outside] * 2, side["interval"], color=colour, linewidth=3)
            axes.plot(outside, side["accuracy"], marker, color=colour, markersize=8)
    axes.set_xlim(-0.5, len(students) - 0.5)
    axes.set_xticks(range(len(students)), [clipped(n.name, 14) for n in students])
    for tick, network in zip(axes.get_xticklabels(), students, strict=True):
        tick.set_color(LIGHT[network.role])
        if crowded:
            tick.set(rotation=35, rotation_mode="anchor", ha="right")
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g}%")
    alt = "Test accuracy of every seed. Means: " + ", ".join(
        f"{n.name} {percent(n.side['accuracy'])}" for n in students
    )
    return Picture(
        name="seeds",
        title="Accuracy of every seed",
        caption="Each small mark is one seed and a line joins equal seeds: where most lines rise, "
        "the right-hand network is better."
        + (" The large mark is the mean, its bar the 95% interval of the mean." if means else ""),
        svg=inline_svg(figure, "seeds", alt),
    )


def paired_differences(result: Mapping[str, Any]) -> Picture | None:
    """Draw every paired difference: its seeds, mean and interval, against zero."""
    differences = result.get("differences") or []
    if not differences:
        return None
    roles = {n.key: n.role for n in networks(result)}
    row = 46
    figure = new_figure(44 + row * len(differences))
    axes = add_axes(figure, left=14, right=14, top=4, bottom=40)
    for y, difference in enumerate(differences):
        colour = LIGHT[roles.get(difference["a"], "ink")]
        seeds = [100 * value for value in difference["per_seed"]]
        axes.plot([0, 0], [y - 0.12, y + 0.45], color=LIGHT["ink"], linewidth=1)
        axes.plot(seeds, [y + 0.02] * len(seeds), "o", color=colour, alpha=0.6, markersize=4)
        if difference.get("interval") is not None:
            interval = [100 * end for end in difference["interval"]]
            axes.plot(interval, [y + 0.24] * 2, color=colour, linewidth=3)
        axes.plot(100 * difference["mean"], y + 0.24, "D", color=colour, markersize=7)
        names = f"{short_name(difference['a'])} minus {short_name(difference['b'])}"
        title = f"{clipped(names, 55)}: {points(difference['mean'])}"
        axes.text(0, y - 0.25, title, color=colour, transform=axes.get_yaxis_transform())
    axes.set_ylim(len(differences) - 0.5, -0.55)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference of the accuracies, percentage points")
    return Picture(
        name="differences",
        title="Paired differences",
        caption="Each dot is the difference of one seed, the diamond their mean and the bar its "
        "95% interval: where the bar crosses zero, the difference is within noise.",
        svg=inline_svg(
            figure, "differences", ". ".join(difference_sentence(d, result) for d in differences)
        ),
    )
