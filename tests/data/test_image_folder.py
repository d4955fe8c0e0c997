from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.cli import main
from refkd.data import Dataset, ImageFiles, Normalization, Resize, Split, load, load_image_folder
from refkd.data import _pillow as pillow_side
from refkd.errors import ConfigError, DataError, MissingExtra

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

ALLOWED = 72_000_000  # Pillow keeps up to 64 MiB of text from a PNG file
Measured = Callable[..., tuple[int, str]]
ORIENTATION = 0x0112


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture (h, w, 3) of smooth noise, which JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def encode(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_header(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)


def png(width: int, height: int, *chunks: bytes, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG file written by hand, for what Pillow does not write; rows without filter bytes."""
    step = len(rows) // height
    filtered = b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))
    end = chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return png_header(width, height, depth, color) + b"".join(chunks) + end


def decoded(content: bytes, tmp_path: Path) -> np.ndarray:
    """The file as (h, w, 3), as refkd reads it."""
    original = ImageFiles((write(tmp_path / "file", content),), 4).original(0)
    assert original.dtype == np.uint8
    return original.transpose(1, 2, 0)


SMALL_FILES = {
    "png": encode(pixels(6, 7)),
    "jpeg": encode(pixels(9, 7), "JPEG"),
    "progressive": encode(pixels(9, 7), "JPEG", progressive=True),
    "palette": encode(Image.fromarray(pixels(6, 7)).quantize(5), transparency=bytes([0, 9, 255])),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Cats and dogs: 3 and 2 to train, 1 and 1 to validate, of mixed sizes and kinds."""
    root = tmp_path / "pets"
    for name, seed in (("train/cat/b.png", 1), ("train/cat/a.jpg", 2), ("train/dog/x.JPEG", 3),
                       ("train/cat/c.PNG", 4), ("train/dog/é.jpg", 5),
                       ("val/cat/1.png", 6), ("val/dog/2.jpg", 7)):  # fmt: skip
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        write(root / name, encode(pixels(10 + seed, 20 - seed, seed), kind))
    return root


# What a folder is taken for


def test_classes_and_files_are_in_the_order_of_their_sorted_names(folder: Path) -> None:
    pets = load_image_folder(folder, size=8)
    assert pets.name == "pets"
    assert pets.class_names == ("cat", "dog")
    assert pets.num_classes == 2
    images = pets.train.images
    assert isinstance(images, ImageFiles)
    relative = [path.relative_to(folder).as_posix() for path in images.paths]
    assert relative == [
        "train/cat/a.jpg", "train/cat/b.png", "train/cat/c.PNG", "train/dog/x.JPEG",
        "train/dog/é.jpg",
    ]  # fmt: skip
    assert pets.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert pets.normalization == Normalization(1 / 255)
    assert pets.image_shape == (3, 8, 8)
    assert pets.skipped == 0


def test_the_order_does_not_depend_on_that_of_the_file_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_image_folder(folder, size=8)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    assert load_image_folder(folder, size=8).sha256() == expected.sha256()


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_without_a_test_folder_the_validation_images_are_the_test_split(
    folder: Path, name: str
) -> None:
    (folder / "val").rename(folder / name)
    pets = load_image_folder(folder, size=8)
    assert pets.validation is None
    assert len(pets.test) == 2
    write(folder / "test/dog/t.png", SMALL_FILES["png"])
    pets = load_image_folder(folder, size=8)
    assert pets.test.labels.tolist() == [1]
    assert pets.validation is not None
    assert pets.validation.labels.tolist() == [0, 1]


def test_without_validation_images_there_is_no_validation_split(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    pets = load_image_folder(folder, size=8)
    assert pets.validation is None
    assert len(pets.test) == 2


def test_a_class_that_is_missing_from_val_keeps_its_index(folder: Path) -> None:
    (folder / "val/cat/1.png").unlink()  # an empty folder
    assert load_image_folder(folder, size=8).test.labels.tolist() == [1]
    (folder / "val/cat").rmdir()
    assert load_image_folder(folder, size=8).test.labels.tolist() == [1]


def test_what_is_no_image_of_a_class_is_left_out(folder: Path) -> None:
    expected = load_image_folder(folder, size=8).sha256()
    for name in (
        "README.md", "notes/why.jpg", "train/beside.jpg", "train/.ipynb_checkpoints/a.jpg",
        "train/cat/.hidden.jpg", "train/cat/._a.jpg", "train/cat/Thumbs.db", "train/cat/a.jpg.txt",
        "train/cat/jpg", "train/dog/deeper/a.jpg", "train/dog/folder.jpg/a.jpg", "val/.DS_Store",
    ):  # fmt: skip
        write(folder / name, b"no image")
    assert load_image_folder(folder, size=8).sha256() == expected


def test_symbolic_links_to_files_and_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    expected = load_image_folder(folder, size=8).sha256()
    (folder / "train/dog").rename(tmp_path / "elsewhere")
    (folder / "train/dog").symlink_to(tmp_path / "elsewhere")
    (folder / "val/cat/1.png").rename(tmp_path / "picture")
    (folder / "val/cat/1.png").symlink_to(tmp_path / "picture")
    assert load_image_folder(folder, size=8).sha256() == expected


def test_a_symbolic_link_that_leads_nowhere_is_a_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "val/cat/1.png").unlink()
    (folder / "val/cat/1.png").symlink_to("1.png")
    with pytest.raises(DataError, match=r"1\.png: "):
        load_image_folder(folder, size=8)
    (folder / "val/cat/1.png").unlink()
    (folder / "val/cat/1.png").symlink_to("gone")
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        load_image_folder(folder, size=8)
    assert load_image_folder(folder, size=8, corrupt="skip").skipped == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "train/cat/pipe.jpg")
    with pytest.raises(DataError, match=r"pipe\.jpg: not a regular file"):
        load_image_folder(folder, size=8)


def empty_a_class(folder: Path) -> None:
    (folder / "train/emu").mkdir()


def leave_one_class(folder: Path) -> None:
    for path in [*folder.glob("*/dog/*"), *folder.glob("*/dog")]:
        path.rmdir() if path.is_dir() else path.unlink()


def empty_val(folder: Path) -> None:
    for path in folder.glob("val/*/*"):
        path.unlink()


def empty_train(folder: Path) -> None:
    for path in [*folder.glob("train/*/*"), *folder.glob("train/*")]:
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty_a_class, r"no image .* class folder 'emu'.*remove the folder"),
        (leave_one_class, "at least 2 classes, got 1"),
        (empty_val, "no image that can be read for validation"),
        (empty_train, "no image that can be read for train|has a class 'cat'"),
        (lambda f: (f / "val").rename(f / "evaluate"), "got the folders evaluate, train"),
        (lambda f: (f / "train").rename(f / "Training"), "expected train/CLASS"),
        (lambda f: (f / "valid").mkdir(), "both val and valid"),
        (lambda f: (f / "val/cat").rename(f / "val/cats"), "'cats'.*train has not.*'cat'"),
        (lambda f: f.rename(f.parent / "moved"), "no such folder; expected train/CLASS"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_the_reason(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=rf"pets.*{reason}"):
        load_image_folder(folder, size=8)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_image_folder(folder / "train/cat/a.jpg", size=8)


def test_a_class_whose_name_is_no_unicode_is_refused(folder: Path) -> None:
    try:
        os.mkdir(os.fsencode(folder) + b"/train/\xff")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match="is no Unicode"):
        load_image_folder(folder, size=8)


