"""The lessons run as they are printed, their pictures are their scripts', their exercises judge."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import available_backends
from tests.docs.markdown import DOCUMENTS, README, ROOT, python_blocks, run_document

LESSONS = [path for path in DOCUMENTS if path != README and python_blocks(path)]
LESSON_1 = ROOT / "docs" / "lessons" / "01-softmax-temperature-kl.md"

Backward = Callable[[np.ndarray, np.ndarray, float], Any]


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def lesson_1() -> dict[str, Any]:
    """All names that lesson 1 defines."""
    return run_document(LESSON_1, with_torch=False)


@pytest.fixture(scope="module")
def pictures_1() -> dict[str, Any]:
    """The script that draws the pictures of lesson 1."""
    return runpy.run_path(str(LESSON_1.parent / "01_pictures.py"))


@pytest.fixture(scope="module")
def measured(pictures_1: dict[str, Any]) -> Any:
    return pictures_1["measure"]()


def test_the_first_lesson_is_there() -> None:
    assert LESSON_1 in LESSONS


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_prints_what_the_page_shows(path: Path) -> None:
    reason = available_backends()["numba"]
    if reason is not None and 'use_backend("numba")' in path.read_text("utf-8"):
        pytest.skip(reason)
    run_document(path, with_torch=False)


@pytest.mark.parametrize(
    "path", [p for p in LESSONS if any(b.needs_torch for b in python_blocks(p))], ids=name_of
)
def test_a_lesson_agrees_with_pytorch(path: Path) -> None:
    pytest.importorskip("torch")
    run_document(path, with_torch=True)


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_a_lesson_shows_everything_that_it_prints(path: Path) -> None:
    silent = [b.line for b in python_blocks(path) if "print(" in b.text and b.output is None]
    assert silent == []


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", 2),
        ("Words\n\n```python\nprint(2)\nprint(3)\n```\n```text\n2\n```\n", 4),
    ],
)
def test_a_page_that_shows_another_output_is_caught(tmp_path: Path, page: str, line: int) -> None:
    path = tmp_path / "page.md"
    path.write_text(page, encoding="utf-8")
    with pytest.raises(AssertionError, match=f"page.md:{line}: the page shows another output"):
        run_document(path, with_torch=False)


def test_a_block_that_raises_names_its_line_in_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```python\nx = 1\n```\n\n```python\n\nx / 0\n```\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError) as caught:
        run_document(path, with_torch=False)
    assert caught.traceback[-1].lineno + 1 == 7


def test_the_pictures_of_lesson_1_are_what_their_script_draws(pictures_1, measured) -> None:
    drawn = pictures_1["draw"](measured)
    assert drawn.keys() == {path.name for path in LESSON_1.parent.glob("01-*.svg")}
    for name, svg in drawn.items():
        assert svg == (LESSON_1.parent / name).read_text("utf-8"), f"{name}: draw it anew"


def test_the_logits_of_lesson_1_are_those_of_the_pictures(lesson_1, pictures_1, measured) -> None:
    nines = list(pictures_1["NINES"])
    np.testing.assert_array_equal(measured.test.labels[nines], lesson_1["labels"])
    np.testing.assert_array_equal(measured.teacher[nines].round(1), lesson_1["v"])
    np.testing.assert_array_equal(measured.student[nines].round(1), lesson_1["z"])


def test_the_accuracies_of_lesson_1_are_those_of_the_pictures(measured) -> None:
    stated = re.findall(r"\((\d+)%", LESSON_1.read_text("utf-8"))
    reached = [
        f"{100 * (logits.argmax(axis=1) == measured.test.labels).mean():.0f}"
        for logits in (measured.teacher, measured.student)
    ]
    assert stated == reached


def terms(log_s: np.ndarray, log_t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return s, log s − log t, and the mean of it under s."""
    s, log_ratio = np.exp(log_s), log_s - log_t
    return s, log_ratio, (s * log_ratio).sum(axis=1, keepdims=True)


def solution(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    s, log_ratio, mean = terms(log_s, log_t)
    return s * (log_ratio - mean) / (T * len(s))


def without_mean(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    s, log_ratio, _ = terms(log_s, log_t)
    return s * log_ratio / (T * len(s))


def with_mean_over_classes(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    s, log_ratio, _ = terms(log_s, log_t)
    return s * (log_ratio - log_ratio.mean(axis=1, keepdims=True)) / (T * len(s))


def forward_kl(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    return (np.exp(log_s) - np.exp(log_t)) / (T * len(log_s))


def one_entry_off(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    dz = solution(log_s, log_t, T)
    dz[2, 1] *= 1.01
    return dz


def right_at_one_temperature(log_s: np.ndarray, log_t: np.ndarray, T: float) -> np.ndarray:
    return solution(log_s, log_t, 4.0)


WRONG: dict[str, tuple[Backward, str]] = {
    "no mean": (without_mean, "wrong at z"),
    "mean over classes": (with_mean_over_classes, "wrong at z"),
    "forward KL": (forward_kl, "wrong at z"),
    "one entry off by 1%": (one_entry_off, "wrong at z[2, 1], T = 4"),
    "T fixed": (right_at_one_temperature, "T = 1.5"),
    "sign": (lambda *a: -solution(*a), "is a factor −1 missing?"),
    "no 1/T": (lambda s, t, T: T * solution(s, t, T), "is a factor 1/T missing?"),
    "1/T twice": (lambda s, t, T: solution(s, t, T) / T, "is a factor T missing?"),
    "no 1/B": (lambda *a: 3 * solution(*a), "is a factor 1/B missing?"),
    "no 1/(B·T)": (lambda s, t, T: 3 * T * solution(s, t, T), "is a factor 1/(B·T) missing?"),
    "mean over elements": (lambda *a: solution(*a) / 5, "wrong at z"),
    "sum over the batch": (lambda *a: solution(*a).sum(axis=0), "shape"),
    "nothing returned": (lambda *a: None, "wrong: "),
    "zero": (lambda *a: 0 * solution(*a), "wrong at z"),
    "NaN": (lambda *a: np.nan * solution(*a), "wrong: "),
}


def test_the_exercise_of_lesson_1_accepts_the_solution(lesson_1) -> None:
    check = lesson_1["check_reverse_kl"]
    assert check(lesson_1["reverse_kl_backward"]) == "right"
    assert check(solution) == "right"


@pytest.mark.parametrize("name", WRONG)
def test_the_exercise_of_lesson_1_rejects_a_wrong_solution(lesson_1, name: str) -> None:
    backward, message = WRONG[name]
    said = lesson_1["check_reverse_kl"](backward)
    assert said.startswith("wrong")
    assert message in said


def test_the_exercise_of_lesson_1_names_no_factor_where_none_is_missing(lesson_1) -> None:
    for name in ("no mean", "mean over classes", "forward KL", "one entry off by 1%", "zero"):
        assert "factor" not in lesson_1["check_reverse_kl"](WRONG[name][0])
