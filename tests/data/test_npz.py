from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import Dataset, Normalization, load_npz, read_teacher_logits
from refkd.errors import DataError

ALLOWED = 64_000_000
Measured = Callable[..., tuple[int, str]]


def save(path: Path, *, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, allow_pickle=True, **arrays)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


def zipped(method: int = zipfile.ZIP_DEFLATED, **contents: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def same(one: Dataset, other: Dataset) -> bool:
    def content(dataset: Dataset) -> list[Any]:
        splits = [dataset.train, dataset.test, dataset.validation]
        arrays = [
            array
            for split in splits
            if split is not None
            for array in (split.images, split.labels, np.array(split.teacher_logits))
        ]
        return [dataset.num_classes, dataset.normalization, *(array.tobytes() for array in arrays)]

    return content(one) == content(other)


X, Y = np.arange(40, dtype=np.float32).reshape(10, 2, 2), np.arange(10) % 3
SPLIT = np.array(["train"] * 5 + ["validation"] * 2 + ["test"] * 3)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(3, 30),
    dtype=st.sampled_from(["u1", "<f2", "<f4", ">f4", "<f8", ">f8"]),
    order=st.sampled_from("CF"),
    labels_dtype=st.sampled_from(["u1", "<i2", ">i4", "<u8"]),
    names=st.sampled_from(["text", "bytes", "numbers"]),
    compressed=st.booleans(),
)
def test_each_row_arrives_in_its_split_with_its_label_and_logits(
    scratch: Path,
    seed: int,
    rows: int,
    dtype: str,
    order: Any,
    labels_dtype: str,
    names: str,
    compressed: bool,
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (rows, 2, 3)).astype(dtype, order=order)
    y = rng.integers(0, 4, rows).astype(labels_dtype)
    logits = rng.standard_normal((rows, 4)).astype("<f4")
    code = np.concatenate([[0, 1, 2], rng.integers(0, 3, rows - 3)])
    split = {
        "text": np.array(["train", "validation", "test"])[code],
        "bytes": np.array([b"train", b"validation", b"test"])[code],
        "numbers": code,
    }[names]
    path = save(
        scratch / "mine.npz", compressed=compressed, x=x, y=y, split=split, teacher_logits=logits
    )
    mine = load_npz(path)
    assert mine.name == "mine"
    assert mine.num_classes == 4
    assert mine.normalization == Normalization(1 / 255 if dtype == "u1" else 1)
    for index, part in enumerate((mine.train, mine.validation, mine.test)):
        assert part is not None
        np.testing.assert_array_equal(part.images, x[code == index])
        np.testing.assert_array_equal(part.labels, y[code == index])
        np.testing.assert_array_equal(part.teacher_logits, logits[code == index])
        assert part.images.dtype == np.dtype(dtype).newbyteorder("=")


def test_images_larger_than_a_block_keep_their_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 300, 301), dtype=np.uint8)
    split = np.array([2, 0, 1, 0, 2, 0, 0])
    for order in "CF":
        mine = load_npz(save(tmp_path / "m.npz", x=np.array(x, order=order), y=Y[:7], split=split))  # type: ignore[call-overload]
        np.testing.assert_array_equal(mine.train.images, x[split == 0])
        np.testing.assert_array_equal(mine.test.images, x[split == 2])


def test_without_split_a_fifth_is_the_test_split_and_the_choice_never_changes(
    tmp_path: Path,
) -> None:
    rows = np.arange(25, dtype=np.float32)[:, None]
    mine = load_npz(save(tmp_path / "m.npz", x=rows, y=np.arange(25) % 2))
    assert mine.validation is None
    assert mine.test.images[:, 0].tolist() == [2, 3, 11, 13, 20]
    assert sorted([*mine.train.images[:, 0], *mine.test.images[:, 0]]) == rows[:, 0].tolist()


