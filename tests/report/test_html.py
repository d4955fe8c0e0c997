"""The page of a run: well-formed, self-contained, deterministic, safe with any name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest

from refkd.errors import MissingExtra
from refkd.report import html_report

Result = dict[str, Any]
VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = '<script>alert(\'x\')</script> & "quoted" $x_{ ${title} id="a" url(#b) --> 猫 #1f2328'


class Page(HTMLParser):
    """Parses a page strictly, and keeps its tags, ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def text(make_result: Callable[..., Result]) -> str:
    """The page of a usual result."""
    return html_report(make_result())


@pytest.fixture(scope="module")
def on_images(make_result: Callable[..., Result], with_images: Any) -> str:
    """The page of a run on images, with all that it can show."""
    return html_report(*with_images(make_result()))


def names_everywhere(result: Result, name: str) -> Result:
    """Put ``name`` wherever the result holds text of a user's."""
    for key in ("title", "recipe", "protocol", "explanation", "run"):
        result[key] = name
    for key in ("teacher", "student_alone", "student_distilled"):
        result[key] |= {"label": name, "explain": name}
    classes = [f"{name}{i}" for i in range(len(result["data"]["class_names"]))]
    result["soft_targets"]["class_names"] = result["data"]["class_names"] = classes
    result["data"]["name"] = name
    result["environment"][name] = name
    result[f"student_{name}"] = result["student_alone"]
    result["differences"].append({**result["differences"][0], "a": f"student_{name}"})
    result["transfer"] = [
        {
            "arm": f"student_{name}",
            "classes": name,
            "errors": 206.0,
            "errors_on_omitted": 133.0,
            "bias_shift": 3.5,
            "errors_corrected": 109.0,
            "errors_on_omitted_corrected": 14.0,
        }
    ]
    return result


def test_page_holds_seven_pictures_and_every_number_of_its_tables(
    result: Result, text: str
) -> None:
    page = Page(text)
    assert page.tags.count("svg") == page.tags.count("figure") == 7
    assert page.tags.count("html") == page.tags.count("title") == 1
    for side in (result["teacher"], result["student_alone"], result["student_distilled"]):
        assert side["label"] in page.words
        assert f"{100 * side['accuracy']:.2f} ±" in page.words
        assert f"{side['parameters']:,}" in page.words
        assert f"ECE {100 * side['calibration']['ece']:.1f}%" in page.words
    assert "distillation helped" in page.words
    assert "0.7·T²·Σ_batch KL(t ‖ s)/B" in page.words
    assert "openblas 0.3.31" in page.words
    assert result["run"] in page.words
    assert "The teacher has 496 times the parameters" in page.words


def test_every_picture_says_in_words_what_it_shows(result: Result, text: str) -> None:
    page = Page(text)
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == 7
    assert len(set(labels)) == 7
    assert f"distilled {100 * result['student_distilled']['accuracy']:.2f}%" in " ".join(labels)


def test_page_of_a_run_on_images_shows_confusions_filters_and_mistakes(on_images: str) -> None:
    page = Page(on_images)
    assert page.tags.count("svg") == page.tags.count("figure") == 7 + 3 + 1
    assert page.tags.count("img") == 24
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(set(labels)) == 11
    assert all(v for tag, name, v in page.attributes if (tag, name) == ("img", "alt"))
    assert "Mistakes of the distilled student" in page.words
    assert on_images.index("First-layer filters") < on_images.index("Mistakes of")


def test_equal_attachments_give_equal_bytes(
    result: Result, with_images: Any, on_images: str
) -> None:
    assert html_report(*with_images(result)) == on_images


@pytest.mark.parametrize("page_of", ["text", "on_images"])
def test_page_loads_nothing_and_runs_nothing(page_of: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(page_of)
    page = Page(text)
    assert "://" not in re.sub(r"base64,[^\"]*", "", text)
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}>"
        if name in {"src", "href", "xlink:href"}:
            assert value.startswith(("#", "data:image/png;base64,"))


