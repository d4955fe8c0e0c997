from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.data import load
from refkd.errors import DataError


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.zeros((10, 4), np.float32), y=np.arange(10) % 3)
    return path


def test_digits_load_by_name() -> None:
    assert load("digits").name == "digits"


def test_an_npz_file_loads_by_path_as_text_or_path(npz: Path) -> None:
    assert load(npz).num_classes == load(str(npz)).num_classes == 3


def test_a_folder_is_read_as_mnist(real_data: Path) -> None:
    assert load(real_data / "mnist").name == "mnist"


def test_teacher_logits_belong_to_the_training_images_of_the_digits(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).standard_normal((1000, 10)).astype(np.float32)
    np.save(tmp_path / "t.npy", logits)
    digits = load("digits", teacher_logits=tmp_path / "t.npy")
    np.testing.assert_array_equal(digits.train.teacher_logits, logits)
    assert digits.test.teacher_logits is None


@pytest.mark.parametrize("shape", [(999, 10), (1000, 9)])
def test_teacher_logits_of_another_shape_name_their_file(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    np.save(tmp_path / "t.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"t\.npy: .*(999|9)"):
        load("digits", teacher_logits=tmp_path / "t.npy")


def test_teacher_logits_reach_an_npz_file(npz: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((10, 5), np.float32))
    assert load(npz, teacher_logits=tmp_path / "t.npy").num_classes == 5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("digit", "did you mean 'digits'"),
        ("nowhere/at/all", "'digits', a folder .*CIFAR-10.* or an .npz file .* does not exist"),
        ("mnist", "refkd data fetch mnist"),
        ("a" * 5000, "load"),
        ("nul\0", "does not exist"),
        ("gone.npz", "gone.npz: no such file"),
    ],
)
def test_load_says_what_it_understands(source: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load(source)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("1,2\n")
    with pytest.raises(DataError, match=r"is no \.npz file"):
        load(path)


def test_a_folder_of_none_of_the_layouts_names_each_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte.*refkd data fetch mnist"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1\.bin .*train/CLASS/\*\.jpg"):
        load(tmp_path)


def test_a_folder_with_a_part_of_mnist_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "t10k-labels.idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte, train-labels.*fetch"):
        load(tmp_path)


def test_an_image_size_is_not_asked_of_other_sources(npz: Path) -> None:
    assert load("digits", image_size=32).image_shape == (8, 8)
    assert load(npz, image_size=32).image_shape == (4,)


@pytest.mark.parametrize("probe", ["is_dir", "glob"])
def test_a_folder_that_cannot_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    allowed = getattr(Path, probe)

    def refused(path: Path, *arguments: str) -> Any:
        if path == tmp_path and not arguments:
            return allowed(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, probe, refused)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: Permission denied"):
        load(tmp_path)
