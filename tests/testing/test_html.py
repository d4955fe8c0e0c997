"""The page of gradient checks: nothing is lost, nothing is mixed up, nothing is loaded."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refkd.testing import heatmap
from refkd.testing.heatmap import colour_levels, draw, scale
from refkd.testing.html import page
from refkd.testing.pairs import check_all
from refkd.testing.report import Comparison, GradReport, ParameterReport, Verdict
from refkd.testing.tiling import arrange

HALF = len(heatmap._BELOW)
NAN = 2 * HALF
SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple) | st.lists(
    st.integers(1, 3), max_size=6
).map(tuple)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.asarray(np.random.default_rng(seed).uniform(0, 9e-16, shape))


def parameter(name: str, errors: NDArray[np.float64], tolerance: float = 1e-12) -> ParameterReport:
    wrong = int((~(errors <= tolerance)).sum())
    worst = None
    if errors.size:
        index = np.unravel_index(np.nanargmax(errors), errors.shape)
        error = float(errors[index])
        worst = Comparison(name, tuple(map(int, index)), 1.0 + error, 1.0, 1e-16, error)
    verdict = Verdict.WRONG_GRADIENT if wrong else Verdict.PASS
    return ParameterReport(name, errors.shape, "float64", verdict, worst, wrong, errors)


def report(*parameters: ParameterReport, **other: Any) -> GradReport:
    worst = max((p.worst for p in parameters if p.worst is not None), key=lambda w: w.scaled_error)
    verdict = Verdict.WRONG_GRADIENT if any(p.wrong for p in parameters) else Verdict.PASS
    entries = sum(math.prod(p.shape) for p in parameters)
    given = {"method": "complex", "tolerance": 1e-12, "calls": 7, **other}
    return GradReport(verdict, "", worst, parameters, entries, **given)


def right(seed: int = 0) -> GradReport:
    return report(parameter("x", noise(3, 4, seed=seed)))


def wrong(*shape: int, at: tuple[int, ...]) -> GradReport:
    errors = noise(*shape)
    errors[at] = 1e-2
    return report(parameter("weight", errors))


def parse(reports: Mapping[str, GradReport]) -> ElementTree.Element:
    return ElementTree.fromstring(page(reports).encode())


def shown_text(element: ElementTree.Element | None) -> str:
    assert element is not None
    return "".join(element.itertext())


def maps(root: ElementTree.Element) -> list[ElementTree.Element]:
    return root.findall(".//svg[@class='map']")


def rows(root: ElementTree.Element) -> list[list[str]]:
    return [[shown_text(cell) for cell in row] for row in root.findall(".//tbody/tr")]


def painted(svg: ElementTree.Element) -> dict[tuple[int, int], int]:
    """Return the colour at each row and column, read back from the paths."""
    found: dict[tuple[int, int], int] = {}
    for path in svg.findall("./svg/g[@class='cells']/path"):
        level = int(path.attrib["class"].removeprefix("l"))
        for column, row, length in re.findall(r"M(\d+) (\d+)h(\d+)", path.attrib["d"]):
            for right_of in range(int(length)):
                place = (int(row), int(column) + right_of)
                assert place not in found
                found[place] = level
    return found


def ringed(svg: ElementTree.Element) -> tuple[float, float]:
    """Return row and column of the ring's middle, in cells."""
    ring, canvas = svg.find("use"), svg.find("svg")
    assert ring is not None
    assert canvas is not None
    width, height = map(int, canvas.attrib["viewBox"].split()[2:])
    x, y = (float(ring.attrib[side].rstrip("%")) / 100 for side in "xy")
    return y * height - 0.5, x * width - 0.5


def test_failed_checks_come_first_and_every_row_links_to_its_section() -> None:
    reports = {"a": right(), "b": wrong(4, 5, at=(1, 2)), "c": right(1), "d": wrong(3, at=(0,))}
    root = parse(reports)
    assert [row[0] for row in rows(root)] == ["b", "d", "a", "c"]
    for link in root.findall(".//tbody//a"):
        section = root.find(f".//*[@id='{link.attrib['href'].removeprefix('#')}']")
        assert section is not None
        assert shown_text(section.find("h2")) == shown_text(link)


