"""The numbers behind the pictures."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.report.attachments import Filters
from refkd.report.figure_confusion import confusions
from refkd.report.figure_filters import first_filters, mosaic
from refkd.report.figure_seeds import accuracy_per_seed
from refkd.report.figure_training import mean_curve, spread
from refkd.report.palette import DARK, LIGHT, MARKERS
from refkd.report.svg import Picture, drawing
from refkd.report.words import confusion_matrices


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


def picture(result: dict[str, Any], role: str) -> Picture:
    with drawing():
        return next(p for p in confusions(result) if p.name == f"confusion-{role}")


def numbers(svg: str) -> list[str]:
    return re.findall(r">\s*(\d[\dkM]*)\s*</text>", svg)


@pytest.mark.parametrize("classes", [2, 5, 20])
def test_a_confusion_matrix_of_up_to_twenty_classes_prints_its_counts(
    make_result: Any, with_images: Any, classes: int
) -> None:
    result, _ = with_images(make_result(classes=classes))
    result["data"]["class_names"] = [f"c{i}" for i in range(classes)]
    for role, key in (("teacher", "teacher"), ("alone", "student_alone")):
        counts = [str(c) for row in result["confusion"][key] for c in row if c]
        assert sorted(numbers(picture(result, role).svg)) == sorted(counts)


def test_counts_stand_in_the_row_of_the_true_class_in_their_cells(
    make_result: Any, with_images: Any
) -> None:
    result, _ = with_images(make_result(classes=3))
    result["data"]["class_names"] = ["a", "b", "c"]
    result["confusion"]["teacher"] = [[11, 12, 13], [21, 22, 23], [0, 32, 33]]
    svg = picture(result, "teacher").svg
    texts = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>\s*(\d\d)\s*<', svg)
    places = [(float(y), float(x), int(count)) for x, y, count in texts]
    assert [count for _, _, count in sorted(places)] == [11, 12, 13, 21, 22, 23, 32, 33]
    corners = (
        r'd="M ([\d.]+) ([\d.]+)\nL [\d.]+ [\d.]+\nL ([\d.]+) ([\d.]+)\n[^"]*" style="fill: var'
    )
    cells = [tuple(map(float, c)) for c in re.findall(rf"{corners}\(--teacher", svg)][-8:]
    for (y, x, _), (left, top, right, bottom) in zip(places, cells, strict=True):
        assert left < x < right
        assert top < y < bottom


def test_a_confusion_matrix_of_more_classes_prints_none(make_result: Any, with_images: Any) -> None:
    result, _ = with_images(make_result(classes=21))
    result["data"]["class_names"] = [f"c{i}" for i in range(21)]
    drawn = picture(result, "distilled")
    assert numbers(drawn.svg) == []
    assert "data:image/png;base64" in drawn.svg


def test_cells_of_a_confusion_matrix_are_as_deep_as_their_share_of_the_row(
    make_result: Any, with_images: Any
) -> None:
    result, _ = with_images(make_result(classes=3))
    # Twice as many images of the last class, in the same shares.
    result["confusion"]["student_alone"] = [[16, 4, 0], [0, 4, 12], [8, 0, 32]]
    cells = re.findall(
        r"fill: var\(--alone\);[^\"]*opacity: ([\d.]+)", picture(result, "alone").svg
    )
    shares = [0.8, 0.2, 0.25, 0.75, 0.2, 0.8]
    assert [float(depth) for depth in cells] == pytest.approx(
        [0.42 * s**0.5 for s in shares], abs=1e-6
    )


def test_a_confusion_matrix_says_in_words_what_is_confused_most(
    make_result: Any, with_images: Any
) -> None:
    result, _ = with_images(make_result(classes=3))
    result["data"]["class_names"] = ["cat", "dog", "cow"]
    result["confusion"]["student_alone"] = [[16, 4, 0], [0, 4, 12], [8, 0, 32]]
    result["confusion"]["student_distilled"] = [[20, 0, 0], [0, 16, 0], [0, 0, 0]]
    alone, distilled = picture(result, "alone"), picture(result, "distilled")
    assert "12 of 16 images of dog are taken for cow." in alone.caption
    assert 'aria-label="Confusion matrix, alone. 52 of 76 test images are right.' in alone.svg
    assert "No class is taken for another." in distilled.caption
    assert "100%" in distilled.svg
    assert "nan" not in distilled.svg


def test_an_old_result_has_no_confusion_matrices(result: dict[str, Any]) -> None:
    with drawing():
        assert confusions(result) == []


@pytest.mark.parametrize(
    "counts",
    [[[1, 2], [3, 4]], [[1] * 10] * 9, [1] * 10, 7, "", [[-1] * 10] * 10, [["a"] * 10] * 10],
)
def test_a_damaged_confusion_matrix_is_refused(result: dict[str, Any], counts: Any) -> None:
    result["confusion"] = {"teacher": counts}
    with pytest.raises((ValueError, TypeError)):
        confusion_matrices(result)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
@pytest.mark.parametrize("role", ["teacher", "alone", "distilled"])
def test_counts_can_be_read_on_the_deepest_cell(palette: dict[str, str], role: str) -> None:
    page = "#ffffff" if palette is LIGHT else "#0f1318"
    # The cell lies on a ground of the grid's colour at 0.3.
    cell = blended(palette[role], blended(palette["grid"], page, 0.3), 0.42)
    dark, light = sorted([luminance(palette["ink"]), luminance(cell)])
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def blended(top: str, ground: str, opacity: float) -> str:
    pairs = [(int(top[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_filter_is_scaled_by_its_own_largest_magnitude(channels: int) -> None:
    rng = np.random.default_rng(channels)
    weight = (
        rng.standard_normal((5, channels, 3, 2))
        * np.array([1e-6, 1, 9, 0, 1e6])[:, None, None, None]
    )
    pixels = mosaic(weight, across=2)
    tall, wide = 8 * 3, 8 * 2
    assert pixels.shape == (3 * tall + 2 * 3, 2 * wide + 3, 4)
    for i, filter in enumerate(weight):
        y, x = i // 2 * (tall + 3), i % 2 * (wide + 3)
        tile = pixels[y : y + tall, x : x + wide]
        assert (tile[..., 3] == 255).all()
        largest = np.abs(filter).max() or 1.0
        colours = np.moveaxis(np.broadcast_to(filter, (3, 3, 2)), 0, -1)
        expected = np.repeat(np.repeat(128 + 127 * colours / largest, 8, axis=0), 8, axis=1)
        assert np.abs(tile[..., :3] - expected).max() <= 0.5
    assert (pixels[..., 3] == 0).sum() == pixels.shape[0] * pixels.shape[1] - 5 * tall * wide


def test_filters_are_drawn_with_their_number_and_size(
    result: dict[str, Any], with_images: Any
) -> None:
    result, attachments = with_images(result)
    with drawing():
        drawn = first_filters(result, attachments.filters)
        assert first_filters(result, ()) is None
    assert drawn is not None
    for words in ("teacher: 20 filters of 7×7", "distilled: 6 filters of 3×3"):
        assert words in drawn.svg
    assert "scaled by its own largest magnitude" in drawn.caption
    assert drawn.svg.count("<image") == 2


def test_of_very_many_filters_the_first_are_drawn(result: dict[str, Any]) -> None:
    many = Filters("teacher", "a.b", np.ones((1024, 1, 3, 3), np.float32))
    with drawing():
        drawn = first_filters(result, (many,))
    assert drawn is not None
    assert "the first 128 of 1,024 filters of 3×3" in drawn.svg
