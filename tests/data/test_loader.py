from __future__ import annotations

import gc
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data import (
    HorizontalFlip,
    ImageFiles,
    PaddedCrop,
    RandomResizedCrop,
    Transform,
    batches,
    load,
    loader,
)
from refkd.data.loader import row_blocks
from refkd.errors import ConfigError, DataError
from refkd.threads import in_order

Image = pytest.importorskip("PIL.Image")

AUGMENT: tuple[Transform, ...] = (RandomResizedCrop(8), HorizontalFlip())


def generator_of(row: int) -> np.random.Generator:
    return np.random.default_rng([7, row])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Thirty images of thirty sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for row in range(30):
        pixels = rng.integers(0, 256, (10 + row, 40 - row, 3)).astype(np.uint8)
        paths.append(root / f"{row}.png")
        Image.fromarray(pixels).save(paths[-1])
    return ImageFiles(tuple(paths), 8)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def no_generator(row: int) -> np.random.Generator:
    raise AssertionError("nothing is augmented")


def threaded_batches(
    *arguments: Any, ahead: int = 4, workers: int | None = None
) -> Generator[Any, None, None]:
    """Return batches that are made by so many threads, so many of them ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_AHEAD", ahead)
        patch.setattr(loader, "_WORKERS", workers)
        return batches(*arguments)


def order_of(rows: int, size: int, seed: int = 0) -> list[np.ndarray]:
    permutation = np.random.default_rng(seed).permutation(rows)
    return [permutation[start : start + size] for start in range(0, rows, size)]


def serial(images: Any, order: list[np.ndarray], augment: Any) -> list[np.ndarray]:
    """What the batches should be, one image after another."""
    result = []
    for rows in order:
        batch = []
        for row in map(int, rows):
            image = images.original(row) if isinstance(images, ImageFiles) else images[row]
            rng = generator_of(row)
            for transform in augment:
                image = transform(image, rng)
            batch.append(image)
        result.append(np.stack(batch))
    return result


def assert_equal(given: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(given) == len(expected)
    for batch, other in zip(given, expected, strict=True):
        assert batch.dtype == np.uint8
        np.testing.assert_array_equal(batch, other)


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
@pytest.mark.parametrize("ahead", [0, 1, 4, 100])
def test_batches_are_those_of_a_serial_computation(
    images: ImageFiles, workers: int | None, ahead: int
) -> None:
    order = order_of(30, 7)
    given = list(
        threaded_batches(images, order, AUGMENT, generator_of, ahead=ahead, workers=workers)
    )
    assert_equal(given, serial(images, order, AUGMENT))
    assert [batch.shape for batch in given] == [(7, 3, 8, 8)] * 4 + [(2, 3, 8, 8)]
    assert all(batch.flags.c_contiguous and batch.flags.writeable for batch in given)


@given(
    seed=st.integers(0, 2**32 - 1),
    workers=st.integers(1, 4),
    ahead=st.integers(0, 6),
    size=st.integers(1, 12),
)
def test_neither_threads_nor_the_division_into_batches_change_an_image(
    seed: int, workers: int, ahead: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (20, 3, 6, 6)).astype(np.uint8)
    augment = (PaddedCrop(6, 2), HorizontalFlip())
    order = order_of(20, size, seed)
    given = list(
        threaded_batches(stored, order, augment, generator_of, ahead=ahead, workers=workers)
    )
    assert_equal(given, serial(stored, order, augment))
    by_row = np.empty_like(stored)
    for rows, batch in zip(order, given, strict=True):
        by_row[rows] = batch
    one_by_one = [np.array([row]) for row in range(20)]
    assert_equal([by_row], [np.concatenate(serial(stored, one_by_one, augment))])


def test_another_generator_makes_other_images(images: ImageFiles) -> None:
    order = [np.arange(30)]
    (first,) = batches(images, order, AUGMENT, generator_of)
    (second,) = batches(images, order, AUGMENT, lambda row: np.random.default_rng([8, row]))
    assert all((a != b).any() for a, b in zip(first, second, strict=True))


def test_files_that_are_not_augmented_are_resized_as_for_evaluation(images: ImageFiles) -> None:
    order = order_of(30, 8)
    given = list(threaded_batches(images, order, (), no_generator, workers=2))
    assert_equal(given, [images[rows] for rows in order])
    assert_equal(list(batches(images, order)), given)


def test_an_array_that_is_not_augmented_is_indexed_without_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("refkd.data.loader.in_order", None)
    stored = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    order = order_of(9, 4)
    given = list(batches(stored, order))
    for batch, rows in zip(given, order, strict=True):
        np.testing.assert_array_equal(batch, stored[rows])
        assert batch.dtype == np.float32
    batches(stored, order).close()


def test_no_batch_is_no_error(images: ImageFiles) -> None:
    assert list(batches(images, [], AUGMENT, generator_of)) == []
    assert list(batches(np.zeros((3, 2)), [])) == []


# Threads and memory


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_no_more_than_ahead_items_are_begun_beyond_the_one_yielded(
    ahead: int, workers: int
) -> None:
    begun = []
    items = in_order(begun.append, range(20), ahead=ahead, workers=workers)
    for yielded in range(1, 21):
        next(items)
        time.sleep(0.002)  # time enough to begin more
        assert len(begun) <= yielded + ahead
    assert next(items, "end") == "end"
    assert sorted(begun) == list(range(20))


def test_items_are_computed_ahead_and_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def meet(item: int) -> int:
        if item in (1, 2):
            meeting.wait()
        return item

    items = in_order(meet, range(6), ahead=3, workers=3)
    assert next(items) == 0
    meeting.wait()  # items 1 and 2 run now, at once, though nobody has asked for them
    assert list(items) == [1, 2, 3, 4, 5]


def test_results_come_in_order_however_long_each_takes() -> None:
    def slow(item: int) -> int:
        time.sleep(0.004 * (item % 3 == 0))
        return item * item

    assert list(in_order(slow, range(12), ahead=5, workers=4)) == [i * i for i in range(12)]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_ends_the_threads_and_cancels_what_is_pending(
    images: ImageFiles, taken: int
) -> None:
    begun = []

    def spy(row: int) -> np.random.Generator:
        begun.append(row)
        return generator_of(row)

    before = threading.active_count()
    iterator = threaded_batches(images, order_of(30, 1), AUGMENT, spy, ahead=8, workers=2)
    for _ in range(taken):
        next(iterator)
    iterator.close()
    assert threading.active_count() == before
    assert len(begun) <= (taken + 8 if taken else 0)
    count = len(begun)
    time.sleep(0.01)
    assert len(begun) == count
    assert next(iterator, None) is None


def test_what_has_not_begun_when_the_iterator_is_closed_is_never_begun() -> None:
    begun, release = [], threading.Event()

    def wait(item: int) -> None:
        begun.append(item)
        if item:
            release.wait(10)

    items = in_order(wait, range(20), ahead=10, workers=1)
    next(items)
    timer = threading.Timer(0.05, release.set)
    timer.start()
    items.close()
    timer.join()
    assert begun in ([0], [0, 1])


def test_dropping_the_iterator_ends_the_threads(images: ImageFiles) -> None:
    before = threading.active_count()
    iterator = threaded_batches(images, order_of(30, 2), AUGMENT, generator_of, workers=3)
    next(iterator)
    assert threading.active_count() > before
    del iterator
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_in_a_thread_is_raised_where_its_batch_is_due(
    images: ImageFiles, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = (*images.paths[:10], tmp_path / "bad.png", *images.paths[10:])
    order = [np.arange(start, start + 3) for start in range(0, 30, 3)]
    before = threading.active_count()
    iterator = threaded_batches(ImageFiles(paths, 8), order, AUGMENT, generator_of, workers=workers)
    assert_equal([next(iterator) for _ in range(3)], serial(images, order[:3], AUGMENT))
    with pytest.raises(DataError, match=r"bad\.png: is neither JPEG nor PNG"):
        next(iterator)
    assert threading.active_count() == before
    assert next(iterator, None) is None


def test_an_exception_of_the_order_ends_the_threads(images: ImageFiles) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield np.arange(3)
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(threaded_batches(images, failing(), AUGMENT, generator_of, ahead=1))
    assert threading.active_count() == before


# What cannot be done


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), "float32"),
        (np.zeros((4, 8, 8), np.uint8), r"uint8 \(4, 8, 8\)"),
    ],
)
def test_what_cannot_be_augmented_is_refused_at_the_call(stored: np.ndarray, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"batches: .*{reason}"):
        batches(stored, [np.arange(4)], AUGMENT, generator_of)


def test_augmenting_needs_a_generator(images: ImageFiles) -> None:
    with pytest.raises(ConfigError, match="augment needs generator_of"):
        batches(images, [np.arange(4)], AUGMENT)


@given(count=st.integers(1, 50), step=st.integers(1, 20))
def test_blocks_of_rows_are_all_rows_in_order(count: int, step: int) -> None:
    blocks = list(row_blocks(count, step))
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(count))
    assert {len(block) for block in blocks[:-1]} <= {step}
    assert len(blocks) == -(-count // step)


def test_no_row_is_one_empty_block() -> None:
    assert [len(block) for block in row_blocks(0, 5)] == [0]


def test_images_that_stay_of_different_sizes_make_no_batch(images: ImageFiles) -> None:
    with pytest.raises(ConfigError, match=r"\(3, 10, 40\) and \(3, 11, 39\).*such as Resize"):
        next(batches(images, [np.arange(4)], (HorizontalFlip(),), generator_of))


def test_an_augmented_batch_of_no_rows_is_refused(images: ImageFiles) -> None:
    with pytest.raises(DataError, match="at least one row"):
        next(batches(images, [np.arange(0)], AUGMENT, generator_of))


def test_real_photographs_are_decoded_ahead_as_one_by_one(real_data: Path) -> None:
    flowers = load(real_data / "flowers", image_size=32).test.images
    order = order_of(40, 16)
    augment = (RandomResizedCrop(32), HorizontalFlip())
    given = list(threaded_batches(flowers, order, augment, generator_of, workers=2))
    assert_equal(given, serial(flowers, order, augment))
