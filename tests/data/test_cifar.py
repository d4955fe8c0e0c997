from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import Normalization, load, load_cifar10
from refkd.errors import DataError

ALLOWED = 64_000_000
Measured = Callable[..., tuple[int, str]]
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def records(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Images (N, 3, 32, 32), labels, and the file that holds them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    rows = (bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    return images, labels, b"".join(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Batches of 1 to 6 images, the last one the test batch."""
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    for count, name in enumerate(BATCHES, 1):
        (root / name).write_bytes(records(count, count)[2])
    (root / "batches.meta.txt").write_text("\n".join((*NAMES, "", "")))
    (root / "readme.html").write_text("not read")
    return root


def test_the_batches_are_read_in_order_channel_by_channel(folder: Path) -> None:
    cifar = load_cifar10(folder)
    parts = [records(count, count) for count in range(1, 6)]
    np.testing.assert_array_equal(cifar.train.images, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(cifar.train.labels, np.concatenate([part[1] for part in parts]))
    np.testing.assert_array_equal(cifar.test.images, records(6, 6)[0])
    np.testing.assert_array_equal(cifar.test.labels, records(6, 6)[1])
    assert cifar.validation is None
    assert cifar.class_names == NAMES
    assert cifar.normalization == Normalization(1 / 255)
    assert cifar.image_shape == (3, 32, 32)
    assert cifar.name == "cifar10"


def test_a_folder_of_batches_is_loaded_as_cifar(folder: Path) -> None:
    assert load(folder).sha256() == load_cifar10(folder).sha256()


@pytest.mark.parametrize("left", [*BATCHES, "batches.meta.txt"])
def test_a_folder_with_any_one_of_the_files_is_taken_for_cifar(folder: Path, left: str) -> None:
    for name in {*BATCHES, "batches.meta.txt"} - {left}:
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"batches-bin: lacks (data_batch_\d\.bin, ){4}"):
        load(folder)


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta.txt"])
def test_a_missing_file_is_named_with_where_to_get_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"batches-bin: lacks {name}; get cifar-10-binary.tar.gz"):
        load_cifar10(folder)


def test_a_folder_that_does_not_exist_is_said_not_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such folder.*data_batch_1\.bin.*test_batch"):
        load_cifar10(tmp_path / "gone")


class Unpickled:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_the_pickled_version_is_refused_and_not_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Unpickled()))
    for read in (load_cifar10, load):
        with pytest.raises(DataError, match=r"pickled version.*cifar-10-binary\.tar\.gz"):
            read(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 2 * 3073 - 1])
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_batch_that_ends_within_a_record_is_refused(folder: Path, length: int, name: str) -> None:
    (folder / name).write_bytes(bytes(length))
    with pytest.raises(DataError, match=rf"{name}: expected a whole number .*got {length} bytes"):
        load_cifar10(folder)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_beyond_nine_is_named_with_its_file_and_record(folder: Path, label: int) -> None:
    content = bytearray(records(4, 0)[2])
    content[2 * 3073] = label
    (folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_4\.bin: .*0 to 9, got {label} in record 2"):
        load_cifar10(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "10 classes, got 0"),
        ("\n".join(NAMES[:9]).encode(), "10 classes, got 9"),
        ("\n".join((*NAMES, "eleventh")).encode(), "10 classes, got 11"),
        (b"\xff\xfe\n" * 10, "is no text"),
        (b"name\n" * (1 << 20), "10 classes"),
    ],
)
def test_names_that_are_not_ten_are_refused(folder: Path, content: bytes, reason: str) -> None:
    (folder / "batches.meta.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"batches\.meta\.txt: .*{reason}"):
        load_cifar10(folder)


@given(
    name=st.sampled_from([*BATCHES, "batches.meta.txt"]),
    content=st.binary(max_size=200),
    repeats=st.sampled_from([1, 3073]),
)
def test_any_bytes_give_a_data_set_or_a_data_error_in_bounded_memory(
    tmp_path_factory: pytest.TempPathFactory,
    measured: Measured,
    name: str,
    content: bytes,
    repeats: int,
) -> None:
    root = tmp_path_factory.mktemp("cifar")
    for batch in BATCHES:
        (root / batch).write_bytes(bytes(3073))
    (root / "batches.meta.txt").write_text("\n".join(NAMES))
    (root / name).write_bytes(content * repeats)
    size = sum(file.stat().st_size for file in root.iterdir())
    peak, message = measured(load_cifar10, root)
    assert peak <= 4 * size + ALLOWED
    assert not message or message.startswith(f"{root / name}: ")


def test_a_long_file_of_names_takes_bounded_memory(folder: Path, measured: Measured) -> None:
    (folder / "batches.meta.txt").write_bytes(b"ab " * 1_400_000)
    peak, message = measured(load_cifar10, folder)
    assert "10 classes" in message
    assert peak <= 4 * 4_200_000 + ALLOWED


def test_large_batches_take_memory_for_one_copy_and_one_batch(
    folder: Path, measured: Measured
) -> None:
    for name in BATCHES[:5]:
        (folder / name).write_bytes(bytes(1000 * 3073))
    peak, message = measured(load_cifar10, folder)
    assert not message
    assert 5 * 1000 * 3073 < peak < 6.5 * 1000 * 3073


def test_cifar_images_in_class_folders_are_read(real_data: Path, tmp_path: Path) -> None:
    for folder in sorted((real_data / "cifar10").glob("*/*")):
        linked = tmp_path / folder.parent.name / folder.name
        linked.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:5]:
            (linked / path.name).symlink_to(path)
    cifar = load(tmp_path, image_size=32)
    assert cifar.class_names == NAMES
    assert np.bincount(cifar.train.labels).tolist() == [5] * 10
    assert np.bincount(cifar.test.labels).tolist() == [5] * 10
    assert cifar.validation is None
    np.testing.assert_array_equal(cifar.test.images[3], cifar.test.images.original(3))