# Files that cannot be decoded


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a text, renamed\n", "is neither JPEG nor PNG"),
        (encode(pixels(6, 7), "GIF"), "is neither JPEG nor PNG"),
        (encode(pixels(6, 7), "TIFF"), "is neither JPEG nor PNG"),
        (SMALL_FILES["jpeg"][:-30], "truncated"),
        (SMALL_FILES["jpeg"][:20], "cannot be decoded"),
        (SMALL_FILES["png"][:-40], "truncated"),
        (png_header(6, 7), "cannot be decoded"),
        (png_header(0, 7) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "cannot be decoded"),
        (png_header(60_000, 60_000) + chunk(b"IDAT", b""), r"60000 x 60000 .* than the 67,108,864"),
        (png_header(8192, 8193) + chunk(b"IDAT", b""), r"8192 x 8193 pixels"),
    ],
    ids=["empty", "text", "gif", "tiff", "cut jpeg", "cut header", "cut png", "no pixels",
         "no width", "bomb", "just too large"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["train/cat/bad.jpg", "val/dog/bad.png"])
def test_a_file_that_cannot_be_decoded_is_named_or_skipped_and_counted(
    folder: Path, content: bytes, reason: str, name: str
) -> None:
    expected = load_image_folder(folder, size=8).sha256()
    path = write(folder / name, content)
    with pytest.raises(DataError, match=reason) as caught:
        load_image_folder(folder, size=8)
    assert str(caught.value).startswith(f"{path}: ")
    pets = load_image_folder(folder, size=8, corrupt="skip")
    assert pets.skipped == 1
    assert pets.sha256() == expected


