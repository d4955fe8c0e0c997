"""Augmentation in the loop: which images a training sees, by seed, network, epoch and row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from refkd.data.dataset import Normalization, Split
from refkd.distill import Batch, StepResult
from refkd.models import create
from refkd.train.loop import begin, train
from refkd.train.optim import SGD
from refkd.train.progress import Progress
from tests.train.trainings import one_stage

ROWS, SEED = 11, 3
AS_STORED = Normalization(1.0)


@dataclass(frozen=True)
class Noise:
    """Replace an image by its first pixel and a number of its generator."""

    random: ClassVar[bool] = True

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        drawn = rng.integers(256, size=image.shape).astype(np.uint8)
        drawn[0, 0, 0] = image[0, 0, 0]
        return drawn


@dataclass
class Recording:
    """Learns nothing and keeps the batches by epoch."""

    seen: list[Batch]
    learns: tuple[str, ...] = ("student",)

    networks: ClassVar[Any] = {
        name: create("mlp", in_features=4, hidden=(), num_classes=2)
        for name in ("student", "teacher")
    }
    stop_gradient: ClassVar[tuple[str, ...]] = ()

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        self.seen.append(batch)
        return StepResult(
            {"loss": np.float32(0)}, {n: np.zeros_like(p) for n, p in params.items()}, dict(state)
        )


def split() -> Split:
    images = np.zeros((ROWS, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(ROWS)
    return Split(images, np.arange(ROWS) % 2)


def images_of(*, seed: int = SEED, learns: str = "student") -> list[dict[int, bytes]]:
    """Return what every image became, by its row, epoch by epoch."""
    recording = Recording([], (learns,))
    stage = one_stage(objective=recording, batch_size=4, epochs=3, optimizer=SGD(0.1))
    train([stage], begin([stage], seed), split(), normalization=AS_STORED, augment=[Noise()])
    epochs: list[dict[int, bytes]] = [{}, {}, {}]
    for batch in recording.seen:
        for image in batch.images:
            epochs[batch.epoch][int(image[0, 0, 0])] = image.tobytes()
    return epochs


def test_every_image_is_augmented_anew_in_every_epoch() -> None:
    epochs = images_of()
    assert [len(epoch) for epoch in epochs] == [ROWS] * 3
    assert len({image for epoch in epochs for image in epoch.values()}) == 3 * ROWS


def test_the_students_of_a_seed_see_the_same_images_and_those_of_another_do_not() -> None:
    assert images_of() == images_of()
    for other in (images_of(seed=SEED + 1), images_of(learns="teacher")):
        for here, there in zip(images_of(), other, strict=True):
            assert all(here[row] != there[row] for row in here)


def test_the_loop_numbers_epochs_and_steps_for_the_objective() -> None:
    recording = Recording([])
    stage = one_stage(objective=recording, batch_size=4, epochs=2, optimizer=SGD(0.1))
    train([stage], begin([stage], 0), split(), normalization=AS_STORED)
    assert [(b.epoch, b.step) for b in recording.seen] == [(e, s) for e in (0, 1) for s in range(3)]


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_resumed_training_sees_the_images_an_uninterrupted_one_does(stop: int) -> None:
    class Stop:
        def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
            if len(first.seen) == stop:
                raise KeyboardInterrupt

        def after_epoch(self, progress: Progress, record: Any) -> None:
            pass

    first, rest, whole = Recording([]), Recording([]), Recording([])

    def stage(recording: Recording) -> Any:
        return one_stage(objective=recording, batch_size=4, epochs=3, optimizer=SGD(0.1))

    def run(recording: Recording, progress: Progress, monitor: Any = None) -> None:
        train(
            [stage(recording)],
            progress,
            split(),
            normalization=AS_STORED,
            augment=[Noise()],
            monitor=monitor,
        )

    progress = begin([stage(first)], SEED)
    with pytest.raises(KeyboardInterrupt):
        run(first, progress, Stop())
    run(rest, progress)
    run(whole, begin([stage(whole)], SEED))
    for a, b in zip(first.seen + rest.seen, whole.seen, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        assert (a.epoch, a.step) == (b.epoch, b.step)


def test_without_augmentation_images_are_as_they_are_stored() -> None:
    recording = Recording([])
    stage = one_stage(objective=recording, batch_size=4, epochs=1, optimizer=SGD(0.1))
    train([stage], begin([stage], 0), split(), normalization=AS_STORED)
    rows = np.concatenate([b.images[:, 0, 0, 0] for b in recording.seen]).astype(int)
    images = np.concatenate([b.images for b in recording.seen])
    np.testing.assert_array_equal(images, split().images[rows])