def test_the_summary_counts_checks_by_verdict() -> None:
    kink = GradReport(Verdict.KINK, "f has a kink at x[0]")
    shape = GradReport(Verdict.SHAPE_DTYPE, "grad returned no mapping")
    root = parse({"a": right(), "b": right(1), "c": kink, "d": shape})
    summary = root.find(".//p[@class='summary bad']")
    assert shown_text(summary) == "4 checks, 3 accepted (2 PASS, 1 KINK), 1 failed (1 SHAPE_DTYPE)"
    assert parse({"a": right()}).find(".//p[@class='summary good']") is not None
    assert [row[1][0] for row in rows(root)] == ["✗", "✓", "✓", "✓"]


def test_a_row_has_verdict_method_mode_entries_and_worst_error() -> None:
    (row,) = rows(parse({"one": wrong(64, 32, at=(41, 9))}))
    assert row == [
        "one",
        "✗\N{NO-BREAK SPACE}WRONG_GRADIENT",
        "complex",
        "full",
        "2,048",
        "1.0e-02",
    ]


def test_a_section_says_what_the_report_says() -> None:
    worst = Comparison("w", (2, 1), 1.25, 1.5, 3e-17, 0.1667)
    told = GradReport(
        Verdict.WRONG_GRADIENT,
        "the gradient of w[2, 1] is not the derivative of f",
        worst,
        entries=12,
        method="longdouble",
        tolerance=1e-12,
        calls=31,
        explanation="it is the derivative times 1/T²",
        notes=("f is not analytic", "float32 was judged in float64"),
    )
    text = shown_text(parse({"it": told}).find(".//section"))
    assert told.message in text
    assert f"Looks like: {told.explanation}" in text
    assert all(note in text for note in told.notes)
    for figure in ("w[2, 1]", "1.25", "1.5 ± 3.0e-17", "1.13e+15 ulps", "1.7e-01"):
        assert figure in text
    assert "tolerance 1.0e-12" in text
    assert "12 entries, method longdouble, full, 31 calls" in text


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_any_text_is_shown_and_none_becomes_markup(name: str, message: str, note: str) -> None:
    errors = parameter(name, noise(2))
    given_report = GradReport(
        Verdict.NONFINITE, message, errors.worst, (errors,), explanation=note, notes=(note,)
    )
    root = parse({name: given_report})
    (row,) = rows(root)
    assert row[0] == visible(name)
    section = root.find(".//section")
    assert section is not None
    # XML turns no character of these into another: \r is an escape by now.
    assert visible(message) in shown_text(section.find("p"))
    assert shown_text(section.find(".//li")) == visible(note)
    assert shown_text(section.find(".//figcaption//bdi")) == visible(name)


def visible(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def test_what_turns_or_hides_text_is_written_as_an_escape() -> None:
    text = page({"a\u202eb\x00\x1b\u200b\ud800<i>&amp;\"'": right()})
    assert "a\\u202eb\\x00\\x1b\\u200b\\ud800&lt;i&gt;&amp;amp;&quot;&#x27;" in text


def test_the_page_is_well_formed_where_there_is_nothing_to_show() -> None:
    assert "0 checks" in shown_text(parse({}))
    assert maps(parse({"stopped": GradReport(Verdict.MUTATED_INPUT, "grad writes into x")})) == []


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    root = parse({"a": wrong(4, 5, at=(1, 2)), "b": right()})
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    for element in root.iter():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "image"}
        assert "src" not in element.attrib
        assert not [name for name in element.attrib if name.startswith("on")]
        if "href" in element.attrib:
            assert element.attrib["href"].removeprefix("#") in ids
    style = shown_text(root.find(".//style"))
    assert set(re.findall(r"url\((.*?)\)", style)) == {"#nan"}
    assert "@import" not in style