def test_the_first_bad_file_by_name_is_the_one_named(folder: Path) -> None:
    for name in ("train/dog/a.jpg", "train/cat/z.jpg", "val/cat/a.jpg"):
        write(folder / name, b"no image")
    with pytest.raises(DataError, match=r"train.cat.z\.jpg"):
        load_image_folder(folder, size=8)
    assert load_image_folder(folder, size=8, corrupt="skip").skipped == 3


def test_a_class_of_corrupt_files_alone_is_refused_even_where_they_are_skipped(
    folder: Path,
) -> None:
    for path in folder.glob("train/dog/*"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image that can be read in the class folder 'dog'"):
        load_image_folder(folder, size=8, corrupt="skip")


def test_no_thread_is_left_by_loading(folder: Path) -> None:
    before = threading.active_count()
    load_image_folder(folder, size=8)
    write(folder / "train/cat/aa.png", b"")
    with pytest.raises(DataError):
        load_image_folder(folder, size=8)
    assert threading.active_count() == before


def test_a_file_that_vanishes_after_loading_is_named(folder: Path) -> None:
    pets = load_image_folder(folder, size=8)
    (folder / "train/cat/a.jpg").unlink()
    for use in (lambda: pets.train.images[0], pets.sha256):
        with pytest.raises(DataError, match=r"a\.jpg: no such file"):
            use()


@pytest.mark.parametrize("corrupt", ["ignore", "Skip", None])
def test_an_unknown_policy_is_refused(folder: Path, corrupt: Any) -> None:
    with pytest.raises(ConfigError, match="corrupt must be one of 'raise', 'skip'"):
        load_image_folder(folder, size=8, corrupt=corrupt)


@pytest.mark.parametrize("size", [0, -1, 8193, 2.0, "8", True, None])
def test_a_size_that_makes_no_sense_is_refused(folder: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="size must be an integer from 1 to 8192"):
        load_image_folder(folder, size=size)


def test_without_pillow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_side.require_pillow.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"refkd\[data\]"):
        load_image_folder(folder, size=8)


# Modes, sizes, orientation: every file becomes upright RGB


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_rgb_file_is_read_as_pillow_reads_it(tmp_path: Path, kind: str) -> None:
    content = encode(pixels(9, 13), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decoded(content, tmp_path), expected)


def test_grey_and_black_and_white_become_three_equal_channels(tmp_path: Path) -> None:
    grey = pixels(5, 6)[:, :, 0]
    for content, expected in (
        (encode(grey), grey),
        (encode(Image.fromarray(grey > 128)), np.where(grey > 128, 255, 0)),
    ):
        result = decoded(content, tmp_path)
        for channel in range(3):
            np.testing.assert_array_equal(result[:, :, channel], expected)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(8, 8)).quantize(6)
    assert image.mode == "P"
    np.testing.assert_array_equal(
        decoded(encode(image), tmp_path), np.asarray(image.convert("RGB"))
    )


