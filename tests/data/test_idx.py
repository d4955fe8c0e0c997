from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refkd.data import load_mnist, read_idx
from refkd.errors import DataError

ALLOWED = 64_000_000
Measured = Callable[..., tuple[int, str]]
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def header(code: int, *shape: int) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)


def encode(array: np.ndarray) -> bytes:
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    return header(CODES[array.dtype.name], *array.shape) + big_endian.tobytes()


def compress(content: bytes) -> bytes:
    """Compress without the time of day: the content names a test."""
    return gzip.compress(content, mtime=0)


SMALL = encode(np.arange(1, 13, dtype=np.int16).reshape(3, 4) * 301)
SMALL_FILES = {"plain": SMALL, "gzip": compress(SMALL)}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=array_shapes(max_dims=5, max_side=5),
    dtype=st.sampled_from(sorted(CODES)),
    compressed=st.booleans(),
)
def test_every_dtype_and_shape_is_read_back_plain_or_gzip(
    scratch: Path, seed: int, shape: tuple[int, ...], dtype: str, compressed: bool
) -> None:
    itemsize = np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * itemsize)
    array = np.frombuffer(raw, dtype).reshape(shape)
    content = compress(encode(array)) if compressed else encode(array)
    result = read_idx(write(scratch / "named.anything", content))
    assert result.dtype == array.dtype
    assert result.dtype.isnative
    assert result.shape == shape
    assert result.tobytes() == raw  # bits, so that NaN counts too


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    content = compress(SMALL[:9]) + compress(SMALL[9:])
    result = read_idx(write(tmp_path / "f", content))
    assert result[0].tolist() == [301, 602, 903, 1204]


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    content = SMALL_FILES[kind]
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"cut\.idx: "):
            read_idx(write(tmp_path / "cut.idx", content[:length]))