@given(SHAPES, st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_a_cell_is_the_largest_error_of_the_entries_drawn_there(
    shape: tuple[int, ...], most: int, seed: int
) -> None:
    errors = noise(*shape, seed=seed)
    grid = arrange(errors, most)
    assert grid.cells.size <= most
    largest: dict[tuple[int, int], float] = {}
    for index in np.ndindex(shape):
        place = grid.place(index)
        largest[place] = max(largest.get(place, 0.0), float(errors[index]))
    drawn_rows, columns = grid.places
    places = list(zip(drawn_rows.ravel().tolist(), columns.ravel().tolist(), strict=True))
    assert len(set(places)) == grid.cells.size
    assert largest == dict(zip(places, grid.cells.ravel().tolist(), strict=True))
    height, width = grid.extent
    assert (height - 1, width - 1) == tuple(map(max, zip(*places, strict=True)))


@pytest.mark.parametrize(
    ("shape", "extent"),
    [
        ((), (1, 1)),
        ((10,), (1, 10)),
        ((130,), (3, 64)),
        ((64, 32), (64, 32)),
        ((1, 130), (3, 64)),
        ((2, 3, 5, 4), (11, 14)),
        ((64, 32, 1, 1), (64, 32)),
        ((5, 3, 3), (3, 19)),
        ((20, 3, 3), (7, 63)),
    ],
    ids=str,
)
def test_vectors_are_wrapped_matrices_stay_and_kernels_become_tiles(
    shape: tuple[int, ...], extent: tuple[int, int]
) -> None:
    grid = arrange(noise(*shape), 4096)
    assert grid.extent == extent
    assert grid.cells.size == math.prod(shape)


@pytest.mark.parametrize(
    "shape", [(10**6,), (1, 5000), (5000, 2), (4, 500, 5, 2), (2, 2, 700), (3,) * 9], ids=str
)
def test_a_map_never_becomes_too_wide_or_too_tall_for_a_page(shape: tuple[int, ...]) -> None:
    height, width = arrange(noise(*shape), 4096).extent
    assert height <= 256
    assert width <= 160


def test_a_block_with_a_nan_is_nan() -> None:
    errors = noise(100, 100)
    errors[57, 3] = np.nan
    grid = arrange(errors, 4096)
    drawn = painted(ElementTree.fromstring(draw(grid, 1e-12, None, 0)))
    assert [place for place, level in drawn.items() if level == NAN] == [grid.place((57, 3))]


def test_blocks_are_said_and_there_are_none_up_to_4096_entries() -> None:
    def caption(*shape: int) -> str:
        root = parse({"it": report(parameter("weight", noise(*shape)))})
        return shown_text(root.find(".//figcaption"))

    assert "largest error of" not in caption(64, 64)
    assert "each cell is the largest error of 8 × 8 entries" in caption(512, 300)
    assert "each cell is the largest error of 8 × 4 × 1 × 1 entries" in caption(64, 32, 7, 7)


@given(SHAPES, st.sampled_from([1e-12, 1e-7]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_cell_is_painted_once_in_the_colour_of_its_error(
    shape: tuple[int, ...], tolerance: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    errors = np.asarray(10 ** rng.uniform(-18, 1, shape))
    grid = arrange(errors, 4096)
    levels = colour_levels(errors, tolerance)
    expected = {grid.place(index): int(levels[index]) for index in np.ndindex(shape)}
    assert painted(ElementTree.fromstring(draw(grid, tolerance, None, 0))) == expected


@given(st.floats(0, allow_nan=False), st.floats(0, allow_nan=False), st.floats(1e-20, 1e20))
def test_colours_rise_with_the_error_and_step_at_the_tolerance(
    one: float, other: float, tolerance: float
) -> None:
    low, high, edge, above = colour_levels(
        np.array([*sorted([one, other]), tolerance, np.nextafter(tolerance, np.inf)]), tolerance
    )
    assert 0 <= low <= high < NAN
    assert (edge, above) == (HALF - 1, HALF)


def test_calm_is_1e_16_alarm_is_1_and_nan_is_neither() -> None:
    levels = colour_levels(np.array([0.0, 1e-16, 1.0, np.inf, np.nan]), 1e-12)
    assert levels.tolist() == [0, 0, NAN - 1, NAN - 1, NAN]
    assert scale(1e-12) == (1e-16, 1e-12, 1.0)


def test_the_legend_names_the_ends_the_tolerance_and_nan() -> None:
    root = parse({"it": report(parameter("x", noise(4)), tolerance=1e-7)})
    labels = [text.text for text in root.findall(".//svg[@class='legend']/text")]
    assert labels == ["1e-16", "tolerance 1e-07", "1 and more", "NaN"]


# Linear RGB as people without the long, or the medium, wavelength cones see it: Machado,
# Oliveira and Fernandes, "A physiologically-based model ...", IEEE TVCG 15 (2009), 1291-1298.
VISION = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("eyes", VISION)
def test_every_colour_above_the_tolerance_is_lighter_than_all_below(eyes: str) -> None:
    def luminance(colour: str) -> float:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(np.array([0.2126, 0.7152, 0.0722]) @ (VISION[eyes] @ linear))

    below = max(map(luminance, heatmap._BELOW))
    assert min(map(luminance, heatmap._ABOVE)) > below


@pytest.mark.parametrize(
    ("shape", "at"), [((64, 32), (41, 9)), ((8, 3, 3, 3), (7, 2, 0, 1)), ((200,), (131,))], ids=str
)
def test_the_worst_entry_is_ringed_and_labelled_with_its_index(
    shape: tuple[int, ...], at: tuple[int, ...]
) -> None:
    (svg,) = maps(parse({"it": wrong(*shape, at=at)}))
    assert ringed(svg) == pytest.approx(arrange(noise(*shape), 4096).place(at), abs=0.05)
    assert shown_text(svg.find("text")) == str(list(at))
    drawn = painted(svg)
    assert [place for place, level in drawn.items() if level >= HALF] == [
        arrange(noise(*shape), 4096).place(at)
    ]


def test_the_tolerance_of_the_check_decides_the_colour() -> None:
    for tolerance, above in ((1e-12, True), (1e-7, False)):
        errors = parameter("x", np.array([1e-9]), tolerance)
        (svg,) = maps(parse({"it": report(errors, tolerance=tolerance)}))
        assert (painted(svg)[0, 0] >= HALF) is above


def test_nothing_is_ringed_where_no_entry_is_off() -> None:
    (svg,) = maps(parse({"it": report(parameter("x", np.zeros((2, 3))))}))
    assert svg.find("use") is None


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)], ids=str)
def test_a_parameter_without_entries_is_said_and_not_drawn(shape: tuple[int, ...]) -> None:
    root = parse({"it": report(parameter("x", noise(2)), parameter("none", np.zeros(shape)))})
    empty = root.findall(".//figure")[1]
    assert f"none {shape} float64: ✓\N{NO-BREAK SPACE}PASS; it has no entries." in shown_text(empty)
    assert empty.find(".//svg") is None


def test_a_scalar_parameter_is_one_cell() -> None:
    (svg,) = maps(parse({"it": report(parameter("temperature", np.array(1.5)))}))
    assert painted(svg) == {(0, 0): NAN - 1}
    assert ringed(svg) == (0, 0)


def test_a_directional_check_has_no_map() -> None:
    worst = Comparison("weight, bias", None, 1.0, 1.0, 1e-16, 0.0)
    weight = ParameterReport("weight", (1000, 400), "float32", Verdict.PASS)
    root = parse({"it": GradReport(Verdict.PASS, "", worst, (weight,), mode="directional")})
    assert maps(root) == []
    text = shown_text(root.find(".//section"))
    assert "weight, bias along a random direction" in text
    assert "not compared entry by entry" in text


def test_few_cells_have_tooltips_with_index_and_error_and_many_have_none() -> None:
    errors = noise(3, 4, 2, 2)
    titles = [t.text for t in parse({"it": report(parameter("w", errors))}).iter("title")][1:]
    assert titles == [f"{list(i)} {errors[i]:.1e}" for i in np.ndindex(errors.shape)]
    many = parse({"it": report(parameter("w", noise(33, 32)))})
    assert many.find(".//path/title") is None


def test_a_tooltip_of_a_block_has_slices() -> None:
    drawn = draw(arrange(noise(1, 7), 4), 1e-12, None, 4)
    assert [
        t.text.split("]")[0] for t in ElementTree.fromstring(drawn).iter("title") if t.text
    ] == [
        "[0, 0:2",
        "[0, 2:4",
        "[0, 4:6",
        "[0, 6:7",
    ]


def test_axes_carry_a_few_indices() -> None:
    def ticks(*shape: int) -> tuple[list[str | None], list[str | None]]:
        (svg,) = maps(parse({"it": report(parameter("w", noise(*shape)))}))
        down, across = (
            [text.text for text in svg.findall(f"./g[@class='{side}']/text")]
            for side in ("down", "right")
        )
        return down, across

    assert ticks(64, 32) == (["0", "20", "40", "60"], ["0", "10", "20", "30"])
    assert ticks(1000) == (["0", "320", "640", "960"], [])
    assert ticks(7) == ([], ["0", "2", "4", "6"])
    assert ticks(6, 2, 3, 3) == (["0", "2", "4"], ["0", "1"])
    assert ticks(512, 300) == (["0", "160", "320", "480"], ["0", "80", "160", "240"])
    assert ticks() == ([], [])


def test_an_index_of_a_tile_stands_at_its_middle() -> None:
    (svg,) = maps(parse({"it": report(parameter("w", noise(2, 3, 5, 5)))}))
    first, second = (svg.find(f"./g[@class='{side}']/text[2]") for side in ("down", "right"))
    assert first is not None
    assert second is not None
    assert first.attrib["y"] == f"{100 * 8.5 / 11:.4g}%"
    assert second.attrib["x"] == f"{100 * 8.5 / 17:.4g}%"


def test_among_many_checks_only_the_failed_are_open() -> None:
    reports = {f"check {i}": right(i) for i in range(30)} | {"bad": wrong(4, at=(1,))}
    root = parse(reports)
    assert [shown_text(s.find("h2")) for s in root.findall(".//section")] == ["bad"]
    folded = root.findall(".//details")
    assert len(folded) == 30
    # A link opens what is folded only if its target is inside.
    targets = [details.find("div") for details in folded]
    links = root.findall(".//tbody//a")[1:]
    assert [f"#{t.attrib['id']}" for t in targets if t is not None] == [
        link.attrib["href"] for link in links
    ]


@pytest.mark.parametrize("share_wrong", [0.02, 1.0])
def test_the_page_stays_near_a_megabyte(share_wrong: float) -> None:
    rng = np.random.default_rng(0)
    reports = {
        f"pair {i}: inputs with a label of common length": report(
            *(
                parameter(name, 10 ** rng.uniform(-18, 0 if i < 230 * share_wrong else -13, shape))
                for name, shape in (("x", (2, 3, 9, 9)), ("weight", (50, 40)))
            )
        )
        for i in range(230)
    }
    assert len(page(reports).encode()) < 1.05e6


def test_the_projects_own_pairs_make_a_page() -> None:
    results = list(check_all(["linear", "softmax_kd"]))
    reports = {f"{r.name}: {label}": found for r in results for label, found in r.reports}
    assert len(reports) == sum(result.cases for result in results)
    root = parse(reports)
    assert sorted(row[0] for row in rows(root)) == sorted(reports)
    compared = itertools.chain.from_iterable(found.parameters for found in reports.values())
    drawable = [p for p in compared if p.errors is not None and p.errors.size]
    assert drawable
    assert len(maps(root)) == len(drawable)