def test_transparent_pixels_are_put_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200  # (200, 0, 0) with opacity 255, 51, 0
    rgba[0, :, 3] = (255, 51, 0)
    expected = [[200, 0, 0], [244, 204, 204], [255, 255, 255]]
    np.testing.assert_allclose(decoded(encode(rgba), tmp_path)[0], expected, atol=1)
    grey_alpha = Image.fromarray(np.array([[0, 0]], np.uint8)).convert("LA")
    grey_alpha.putalpha(Image.fromarray(np.array([[255, 0]], np.uint8)))
    assert decoded(encode(grey_alpha), tmp_path)[0].tolist() == [[0] * 3, [255] * 3]


def test_transparent_entries_and_colours_of_a_png_are_put_on_white(tmp_path: Path) -> None:
    palette = chunk(b"PLTE", bytes([9, 9, 9, 0, 0, 255, 0, 255, 0]))
    entries = png(3, 1, palette, chunk(b"tRNS", b"\0\xff\x80"), depth=8, color=3, rows=b"\0\1\2")
    np.testing.assert_allclose(
        decoded(entries, tmp_path)[0], [[255] * 3, [0, 0, 255], [127, 255, 127]], atol=1
    )
    one_entry = png(2, 1, palette, chunk(b"tRNS", b"\0"), depth=8, color=3, rows=b"\0\1")
    assert decoded(one_entry, tmp_path)[0].tolist() == [[255] * 3, [0, 0, 255]]
    grey = png(2, 1, chunk(b"tRNS", b"\0\7"), depth=8, color=0, rows=b"\7\x08")
    assert decoded(grey, tmp_path)[0].tolist() == [[255] * 3, [8] * 3]
    colour = png(2, 1, chunk(b"tRNS", b"\0\7\0\7\0\7"), depth=8, color=2, rows=b"\7\7\7\x08\7\7")
    assert decoded(colour, tmp_path)[0].tolist() == [[255] * 3, [8, 7, 7]]


def test_values_of_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x8070, 0xFFFF]], np.uint16)
    expected = [[v >> 8] * 3 for v in values[0].tolist()]
    assert decoded(encode(values), tmp_path)[0].tolist() == expected
    big_endian = values.astype(">u2")
    colour = png(5, 1, depth=16, color=2, rows=np.repeat(big_endian, 3).tobytes())
    assert decoded(colour, tmp_path)[0].tolist() == expected


def test_a_transparent_grey_of_sixteen_bits_is_put_on_white(tmp_path: Path) -> None:
    values = np.array([[0x1234, 0x1235, 0x1334, 0x0012, 0xFFFF]], ">u2")
    transparent = chunk(b"tRNS", b"\x12\x34")
    grey = png(5, 1, transparent, depth=16, color=0, rows=values.tobytes())
    expected = [[v] * 3 for v in (0xFF, 0x12, 0x13, 0x00, 0xFF)]
    assert decoded(grey, tmp_path)[0].tolist() == expected


def test_cmyk_is_converted(tmp_path: Path) -> None:
    inks = [np.full((8, 8), ink, np.uint8) for ink in (0, 255, 0, 0)]
    magenta = Image.merge("CMYK", [Image.fromarray(ink) for ink in inks])
    result = decoded(encode(magenta, "JPEG", quality=100), tmp_path)
    np.testing.assert_allclose(result[4, 4], [255, 0, 255], atol=3)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encode(pixels(8, 12), kind, exif=exif)
    stored = Image.open(io.BytesIO(content))
    upright = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(decoded(content, tmp_path), upright)
    if orientation in (6, 8):
        assert upright.shape == (12, 8, 3)


def test_the_orientation_is_read_in_either_byte_order(tmp_path: Path) -> None:
    stored = pixels(8, 12)
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = ((0x0100, 4, 1, 12), (ORIENTATION, 3, 1, 3))
        tiff = mark + struct.pack(f"{order}IH", 8, len(entries))
        for tag, kind, count, value in entries:
            packed = struct.pack(f"{order}H", value).ljust(4, b"\0")
            tiff += struct.pack(f"{order}HHI", tag, kind, count) + packed
        content = encode(stored, exif=b"Exif\0\0" + tiff)
        np.testing.assert_array_equal(decoded(content, tmp_path), stored[::-1, ::-1])