def test_two_rows_make_one_to_train_on_and_one_to_test_on(tmp_path: Path) -> None:
    mine = load_npz(save(tmp_path / "m.npz", x=X[:2], y=np.array([0, 1])))
    assert (len(mine.train), len(mine.test)) == (1, 1)
    with pytest.raises(DataError, match="one row to train on and one to test on"):
        load_npz(save(tmp_path / "m.npz", x=X[:1], y=np.array([1])))


@pytest.mark.parametrize(
    ("stored", "held"), [("<f2", "float32"), (">f4", "float32"), (">f8", "float64")]
)
def test_given_teacher_logits_replace_those_in_the_file(
    tmp_path: Path, stored: str, held: str
) -> None:
    logits = np.random.default_rng(0).standard_normal((10, 7)).astype(stored)
    np.save(tmp_path / "t.npy", logits)
    path = save(tmp_path / "m.npz", x=X, y=Y, split=SPLIT, teacher_logits=np.zeros((10, 3), "f4"))
    mine = load_npz(path, teacher_logits=tmp_path / "t.npy")
    assert mine.num_classes == 7
    assert mine.test.teacher_logits is not None
    assert mine.test.teacher_logits.dtype == held
    np.testing.assert_array_equal(mine.test.teacher_logits, logits[7:])


class Bomb:
    fired = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "fired", True))


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    array = np.empty(10, object)
    array[:] = [Bomb() for _ in range(10)]
    path = save(tmp_path / "m.npz", x=X, y=array)
    with pytest.raises(DataError, match=r"m\.npz: y\.npy: holds Python objects"):
        load_npz(path)
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    for read, name in ((load_npz, "raw.npz"), (read_teacher_logits, "raw.npy")):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)
    assert not Bomb.fired


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": X}, "has no array 'y'"),
        ({"y": Y}, "has no array 'x'"),
        ({"x": X, "y": Y, "splits": Y}, "unknown array 'splits'; did you mean 'split'"),
        ({"X": X, "y": Y}, "unknown array 'X'; did you mean 'x'"),
        ({"images": X, "labels": Y}, r"'images', 'labels'; expected x \(images\) and y \(labels\)"),
        ({"x": X, "y": Y[:9]}, "x 10, y 9"),
        ({"x": X, "y": Y, "split": SPLIT[1:]}, "split 9"),
        ({"x": X.astype(np.int64), "y": Y}, "x: expected uint8 or floating.*int64"),
        ({"x": X.astype(np.uint16), "y": Y}, "x: expected uint8 or floating.*uint16"),
        ({"x": X.astype(bool), "y": Y}, "x: expected uint8 or floating.*bool"),
        ({"x": X[:, 0, 0], "y": Y}, r"x: expected .*\(N, ...\)"),
        ({"x": X[:0], "y": Y[:0]}, "non-empty"),
        ({"x": X[:, :0], "y": Y}, "non-empty"),
        ({"x": X, "y": Y.astype(float)}, "y: expected integers.*float64"),
        ({"x": X, "y": np.eye(10, dtype=int)}, r"y: expected integers of shape \(N,\)"),
        ({"x": X, "y": np.int64(3)}, "y: expected integers"),
        ({"x": X, "y": Y - 1}, "got -1 in row 0"),
        ({"x": X, "y": Y * 0}, "at least 2 classes, got 1"),
        ({"x": X, "y": Y * 10**12}, "2000000000000 in row 2"),
        ({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)}, "in row"),
        ({"x": X, "y": Y, "split": np.where(SPLIT == "test", "tset", SPLIT)}, "'tset' in row 7"),
        ({"x": X, "y": Y, "split": Y + 1}, "got 3 in row 2"),
        ({"x": X, "y": Y, "split": Y - 1}, "got -1 in row 0"),
        ({"x": X, "y": Y, "split": np.zeros(10, int)}, "one to test on"),
        ({"x": X, "y": Y, "split": np.zeros(10)}, "split: expected"),
        ({"x": X, "y": Y, "split": np.array(SPLIT, object)}, "dtype=str"),
        ({"x": X, "y": Y, "teacher_logits": Y}, "teacher_logits: expected floating"),
        ({"x": X, "y": Y, "teacher_logits": np.zeros((9, 3))}, "teacher_logits 9"),
        ({"x": X, "y": Y, "teacher_logits": np.zeros((10, 2))}, "0 to C - 1 .* C = 2.* got 2"),
        (
            {"x": X, "y": Y, "teacher_logits": np.full((10, 3), np.nan)},
            "train rows.*teacher_logits",
        ),
        ({"x": np.full((10, 1), np.inf), "y": Y}, "train rows.*images must be finite"),
        ({"x": np.zeros(10, [("a", "f4")]), "y": Y}, "numbers or text"),
    ],
)
def test_wrong_arrays_are_refused_with_file_and_reason(
    tmp_path: Path, arrays: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"(?s)m\.npz: .*{reason}"):
        load_npz(save(tmp_path / "m.npz", **arrays))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((9, 3), "f4"), "expected 10 rows of teacher logits as in y, got 9"),
        (np.zeros((10, 3), "i4"), "expected floating"),
        (np.zeros(10, "f4"), r"\(N, C\)"),
        (np.float32(1), r"\(N, C\)"),
        (np.array([["a"]]), "expected floating"),
    ],
)
def test_wrong_teacher_logits_are_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(DataError, match=reason):
        load_npz(save(tmp_path / "m.npz", x=X, y=Y), teacher_logits=tmp_path / "t.npy")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for read in (load_npz, read_teacher_logits):
        with pytest.raises(DataError, match="gone: no such file"):
            read(tmp_path / "gone")
        with pytest.raises(DataError, match="not a regular file"):
            read(tmp_path)


