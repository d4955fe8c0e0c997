"""The images a run keeps for its report: back as they were saved, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.errors import CheckpointError
from refkd.report.examples import Examples, load_examples, save_examples
from refkd.train.checkpoint import save_checkpoint

CLASSES = 4


def drawn(count: int = 5, *, teacher: bool = True, shape: tuple[int, ...] = (3, 6, 5)) -> Examples:
    rng = np.random.default_rng(count)
    return Examples(
        rng.permutation(100)[:count],
        rng.integers(0, CLASSES, count),
        rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        rng.standard_normal((count, CLASSES)).astype(np.float32),
        rng.standard_normal((count, CLASSES)) if teacher else None,
        2.5,
        stretched=teacher,
    )


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (1, 4, 4), (3, 6, 5)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_examples_come_back_as_they_were_saved(
    tmp_path: Path, count: int, shape: tuple[int, ...], teacher: bool
) -> None:
    examples = drawn(count, teacher=teacher, shape=shape)
    save_examples(tmp_path / "e", examples)
    loaded = load_examples(tmp_path / "e", num_classes=CLASSES)
    assert len(loaded) == count
    for field in dataclasses.fields(Examples):
        saved, found = getattr(examples, field.name), getattr(loaded, field.name)
        np.testing.assert_array_equal(found, saved)
        assert getattr(found, "dtype", type(found)) == getattr(saved, "dtype", type(saved))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"examples\.safetensors"):
        load_examples(tmp_path / "examples.safetensors", num_classes=CLASSES)


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "e"
    save_examples(path, drawn())
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(CheckpointError):
            load_examples(path, num_classes=CLASSES)
        path.write_bytes(content[:at])
        with pytest.raises(CheckpointError):
            load_examples(path, num_classes=CLASSES)


GOOD = drawn()
LOGITS = GOOD.student
WRONG: dict[str, dict[str, Any]] = {
    "no rows": {"rows": None},
    "no labels": {"labels": None},
    "no images": {"images": None},
    "no student": {"student": None},
    "a row too few": {"rows": GOOD.rows[:4]},
    "rows before the first": {"rows": GOOD.rows - 1000},
    "floating labels": {"labels": GOOD.labels.astype(np.float64)},
    "a label beyond the classes": {"labels": np.full(5, CLASSES)},
    "a negative label": {"labels": np.full(5, -1)},
    "an image too many": {"images": np.zeros((6, 3, 2, 2), np.uint8)},
    "images of two channels": {"images": np.zeros((5, 2, 2, 2), np.uint8)},
    "images without pixels": {"images": np.zeros((5, 0, 2), np.uint8)},
    "flat images": {"images": np.zeros((5, 4), np.uint8)},
    "floating images": {"images": np.zeros((5, 3, 2, 2), np.float32)},
    "logits of fewer classes": {"student": LOGITS[:, :3]},
    "logits of fewer images": {"teacher": LOGITS[:4]},
    "integer logits": {"teacher": np.zeros((5, CLASSES), np.int64)},
    "infinite logits": {"student": np.where(LOGITS.max() == LOGITS, np.inf, LOGITS)},
    "NaN": {"teacher": np.where(LOGITS.max() == LOGITS, np.nan, LOGITS)},
    "a scalar for the rows": {"rows": np.array(3)},
}
WRONG_TEXT = {
    "no temperature": {"temperature": None},
    "a cold temperature": {"temperature": "0.0"},
    "a negative temperature": {"temperature": "-1"},
    "an infinite temperature": {"temperature": "inf"},
    "NaN degrees": {"temperature": "nan"},
    "words": {"temperature": "warm"},
    "no stretched": {"stretched": None},
    "another stretched": {"stretched": "True"},
}


@pytest.mark.parametrize("case", [*WRONG, *WRONG_TEXT])
def test_a_sound_file_of_something_else_is_refused(tmp_path: Path, case: str) -> None:
    names = ("rows", "labels", "images", "student", "teacher")
    arrays = {name: getattr(GOOD, name) for name in names} | WRONG.get(case, {})
    text = {"temperature": "2.5", "stretched": "true"} | WRONG_TEXT.get(case, {})
    path = tmp_path / "e"
    save_checkpoint(
        path,
        {name: array for name, array in arrays.items() if array is not None},
        {name: value for name, value in text.items() if value is not None},
    )
    with pytest.raises(CheckpointError, match="holds no examples of this run"):
        load_examples(path, num_classes=CLASSES)


def test_examples_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    save_examples(tmp_path / "e", GOOD)
    for classes in (CLASSES - 1, CLASSES + 1):
        with pytest.raises(CheckpointError, match="holds no examples of this run"):
            load_examples(tmp_path / "e", num_classes=classes)


def test_examples_that_cannot_be_written_are_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        save_examples(tmp_path / "missing" / "e", GOOD)