@given(
    start=st.sampled_from(
        [b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0\2\0", b"II*\0\x08\0\0\0\1\0\x12\1"]
    ),
    damage=st.binary(max_size=60),
)
def test_damaged_exif_data_do_not_keep_an_image_from_being_read_or_warn(
    scratch: Path, start: bytes, damage: bytes
) -> None:
    content = encode(pixels(9, 7), "JPEG", exif=b"Exif\0\0" + start + damage)
    plain = decoded(encode(pixels(9, 7), "JPEG"), scratch)
    result = decoded(content, scratch)  # turned, where the damage happens to say so
    turned = [np.rot90(m, k) for m in (plain, plain[::-1]) for k in range(4)]
    assert any(np.array_equal(result, image) for image in turned)


# ImageFiles as an array


@pytest.fixture
def images(folder: Path) -> ImageFiles:
    result = load_image_folder(folder, size=8).train.images
    assert isinstance(result, ImageFiles)
    return result


ROWS = [
    0, -1, np.int64(2), slice(None), slice(1, 4), slice(0, 0), slice(None, None, -2), [3, 0, 3],
    np.array([4, -5]), np.array([True, False, False, True, True]), np.zeros(0, np.int64),
    np.array([[0, 1], [2, 3]]),
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_image_files_are_indexed_as_the_array_of_their_images(
    images: ImageFiles, rows: Any
) -> None:
    whole = np.stack([images[row] for row in range(len(images))])
    assert whole.shape == images.shape == (5, 3, 8, 8)
    assert whole.dtype == images.dtype == np.uint8
    np.testing.assert_array_equal(images[rows], whole[rows])
    assert images[rows].shape == whole[rows].shape
    assert images[rows].flags.c_contiguous
    assert images[rows].flags.writeable


@pytest.mark.parametrize("rows", ROWS[3:-1], ids=str)
def test_a_subset_decodes_nothing_and_holds_the_same_rows(images: ImageFiles, rows: Any) -> None:
    expected = images[rows]
    part = images.subset(rows)
    assert isinstance(part, ImageFiles)
    np.testing.assert_array_equal(part[:], expected)


@pytest.mark.parametrize("rows", [5, -6, [0, 5], np.ones(4, bool), 1.0, "a"])
def test_a_row_that_does_not_exist_is_an_index_error(images: ImageFiles, rows: Any) -> None:
    with pytest.raises(IndexError):
        images[rows]


def test_an_image_is_resized_whole_to_the_exact_square(images: ImageFiles) -> None:
    for row, path in enumerate(images.paths):
        picture = Image.open(path)
        expected = picture.resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[row].transpose(1, 2, 0), np.asarray(expected))
        original = images.original(row)
        assert original.shape == (3, picture.height, picture.width)
        np.testing.assert_array_equal(original.transpose(1, 2, 0), np.asarray(picture))
        original[:] = 0  # fresh, and may be written to


def test_evaluation_sees_what_the_transform_resize_makes(images: ImageFiles) -> None:
    rng = np.random.default_rng(0)
    for row in range(len(images)):
        np.testing.assert_array_equal(images[row], Resize(8)(images.original(row), rng))


def test_shrinking_is_antialiased_and_enlarging_interpolates(tmp_path: Path) -> None:
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    path = write(tmp_path / "c.png", encode(checkerboard.astype(np.uint8)))
    small = ImageFiles((path,), 8)[0]
    assert np.abs(small.astype(int) - 127).max() <= 8  # a sampled one would be 0 or 255
    steps = write(tmp_path / "s.png", encode(np.array([[0, 100]], np.uint8)))
    assert ImageFiles((steps,), 4)[0][0].tolist() == [[0, 25, 75, 100]] * 4


# In a Split and a Dataset


def test_taking_rows_of_a_split_decodes_nothing(folder: Path) -> None:
    split = load_image_folder(folder, size=8).train
    split = dataclasses.replace(split, teacher_logits=np.eye(5, 2))
    part = split.take(np.array([4, 0]))
    assert isinstance(part.images, ImageFiles)
    assert isinstance(split.images, ImageFiles)
    assert part.images.paths == (split.images.paths[4], split.images.paths[0])
    assert part.labels.tolist() == [1, 0]
    assert part.teacher_logits is not None
    assert part.teacher_logits.tolist() == [[0, 0], [1, 0]]
    assert len(split.take(split.labels == 0)) == 3


def test_a_split_of_files_is_checked_as_one_of_arrays(images: ImageFiles) -> None:
    with pytest.raises(DataError, match="at least one image"):
        Split(images.subset(slice(0, 0)), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="as many labels as images, got 4 and 5"):
        Split(images, np.zeros(4, np.int64))
    split = Split(images, np.arange(5) % 2)
    other = Split(ImageFiles(images.paths, 9), np.arange(5) % 2)
    with pytest.raises(DataError, match=r"test images: expected \(3, 8, 8\).*got \(3, 9, 9\)"):
        Dataset("x", split, other, None, 2, ("a", "b"), Normalization(1.0))


def test_the_digest_depends_on_bytes_order_labels_and_size_not_on_names(folder: Path) -> None:
    def digest(size: int = 8) -> str:
        return load_image_folder(folder, size=size).sha256()

    digests = [digest(), digest(size=9)]
    (folder / "train/cat/c.PNG").rename(folder / "train/cat/d.png")
    assert digest() == digests[0]
    (folder / "train/cat/d.png").rename(folder / "train/cat/0.png")
    digests.append(digest())
    (folder / "train/cat/0.png").rename(folder / "train/dog/0.png")
    digests.append(digest())
    path = folder / "val/cat/1.png"
    path.write_bytes(path.read_bytes() + b"\0")
    digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_the_digest_tells_where_a_file_ends(tmp_path: Path) -> None:
    digests = []
    for first, second in ((b"ab", b"c"), (b"a", b"bc")):
        paths = (write(tmp_path / "1", first), write(tmp_path / "2", second))
        digests.append(hashlib.sha256())
        ImageFiles(paths, 8).digest_into(digests[-1])
    assert digests[0].digest() != digests[1].digest()


def test_the_digest_of_files_depends_on_the_size(images: ImageFiles) -> None:
    digests = [hashlib.sha256(), hashlib.sha256()]
    for size, digest in zip((8, 9), digests, strict=True):
        ImageFiles(images.paths, size).digest_into(digest)
    assert digests[0].digest() != digests[1].digest()


# By name, and on the command line


def test_a_folder_with_train_is_loaded_as_images_and_needs_a_size(folder: Path) -> None:
    assert load(folder, image_size=8).sha256() == load_image_folder(folder, size=8).sha256()
    with pytest.raises(DataError, match=r"size under \[images\] in a recipe"):
        load(folder)
    write(folder / "train/cat/bad.jpg", b"")
    with pytest.raises(DataError, match="empty"):
        load(folder, image_size=8)
    assert load(str(folder), image_size=8, corrupt="skip").skipped == 1


def test_teacher_logits_belong_to_the_training_images(folder: Path, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).standard_normal((5, 2))
    np.save(tmp_path / "t.npy", logits)
    split = load(folder, tmp_path / "t.npy", image_size=8).train
    np.testing.assert_array_equal(split.teacher_logits, logits)
    write(folder / "train/cat/bad.jpg", b"")
    np.save(tmp_path / "t.npy", np.zeros((6, 2)))  # of a skipped file, too: nobody knows which
    with pytest.raises(DataError, match="6 rows for 5 images"):
        load(folder, tmp_path / "t.npy", image_size=8, corrupt="skip")


def test_data_show_counts_the_images_and_what_was_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "train/cat/bad.jpg", b"")
    assert main(["data", "show", str(folder)]) == 3
    assert "bad.jpg: empty" in capsys.readouterr().err
    assert main(["data", "show", str(folder), "--skip-corrupt", "--image-size", "32"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pets: images (3, 32, 32), 2 classes\n")
    assert "  train: 5 images, uint8\n  test: 2 images, uint8\n" in out
    assert "left out: 1 images" in out


# Any bytes: an image or a DataError, in bounded memory


def read(path: Path) -> np.ndarray:
    return ImageFiles((path,), 4)[0]


def check_bytes(path: Path, measured: Measured, content: bytes) -> None:
    write(path, content)
    pillow_side.require_pillow()
    peak, message = measured(read, path)
    assert peak <= 4 * len(content) + ALLOWED
    assert not message or message.startswith(f"{path}: ")


@given(content=st.binary(max_size=200), start=st.sampled_from([b"", *SMALL_FILES.values()]))
def test_any_bytes_give_an_image_or_a_data_error_in_bounded_memory(
    scratch: Path, measured: Measured, content: bytes, start: bytes
) -> None:
    for data in (content, start[:10] + content, start[:40] + content, start + content):
        check_bytes(scratch / "fuzz", measured, data)


@given(
    kind=st.sampled_from(sorted(SMALL_FILES)),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_gives_an_image_or_a_data_error_in_bounded_memory(
    scratch: Path, measured: Measured, kind: str, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL_FILES[kind])
    for position, value in edits:
        data[position % len(data)] = value
    check_bytes(scratch / "fuzz", measured, bytes(data))


@given(
    name=st.sampled_from([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"IHDR"]),
    content=st.binary(max_size=40),
    depth=st.sampled_from([1, 2, 4, 8, 16]),
    color=st.integers(0, 7),
)
def test_a_png_with_any_chunk_gives_an_image_or_a_data_error(
    scratch: Path, measured: Measured, name: bytes, content: bytes, depth: int, color: int
) -> None:
    rows = bytes(2 * 8 * 2)
    data = png(2, 2, chunk(name, content), depth=depth, color=color, rows=rows)
    check_bytes(scratch / "fuzz", measured, data)


@pytest.mark.parametrize("kind", sorted(SMALL_FILES))
def test_a_file_cut_anywhere_is_refused_by_name_or_lacks_nothing(tmp_path: Path, kind: str) -> None:
    content = SMALL_FILES[kind]
    whole = decoded(content, tmp_path)
    lengths = {*range(0, len(content), 5), *range(len(content) - 50, len(content))}
    refusals = []
    for length in lengths:
        try:
            np.testing.assert_array_equal(decoded(content[:length], tmp_path), whole)
        except DataError as error:
            refusals.append(str(error))
    # All but cuts in the checksum of the pixels and the chunk or marker at the end.
    assert len(refusals) >= len(lengths) - 24
    assert all(text.startswith(f"{tmp_path / 'file'}: ") for text in refusals)


def test_a_bomb_of_text_takes_bounded_memory(tmp_path: Path, measured: Measured) -> None:
    pillow_side.require_pillow()
    text = zlib.compress(b"a" * (1 << 20))
    for count in (64, 65):
        texts = [chunk(b"iTXt", b"k%d\0\1\0\0\0" % i + text) for i in range(count)]
        path = write(tmp_path / "bomb", png(1, 1, *texts, depth=8, color=0, rows=b"\0"))
        peak, message = measured(read, path)
        assert peak <= 4 * path.stat().st_size + ALLOWED
        assert bool(message) == (count > 64)


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_side, "MAX_PIXELS", 100)
    assert decoded(encode(pixels(10, 10)), tmp_path).shape == (10, 10, 3)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    peak, message = measured(read, write(tmp_path / "b", encode(pixels(10, 11))))
    assert "11 x 10 pixels" in message
    assert peak < 4_000_000


# Real photographs


def test_the_real_flowers_are_read(real_data: Path) -> None:
    flowers = load(real_data / "flowers", image_size=64)
    assert flowers.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert np.bincount(flowers.train.labels).tolist() == [220] * 5
    assert np.bincount(flowers.test.labels).tolist() == [60] * 5
    assert flowers.image_shape == (3, 64, 64)
    batch = flowers.train.images[::100]
    assert batch.shape == (11, 3, 64, 64)
    assert batch.std() > 30