def header(descr: str, shape: object) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "text",
    [
        header("'<f4'", (-1, 3)),
        header("'<f4'", (10, 2**70)),
        header("'<f4'", (2**62,)),
        header("'<f4'", (1,) * 70),
        header("'<U0'", (10**15,)),
        header("'<M8[ns]'", (10, 3)),
        header("('<f4', (1000000,))", (10, 3)),
        header("'<f4'", (10, 3.0)),
        header("'no such dtype'", (10, 3)),
        header("'<f4'", "(10L, 3L)"),
        header("[" * 400, (10, 3)),
        "-" * 9000 + "1",
        "{" * 9000,
        "'" * 9001,
        "\0" * 20,
        "x" * 60000,
        "{}",
        "[]",
    ],
)
def test_an_absurd_npy_header_is_refused(tmp_path: Path, text: str) -> None:
    content = npy_header(text) + bytes(120)
    (tmp_path / "t.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.npy: "):
        read_teacher_logits(tmp_path / "t.npy")
    (tmp_path / "m.npz").write_bytes(zipped(x=content, y=npy(Y)))
    with pytest.raises(DataError, match=r"m\.npz: x\.npy: "):
        load_npz(tmp_path / "m.npz")


SMALL_FILES = {
    "stored": zipped(zipfile.ZIP_STORED, x=npy(X.astype("u1")), y=npy(Y), split=npy(SPLIT)),
    "deflated": zipped(x=npy(X), y=npy(Y), teacher_logits=npy(np.zeros((10, 3), "f2"))),
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cut.npz"
    for length in range(len(SMALL_FILES[kind])):
        path.write_bytes(SMALL_FILES[kind][:length])
        with pytest.raises(DataError, match=r"cut\.npz: "):
            load_npz(path)


def test_logits_cut_anywhere_are_refused_by_name(tmp_path: Path) -> None:
    content, path = npy(np.ones((2, 3), "f4")), tmp_path / "cut.npy"
    for data in (content[:length] for length in range(len(content))):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cut\.npy: "):
            read_teacher_logits(path)
    path.write_bytes(content + b"0")
    with pytest.raises(DataError, match=r"truncated or corrupt"):
        read_teacher_logits(path)


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_a_damaged_byte_is_found_or_changes_nothing(tmp_path: Path, kind: str) -> None:
    content, path = SMALL_FILES[kind], tmp_path / "m.npz"
    path.write_bytes(content)
    whole = load_npz(path)
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            result = load_npz(path)
        except DataError:
            refused += 1
        else:
            assert same(result, whole)
    assert refused > len(content) * 0.7  # dates and attributes of the zip entries are not used


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_far_behind_the_header_is_found(tmp_path: Path, method: int) -> None:
    rng = np.random.default_rng(0)
    content = zipped(method, x=npy(rng.integers(0, 256, (10, 50_000), "u1")), y=npy(Y))
    for position in rng.integers(10_000, 490_000, 8):
        damaged = bytearray(content)
        damaged[position] ^= 16
        (tmp_path / "m.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"m\.npz: (corrupt|truncated)"):
            load_npz(tmp_path / "m.npz")


def test_a_later_version_of_the_format_is_named(tmp_path: Path) -> None:
    with (tmp_path / "t.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros((2, 3)), version=(2, 0))
    with pytest.raises(DataError, match=r"npy format \(2, 0\)"):
        read_teacher_logits(tmp_path / "t.npy")


def test_a_split_of_no_unicode_is_refused(tmp_path: Path) -> None:
    split = npy_header(header("'<U1'", (10,))) + b"\xff" * 40
    (tmp_path / "m.npz").write_bytes(zipped(x=npy(X), y=npy(Y), split=split))
    with pytest.raises(DataError, match=r"got '\ufffd+' in row 0"):
        load_npz(tmp_path / "m.npz")


def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for name, array in (("x", X), ("x.npy", X), ("y.npy", Y)):
            archive.writestr(name, npy(array))
    with pytest.raises(DataError, match="twice: x, x, y"):
        load_npz(tmp_path / "m.npz")


def test_an_archive_of_many_files_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(BOMBS["directory"]())
    with pytest.raises(DataError, match="an archive of thousands of files"):
        load_npz(tmp_path / "m.npz")


def test_text_of_no_length_is_refused(tmp_path: Path) -> None:
    empty = npy_header(header("'<U0'", (10,)))
    (tmp_path / "m.npz").write_bytes(zipped(x=npy(X), y=npy(Y), split=empty))
    with pytest.raises(DataError, match="non-empty array of numbers or text"):
        load_npz(tmp_path / "m.npz")


@given(
    kind=st.sampled_from(sorted(SMALL_FILES)),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
    tail=st.binary(max_size=30),
)
def test_a_damaged_file_gives_a_data_set_or_a_data_error_in_bounded_memory(
    scratch: Path,
    measured: Measured,
    kind: str,
    edits: list[tuple[int, int]],
    tail: bytes,
) -> None:
    data = bytearray(SMALL_FILES[kind] + tail)
    for position, value in edits:
        data[position % len(data)] = value
    path = scratch / "fuzz.npz"
    path.write_bytes(data)
    peak, message = measured(load_npz, path)
    assert peak <= 4 * len(data) + ALLOWED
    assert not message or message.startswith(f"{path}: ")


@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6),
    name=st.sampled_from(["x", "y", "split"]),
)
def test_a_damaged_array_inside_a_sound_zip_gives_only_data_errors(
    scratch: Path, measured: Measured, edits: list[tuple[int, int]], name: str
) -> None:
    contents = {"x": npy(X), "y": npy(Y), "split": npy(SPLIT)}
    damaged = bytearray(contents[name])
    for position, value in edits:
        damaged[position % len(damaged)] = value
    path = scratch / "fuzz.npz"
    path.write_bytes(zipped(**(contents | {name: bytes(damaged)})))
    peak, message = measured(load_npz, path)
    assert peak <= 4 * path.stat().st_size + ALLOWED
    assert not message or message.startswith(f"{path}: ")


@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"PK\3\4", b"PK\5\6"]))
def test_any_bytes_give_only_data_errors(scratch: Path, content: bytes, start: bytes) -> None:
    for read, magic in ((load_npz, b""), (read_teacher_logits, b"\x93NUMPY\x01\x00")):
        path = scratch / "fuzz"
        path.write_bytes(magic + start + content)
        with pytest.raises(DataError, match="fuzz: "):
            read(path)


