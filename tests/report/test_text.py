"""The terminal table: the numbers of the result, in 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from refkd.report import text_report
from refkd.report.words import difference_sentence, human_count, human_seconds, with_half_interval

Result = dict[str, Any]
HINT = "pictures need matplotlib: pip install 'refkd[plot]'"
TRANSFER = {
    "arm": "student_no3",
    "classes": "without 3",
    "errors": 206.4,
    "errors_on_omitted": 133.0,
    "bias_shift": 3.5,
    "errors_corrected": 109.0,
    "errors_on_omitted_corrected": 14.0,
}


def row_of(text: str, start: str) -> str:
    rows = [line for line in text.splitlines() if line.startswith(start)]
    assert rows, f"no line starts with {start!r}:\n{text}"
    return " ".join(rows[0].split())


def test_rows_hold_the_numbers_of_the_result(result: Result) -> None:
    result["student_distilled"] |= {"accuracy": 0.95214, "interval": [0.95094, 0.95334]}
    text = text_report(result)
    row = row_of(text, "student, distilled (T = 4)")
    assert row == "student, distilled (T = 4) 95.21 ± 0.12 10 20 2,410 9.64 kB"
    assert "published" not in text


def test_published_accuracy_has_a_column_where_a_network_has_one(result: Result) -> None:
    result["student_alone"]["published"] = 0.8173
    text = text_report(result)
    assert " 81.73 10 20 2,410 9.64 kB" in row_of(text, "student, alone")
    assert "published" in row_of(text, "who")
    columns = [line.index("81.73") + 5 for line in text.splitlines() if "81.73" in line]
    header = next(line for line in text.splitlines() if line.startswith("who"))
    assert columns == [header.index("published") + len("published")]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([0.001, 0.02], "distillation helped"),
        ([-0.001, 0.02], "within noise"),
        ([-0.02, -0.001], "distillation hurt"),
        ([0.0, 0.0], "within noise"),
        (None, "one seed cannot tell it from noise"),
    ],
)
def test_difference_is_judged_by_its_interval(
    result: Result, interval: list[float] | None, verdict: str
) -> None:
    result["differences"][0] |= {"interval": interval, "mean": 0.0123}
    text = " ".join(text_report(result).split())
    assert "distilled minus alone: +1.23 points" in text
    assert text.count(verdict) == 1
    others = {"distillation helped", "within noise", "distillation hurt"} - {verdict}
    assert not any(other in text for other in others)


def test_interval_is_printed_with_signs_and_the_number_of_seeds(result: Result) -> None:
    result["differences"][0] |= {"interval": [-0.00004, 0.0172]}
    assert "(95% interval +0.00 to +1.72, 10 seeds)" in " ".join(text_report(result).split())


def test_longer_training_is_not_put_down_to_distillation(result: Result) -> None:
    result["student_alone"]["epochs"] = 3
    text = " ".join(text_report(result).split())
    assert "distilled is better, after 20 epochs against 3" in text
    assert "distillation helped" not in text


def test_other_pairs_are_compared_by_name(result: Result) -> None:
    result["student_t8"] = result["student_distilled"]
    result["differences"] = [
        {**result["differences"][0], "a": "student_t8", "b": "student_alone"},
        {**result["differences"][0], "a": "student_alone", "b": "student_t8", "interval": [-2, -1]},
    ]
    text = " ".join(text_report(result).split())
    assert "t8 minus alone:" in text
    assert "t8 is better" in text
    assert "alone is worse" in text


@pytest.mark.parametrize(
    ("mean", "interval", "words"),
    [
        (0.013, [0.01, 0.02], "reaches 95.00%, 1.30 points more than the same student alone; the"),
        (-0.013, [-0.02, -0.01], "1.30 points less than the same student alone; the"),
        (-0.00001, [-0.01, 0.01], "as much as the same student alone, which is within the noise"),
    ],
)
def test_answer_says_more_less_or_as_much(
    result: Result, mean: float, interval: list[float], words: str
) -> None:
    result["student_distilled"]["accuracy"] = 0.95
    result["differences"][0] |= {"mean": mean, "interval": interval}
    text = " ".join(text_report(result).split())
    assert words in text
    assert f"the teacher has {100 * result['teacher']['accuracy']:.2f}%." in text


def test_answer_without_differences_is_that_of_the_means(result: Result) -> None:
    result["differences"] = []
    result["student_distilled"]["accuracy"] = 0.95
    result["student_alone"]["accuracy"] = 0.93
    assert "2.00 points more" in " ".join(text_report(result).split())


def test_transfer_table_stands_where_the_result_has_one(result: Result) -> None:
    assert "omitted" not in text_report(result)
    result["transfer"] = [TRANSFER]
    row = row_of(text_report(result), "no3")
    assert row == "no3 without 3 206.4 133.0 +3.5 109.0 14.0"


def test_validation_images_and_time_are_named(result: Result) -> None:
    assert "validation" not in text_report(result)
    result["data"]["validation"] = 200
    result["seconds"] = 312.4
    text = " ".join(text_report(result).split())
    assert "1,000 training, 200 validation and 797 test images" in text
    assert "5 min 12 s" in text


def test_every_line_fits_80_columns_whatever_the_names(
    result: Result, make_side: Callable[..., Result]
) -> None:
    name = "a_name_without_any_space_" * 5
    result |= {"title": name, "recipe": name, "protocol": name}
    side = make_side("a label of many words " * 5, 1.0, seeds=100, epochs=1000, parameters=10**10)
    result[f"student_{name}"] = side | {"published": 1.0, "accuracy": 1.0}
    result["teacher"]["label"] = name
    result["differences"].append({**result["differences"][0], "a": f"student_{name}"})
    result["transfer"] = [TRANSFER | {"arm": f"student_{name}", "classes": name, "errors": 10000.0}]
    lines = text_report(result).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert name in "".join(line.split("  ")[0] for line in lines)


def test_control_characters_never_reach_the_terminal(result: Result) -> None:
    for key in ("title", "recipe", "protocol"):
        result[key] = "a\x1b[31m red\r\n\x00name\x9b"
    result["teacher"]["label"] = "t\x1b]0;owned\x07"
    result["environment"]["refkd"] = "\x1b[2J"
    text = text_report(result)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.startswith("a[31m red name\n")


def test_one_seed_and_no_teacher_give_a_table(make_result: Callable[..., Result]) -> None:
    result = make_result(seeds=1)
    result["teacher"] = None
    text = text_report(result)
    accuracy = result["student_alone"]["accuracy"]
    assert (
        row_of(text, "student, alone") == f"student, alone {100 * accuracy:.2f} 1 20 2,410 9.64 kB"
    )
    assert "the teacher is known by its logits only" in " ".join(text.split())


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (123, "123 B"),
        (9640, "9.64 kB"),
        (999_999, "1.00 MB"),
        (65_320, "65.3 kB"),
        (478_084_000, "478 MB"),
        (12_345_678_901, "12.3 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_bytes_are_printed_for_people(result: Result, count: int, expected: str) -> None:
    result["student_alone"]["bytes"] = count
    assert row_of(text_report(result), "student, alone").endswith(f" {expected}")


def test_text_needs_no_matplotlib_and_then_names_the_extra(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HINT not in text_report(result)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert text_report(result).endswith(f"\n{HINT}\n")


def test_a_student_with_fewer_images_is_not_said_to_be_helped(result: dict[str, Any]) -> None:
    result["student_distilled"]["train_images"] = 20
    result["student_alone"]["train_images"] = 40
    difference = {"a": "student_distilled", "b": "student_alone", "mean": 0.1}
    difference |= {"interval": [0.05, 0.15], "per_seed": [0.1, 0.1]}
    sentence = difference_sentence(difference, result)
    assert sentence.endswith("distilled is better, after 20 training images against 40")


@pytest.mark.parametrize("classes", [2, 6, 10])
def test_confusions_of_few_classes_are_a_table(
    make_result: Callable[..., Result], with_images: Any, classes: int
) -> None:
    result, _ = with_images(make_result(classes=classes))
    names = [f"a class of many letters {i}" for i in range(classes)]
    result["data"]["class_names"] = names
    counts = [[0] * classes for _ in range(classes)]
    counts[0][:2] = [2345, 12345]
    counts[1][1] = 9_999_999
    result["confusion"]["student_distilled"] = counts
    text = text_report(result)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if line.startswith("a class of")]
    assert [row[-classes:] for row in rows] == [
        ["2345", "12k", *["."] * (classes - 2)],
        [".", "10M", *["."] * (classes - 2)],
        *[["."] * classes] * (classes - 2),
    ]
    assert "what the distilled student says (column)" in " ".join(text.split())


def test_confusions_of_many_classes_are_left_to_the_page(
    make_result: Callable[..., Result], with_images: Any
) -> None:
    result, _ = with_images(make_result(classes=11))
    assert "(column)" not in text_report(result)


def test_class_names_in_the_table_cannot_steer_the_terminal(
    result: Result, with_images: Any
) -> None:
    result, _ = with_images(result)
    result["data"]["class_names"] = ["\x1b[2J\x07", "", "猫", *"3456789"]
    assert all(c.isprintable() or c == "\n" for c in text_report(result))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10k"),
        (999_499, "999k"),
        (999_501, "1M"),
        (12_345_678, "12M"),
    ],
)
def test_counts_take_four_characters_or_fewer(count: int, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "0.012 s"),
        (0.2, "0.2 s"),
        (1.0, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (312, "5 min 12 s"),
        (3599.4, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (7199.9, "2 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_never_show_sixty_of_a_unit(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_an_accuracy_is_shown_with_half_its_interval_where_it_has_one() -> None:
    assert with_half_interval(0.9521, None) == "95.21"
    assert with_half_interval(0.9521, [0.9481, 0.9561]) == "95.21 ± 0.40"
    assert with_half_interval(0.012, [0.01, 0.014], "+") == "+1.20 ± 0.20"


def test_that_the_best_epochs_were_kept_is_said_where_they_were(result: Result) -> None:
    said = "kept is the epoch with the best validation accuracy"
    assert said not in text_report(result)
    result["student_distilled"]["keep"] = "best"
    assert said in text_report(result)