def test_a_flipped_bit_in_a_gzip_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    content, whole = SMALL_FILES["gzip"], read_idx(write(tmp_path / "f", SMALL))
    refused = 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            result = read_idx(write(tmp_path / "f", bytes(damaged)))
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(result, whole)
    assert refused > 8 * (len(content) - 10)  # all but some bits of the 10-byte gzip header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0"),
        (b"\x89PNG\r\n\x1a\n", "wrong magic number 89504e47"),
        (header(0x0A, 1) + b"0", "wrong magic"),
        (header(0x08), "wrong magic"),
        (header(0x08, *[1] * 65) + b"0", "wrong magic"),
        (b"\0\1\x08\1\0\0\0\1\0", "wrong magic"),
        (header(0x08, 2, 0), r"empty.*\(2, 0\)"),
        (header(0x08, 3)[:-1], "header ends"),
        (header(0x08, 3) + b"12", "truncated"),
        (header(0x08, 3) + b"1234", "trailing"),
        (header(0x0E, *[2**32 - 1] * 64) + b"0", "truncated or its header is wrong"),
        (compress(header(0x0E, *[2**32 - 1] * 64)), "decompress the file first"),
        (compress(header(0x08, 3) + b"12"), "truncated"),
        (compress(header(0x08, 3) + b"1234"), "trailing"),
        (compress(header(0x08, 3) + b"123") + b"more", "corrupt"),
        (b"\x1f\x8b\x08" + b"\xff" * 40, "truncated|corrupt"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"bad\.idx: .*{reason}"):
        read_idx(write(tmp_path / "bad.idx", content))


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    content = bytearray(SMALL_FILES["gzip"])
    content[-8] ^= 1
    with pytest.raises(DataError, match=r"corrupt \(CRC"):
        read_idx(write(tmp_path / "f", bytes(content)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such file"):
        read_idx(tmp_path / "gone")
    with pytest.raises(DataError, match="not a regular file"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match="too long"):
        read_idx(tmp_path / ("a" * 5000))


@given(content=st.binary(max_size=200), start=st.sampled_from([b"", *SMALL_FILES.values()]))
def test_any_bytes_give_an_array_or_a_data_error_in_bounded_memory(
    scratch: Path, measured: Measured, content: bytes, start: bytes
) -> None:
    for data in (content, start[:10] + content, start + content):
        path = write(scratch / "fuzz", data)
        peak, message = measured(read_idx, path)
        assert peak <= 4 * len(data) + ALLOWED
        assert not message or message.startswith(f"{path}: ")


@given(
    kind=st.sampled_from(sorted(SMALL_FILES)),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_gives_an_array_or_a_data_error_in_bounded_memory(
    scratch: Path,
    measured: Measured,
    kind: str,
    edits: list[tuple[int, int]],
) -> None:
    data = bytearray(SMALL_FILES[kind])
    for position, value in edits:
        data[position % len(data)] = value
    path = write(scratch / "fuzz", bytes(data))
    peak, message = measured(read_idx, path)
    assert peak <= 4 * len(data) + ALLOWED
    assert not message or message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "shape",
    [(1,), (60_000_000,), (65_000_000,), (128, 1 << 20), (1 << 12, 1 << 20)],
    ids=["trailing", "within the limit", "beyond the limit", "honest bomb", "header of 4 GiB"],
)
def test_a_gzip_bomb_takes_bounded_memory(
    tmp_path: Path, measured: Measured, shape: tuple[int, ...]
) -> None:
    zeros = gzip.compress(bytes(1 << 20), 1) * 128
    path = write(tmp_path / "bomb", gzip.compress(header(0x08, *shape)) + zeros)
    peak, message = measured(read_idx, path)
    assert peak <= 4 * path.stat().st_size + ALLOWED
    assert "decompress the file first" in message or "trailing" in message


def test_the_limit_itself_is_reached_within_bounded_memory(
    tmp_path: Path, measured: Measured
) -> None:
    path = write(tmp_path / "big", gzip.compress(header(0x0E, 7_500_000) + bytes(60_000_000), 1))
    assert read_idx(path).shape == (7_500_000,)
    assert 60_000_000 < measured(read_idx, path)[0] <= ALLOWED


def mnist_files(folder: Path, images: np.ndarray, labels: np.ndarray, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    names = names or (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    for name in names:
        content = encode(images if "images" in name else labels)
        write(folder / name, compress(content) if name.endswith(".gz") else content)
    return folder


IMAGES = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
LABELS = np.array([9, 0], np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_load_mnist_takes_the_names_in_use(tmp_path: Path, mark: str, suffix: str) -> None:
    names = [
        f"{split}-{kind}{suffix}"
        for split in ("train", "t10k")
        for kind in (f"images{mark}idx3-ubyte", f"labels{mark}idx1-ubyte")
    ]
    mnist = load_mnist(mnist_files(tmp_path, IMAGES, LABELS, *names))
    np.testing.assert_array_equal(mnist.train.images, IMAGES)
    np.testing.assert_array_equal(mnist.test.labels, LABELS)
    assert mnist.train.images.dtype == np.uint8
    assert mnist.train.images.max() * mnist.normalization.scale == 1
    assert mnist.validation is None


def test_load_mnist_names_each_missing_file_and_the_command(tmp_path: Path) -> None:
    folder = mnist_files(tmp_path / "m", IMAGES, LABELS, "train-images.idx3-ubyte.gz")
    with pytest.raises(DataError, match="refkd data fetch mnist") as caught:
        load_mnist(folder)
    text = str(caught.value)
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{name}-ubyte" in text
    assert "lacks train-labels" in text
    with pytest.raises(DataError, match=r"no such folder.*train-images.*refkd data fetch"):
        load_mnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (IMAGES, LABELS[:1], "2 images.*1 labels"),
        (IMAGES[:, 0], LABELS, "train-images.*3 dimensions"),
        (IMAGES.astype(np.int32), LABELS, "train-images.*int32"),
        (IMAGES, LABELS[:, None], "train-labels.*1 dimensions"),
        (IMAGES, np.array([10, 0], np.uint8), "0 to 9, got 10"),
    ],
)
def test_load_mnist_refuses(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        load_mnist(mnist_files(tmp_path, images, labels))


def test_load_mnist_names_a_corrupt_file_once(tmp_path: Path) -> None:
    folder = mnist_files(tmp_path, IMAGES, LABELS)
    write(folder / "t10k-labels-idx1-ubyte", b"\0\0")
    with pytest.raises(DataError, match="truncated") as caught:
        load_mnist(folder)
    assert str(caught.value).count(str(folder)) == 1
    assert "t10k-labels-idx1-ubyte" in str(caught.value)


def test_the_real_mnist_is_read_whole(real_data: Path) -> None:
    mnist = load_mnist(real_data / "mnist")
    assert mnist.train.images.shape == (60_000, 28, 28)
    assert mnist.test.images.shape == (10_000, 28, 28)
    raw_md5 = {
        "6bbc9ace898e44ae57da46a324031adb": encode(mnist.train.images),
        "a25bea736e30d166cdddb491f175f624": encode(mnist.train.labels.astype(np.uint8)),
        "2646ac647ad5339dbf082846283269ea": encode(mnist.test.images),
    }
    for md5, content in raw_md5.items():
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