def floats(shape: tuple[int, ...], content: bytes, descr: str = "'<f4'") -> bytes:
    return npy_header(header(descr, shape)) + content


ZEROS = 128 << 20
BOMBS = {
    "values": lambda: zipped(x=floats((16, ZEROS >> 6), bytes(ZEROS)), y=npy(Y)),
    "text": lambda: zipped(
        x=npy(X[:8]), y=npy(Y[:8]), split=floats((8,), bytes(ZEROS), descr=f"'<U{ZEROS >> 5}'")
    ),
    "header": lambda: zipped(
        x=b"\x93NUMPY\2\0" + struct.pack("<I", ZEROS) + bytes(ZEROS), y=npy(Y)
    ),
    "bzip2": lambda: zipped(zipfile.ZIP_BZIP2, x=floats((16, 1), bytes(ZEROS)), y=npy(Y)),
    "directory": lambda: zipped(**{f"{number:06d}": b"" for number in range(6000)}),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_zip_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, measured: Measured, kind: str
) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(BOMBS[kind]())
    peak, message = measured(load_npz, path)
    assert peak <= 4 * path.stat().st_size + ALLOWED
    assert message.startswith(f"{path}: ")


# Zeros compress a thousandfold, so the limit is little more than 60 MB: each comes close to it.
LARGE = {
    "many rows": {"x": np.zeros((70_000, 800), "u1"), "y": np.arange(70_000) % 10},
    "Fortran order": {"x": np.zeros((56, 120_000), "f4", order="F"), "y": np.arange(56) % 2},
    "large rows": {"x": np.zeros((2, 11 << 20), "u1"), "y": np.arange(2)},
    "labels": {"x": np.zeros((1_500_000, 1), "u1"), "y": (np.arange(1_500_000) % 9).astype("u1")},
    "float16 logits": {
        "x": np.zeros((1_000, 1), "u1"),
        "y": np.arange(1_000) % 2,
        "teacher_logits": np.zeros((1_000, 7_000), "f2"),
    },
    "names of splits": {
        "x": np.zeros((600_000, 2), "u1"),
        "y": np.arange(600_000) % 2,
        "split": np.array(["train", "validation", "test", "test"] * 150_000),
    },
}