@pytest.mark.parametrize("page_of", ["text", "on_images"])
def test_ids_are_unique_and_every_reference_has_its_target(
    page_of: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(page_of)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert len(references) > 20
    assert set(references) <= set(page.ids)


def test_every_colour_variable_of_the_pictures_is_defined_for_light_and_dark(
    on_images: str,
) -> None:
    text = on_images
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = re.findall(r":root \{( --page[^}]*)\}", text)
    assert {"--teacher", "--alone", "--distilled", "--ink"} <= used
    assert used <= set(re.findall(r"(--[\w-]+):", light))
    assert used <= set(re.findall(r"(--[\w-]+):", dark))


def test_equal_results_give_equal_bytes_and_one_seed_changes_them(
    result: Result, text: str
) -> None:
    assert html_report(result) == text
    result["student_distilled"]["accuracies"][3] -= 0.003
    assert html_report(result) != text


def test_names_are_escaped_and_read_as_given(result: Result, with_images: Any) -> None:
    result, attachments = with_images(result)
    text = html_report(names_everywhere(result, HOSTILE), attachments)
    page = Page(text)
    assert "script" not in page.tags
    assert f"{HOSTILE} {HOSTILE}" in page.words  # in the environment, twice in a row
    assert len(page.ids) == len(set(page.ids))


def test_class_names_in_pictures_are_text_and_never_markup(result: Result) -> None:
    result["soft_targets"]["class_names"] = ['x id="a"', "url(#b)", "$x_{", "猫", *"456789"]
    page = Page(html_report(result))
    assert {'x id="a"', "url(#b)", "$x_{", "猫"} <= {text.strip() for text in page.text}


def test_page_is_small(text: str) -> None:
    assert len(text.encode()) < 150_000


def test_one_seed_has_no_interval_and_the_page_says_so(make_result: Callable[..., Result]) -> None:
    page = Page(html_report(make_result(seeds=1)))
    assert "±" not in page.words.replace("mean over the seeds ± half", "")
    assert "one seed cannot tell" in page.words
    assert page.tags.count("svg") == 7


def test_without_a_teacher_the_students_are_reported_alone(result: Result) -> None:
    result["teacher"] = None
    page = Page(html_report(result))
    assert "the teacher is known by its logits only" in page.words
    assert "times the parameters" not in page.words
    assert page.tags.count("svg") == 6  # sizes have nothing to compare


@pytest.mark.parametrize("key", ["soft_targets", "differences"])
def test_a_missing_part_costs_its_picture_only(result: Result, key: str) -> None:
    del result[key]
    assert Page(html_report(result)).tags.count("svg") == 6


def test_networks_without_history_or_calibration_are_left_out(result: Result) -> None:
    for key in ("teacher", "student_alone", "student_distilled"):
        result[key] |= {"history": [], "calibration": None}
    assert Page(html_report(result)).tags.count("svg") == 4


@pytest.mark.parametrize("classes", [2, 12, 13, 100])
def test_heat_map_prints_and_labels_only_what_fits(
    make_result: Callable[..., Result], classes: int
) -> None:
    page = Page(html_report(make_result(classes=classes)))
    labels = sum(text.strip() in map(str, range(classes)) for text in page.text)
    assert 2 * min(classes, 25) <= labels < 120 + 2 * 12 + 60
    assert "What the teacher finds similar (T = 4)" in page.words


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0.0], [0.0, 1.0]],
        [[0.5, 0.5], [0.5, 0.5]],
        [[1.0, 0.0], [1e-300, 1.0]],
        [[0.0, 0.0], [0.0, 1.0]],
    ],
    ids=["certain", "uniform", "tiny", "empty class"],
)
def test_degenerate_soft_targets_are_drawn(
    make_result: Callable[..., Result], matrix: list[list[float]]
) -> None:
    result = make_result(classes=2)
    result["soft_targets"]["matrix"] = matrix
    text = html_report(result)
    assert Page(text).tags.count("svg") == 7
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]*", "", text))


def test_strongest_similarity_is_named_with_its_direction(result: Result) -> None:
    for row in result["soft_targets"]["matrix"]:
        row[:] = [0.001] * 10
    result["soft_targets"]["matrix"][4][9] = 0.25
    assert "images of 4 get 25.0% for 9" in Page(html_report(result)).words


def test_arms_of_unequal_epochs_and_many_arms_are_drawn(
    result: Result, make_side: Callable[..., Result]
) -> None:
    result["student_alone"] = make_side("alone", 0.8, seeds=10, epochs=3, parameters=2410)
    for i in range(9):
        side = make_side(f"arm {i}", 0.9, seeds=10 - i, epochs=1 + i, parameters=2410 + i, rng=i)
        result[f"student_arm{i}"] = side
    result["student_arm8"]["history"] = [[], result["student_arm8"]["history"][0][:2]]
    page = Page(html_report(result))
    assert page.tags.count("svg") == 7
    assert "after 20 epochs against 3" in page.words
    assert "arm8" in page.words


def test_user_settings_of_matplotlib_are_neither_used_nor_changed(
    result: Result, text: str
) -> None:
    mine = {"lines.marker": "x", "xtick.direction": "in", "svg.hashsalt": "mine", "font.size": 30}
    with matplotlib.rc_context(mine):
        before = dict(matplotlib.rcParams)
        assert html_report(result) == text
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_loaded() -> None:
    code = (
        "import sys; from refkd.report.svg import drawing, new_figure, inline_svg\n"
        "with drawing(): inline_svg(new_figure(10), 'a', 'b')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_names_the_extra(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"html_report.*matplotlib.*pip install 'refkd\[plot\]'"):
        html_report(result)


def test_that_the_best_epochs_were_kept_is_said_where_they_were(result: dict[str, Any]) -> None:
    said = "test images for all; kept is the epoch with the best validation accuracy"
    assert said not in html_report(result)
    result["teacher"]["keep"] = "best"
    assert said in html_report(result)
