"""The numbers behind the pictures."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.report.figure_seeds import accuracy_per_seed
from refkd.report.figure_training import mean_curve, spread
from refkd.report.palette import DARK, LIGHT, MARKERS
from refkd.report.svg import drawing


def test_curve_is_mean_least_and_greatest_over_the_seeds() -> None:
    history = [[{"loss": 1.0}, {"loss": 4.0}], [{"loss": 3.0}, {"loss": 2.0}]]
    curve = mean_curve(history, "loss")
    assert curve.epochs == [1, 2]
    assert curve.mean == [2.0, 3.0]
    assert curve.low == [1.0, 2.0]
    assert curve.high == [3.0, 4.0]


def test_curve_follows_the_seeds_that_are_there() -> None:
    history = [[{"loss": 1.0}], [{"loss": 3.0}, {"loss": None}, {"loss": 5.0}], []]
    curve = mean_curve(history, "loss")
    assert curve.epochs == [1, 3]
    assert curve.mean == [2.0, 5.0]


def test_curve_counts_epochs_through_the_stages() -> None:
    history = [[{"stage": s, "epoch": e, "loss": 1.0} for s in (1, 2) for e in (1, 2)]]
    assert mean_curve(history, "loss").epochs == [1, 2, 3, 4]


def test_curve_of_an_unknown_quantity_is_empty() -> None:
    assert mean_curve([[{"loss": 1.0}]], "test_accuracy").epochs == []


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 1))
def test_spread_labels_keep_their_order_distance_and_range(
    positions: list[float], gap: float
) -> None:
    placed = spread(positions, gap)
    reached = min(gap, 1 / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    for lower, upper in itertools.pairwise(order):
        assert placed[upper] - placed[lower] == pytest.approx(reached, abs=1e-12) or (
            placed[upper] - placed[lower] > reached
        )
    assert all(-1e-12 <= p <= 1 + 1e-12 for p in placed)


@given(st.lists(st.integers(0, 9).map(lambda i: i / 9), unique=True))
def test_spread_leaves_labels_alone_that_have_room(positions: list[float]) -> None:
    assert spread(positions, 0.1) == pytest.approx(positions, abs=1e-12)


def lines_of(result: dict[str, Any]) -> list[str]:
    with drawing():
        return sorted(re.findall(r'<path d="([^"]*)"', accuracy_per_seed(result).svg))


def test_lines_join_the_same_seed_of_two_networks(result: dict[str, Any]) -> None:
    original = lines_of(result)
    alone, distilled = (result[f"student_{n}"]["accuracies"] for n in ("alone", "distilled"))
    distilled[2], distilled[5] = distilled[5], distilled[2]
    assert lines_of(result) != original
    alone[2], alone[5] = alone[5], alone[2]
    assert lines_of(result) == original


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("palette", "page"), [(LIGHT, "#ffffff"), (DARK, "#0f1318")])
def test_every_colour_can_be_read_as_text_on_its_page(palette: dict[str, str], page: str) -> None:
    for role in palette.keys() - {"grid"}:
        dark, light = sorted([luminance(palette[role]), luminance(page)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, role


def test_every_role_has_a_colour_of_its_own_on_both_pages() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert LIGHT.keys() - MARKERS.keys() == {"ink", "muted", "grid"}
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert len(set(DARK.values())) == len(DARK)