@pytest.mark.parametrize("kind", LARGE)
def test_data_near_the_limit_are_read_in_bounded_memory(
    tmp_path: Path, measured: Measured, kind: str
) -> None:
    path = save(tmp_path / "m.npz", compressed=True, **LARGE[kind])
    peak, message = measured(load_npz, path)
    assert not message
    assert 18_000_000 < peak <= 4 * path.stat().st_size + ALLOWED
    mine = load_npz(path)
    rows = len(mine.train) + len(mine.test) + len(mine.validation or ())
    assert rows == len(LARGE[kind]["y"])


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (np.zeros((2, 17 << 20), "u1"), 2),
        (np.zeros((2, 17 << 19), "f4", order="F"), 2),
        (np.zeros((2, 2), "u1"), 12 << 19),
    ],
    ids=["large rows", "Fortran order", "float16 logits"],
)
def test_data_whose_copies_are_beyond_the_limit_are_refused(
    tmp_path: Path, measured: Measured, x: np.ndarray, columns: int
) -> None:
    logits = np.zeros((2, columns), "f2")
    path = save(tmp_path / "m.npz", compressed=True, x=x, y=np.arange(2), teacher_logits=logits)
    peak, message = measured(load_npz, path)
    assert peak <= 4 * path.stat().st_size + ALLOWED
    assert "save it with numpy.savez, uncompressed and in C order" in message
