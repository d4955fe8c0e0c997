"""The training loop: runs the stages of any method, step by step, resumable anywhere.

It computes and nothing else. Progress bars, log files, checkpoints and interrupts are
a :class:`Monitor`'s, which is told of every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple, Protocol

import numpy as np

from refkd.data.augment import Transform
from refkd.data.dataset import Normalization, Split, to_batch
from refkd.data.loader import batches
from refkd.dispatch import Array, Backend, current_backend
from refkd.distill.objective import Batch, select
from refkd.distill.stage import Stage
from refkd.errors import ConfigError
from refkd.nn.layer import Arrays, add_prefix
from refkd.threads import limit_blas_threads
from refkd.train.optim import update_average
from refkd.train.progress import Progress
from refkd.train.seeds import Purpose, generator
from refkd.train.step import TrainingStep, training_step

__all__ = ["Monitor", "begin", "initialise", "train"]

# Floating-point operations of a matrix product; below it a second thread gains microseconds
# on an idle machine and loses milliseconds on a busy one.
_WORTH_A_SECOND_THREAD = 16e6

Evaluate = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, float]]


class Monitor(Protocol):
    """Told what happens; may raise to stop the training between two steps."""

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        """Run after every step; ``progress`` is ready to be saved."""
        ...

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        """Run after every epoch, once its record stands in the history."""
        ...


def initialise(
    stages: Sequence[Stage], seed: int, *, dtype: type[np.floating] = np.float32
) -> tuple[Arrays, Arrays]:
    """Draw the parameters and state of every network that learns in some stage.

    Each network has a generator of its own, by its name, so that neither another network
    nor another training with the same seed shares its weights.
    """
    params: Arrays = {}
    state: Arrays = {}
    names = list(dict.fromkeys(name for stage in stages for name in stage.objective.learns))
    for name in names:
        network = next(s.objective.networks[name] for s in stages if name in s.objective.networks)
        drawn = network.init(generator(seed, Purpose.INIT, name), dtype=dtype)
        params |= add_prefix(name, drawn[0])
        state |= add_prefix(name, drawn[1])
    return params, state


def begin(
    stages: Sequence[Stage],
    seed: int,
    *,
    frozen_params: Mapping[str, Array] | None = None,
    frozen_state: Mapping[str, Array] | None = None,
    dtype: type[np.floating] = np.float32,
) -> Progress:
    """Return the progress of a training that has not taken a step yet.

    Parameters
    ----------
    stages : sequence of Stage
    seed : int
        Of initial weights, batch order and dropout.
    frozen_params, frozen_state : mapping of str to array, optional
        Of networks that do not learn, prefixed: ``teacher.fc1.weight``.
    dtype : float32 or float64
        Of the networks that learn, and so of the batches they are given.
    """
    params, state = initialise(stages, seed, dtype=dtype)
    return Progress(
        seed=seed,
        rng=generator(seed, Purpose.DROPOUT, *stages[0].objective.learns),
        params={**(frozen_params or {}), **params},
        state={**(frozen_state or {}), **state},
    )


def train(
    stages: Sequence[Stage],
    progress: Progress,
    split: Split,
    *,
    normalization: Normalization,
    augment: Sequence[Transform] = (),
    evaluate: Evaluate | None = None,
    monitor: Monitor | None = None,
) -> Progress:
    """Train from where ``progress`` stands to the end of the last stage.

    While it runs, all arrays, also those given to ``evaluate`` and ``monitor``, are the
    selected backend's; when it ends, in whatever way, they are NumPy's.

    Parameters
    ----------
    stages : sequence of Stage
    progress : Progress
        From :func:`begin` or a checkpoint; changed in place, and returned.
    split : Split
        The training images, labels and, where stored, teacher logits.
    normalization : Normalization
        What makes the images model inputs.
    augment : sequence of Transform
        Applied to every image, one by one, before that; each draws from a generator that
        depends on the seed, the epoch and the image alone.
    evaluate : callable, optional
        ``evaluate(params, state)`` after each epoch; its figures join the record.
    monitor : Monitor, optional

    Raises
    ------
    NonFiniteError
        If a loss term or gradient is NaN or infinite; it is named, and neither
        parameters nor optimiser have been touched by that step.
    ConfigError
        If a stage names a network that does not exist, or keeps the best epoch and
        ``evaluate`` reports no ``validation_accuracy``.
    """
    data, backend = _TrainingData(split, normalization, augment), current_backend()
    progress.move(backend.asarray)
    try:
        while progress.stage < len(stages):
            stage = stages[progress.stage]
            if progress.epoch == 0 and progress.step == 0:
                _enter(stage, progress)
            step = training_step(stage)
            with limit_blas_threads(_useful_threads(stage, progress)):
                while progress.epoch < stage.epochs:
                    _run_epoch(stage, step, progress, data, monitor, backend)
                    _close_epoch(stage, progress, len(split), evaluate, monitor)
            if progress.average:
                progress.params |= progress.average
                progress.average = {}
            if stage.keep == "best":
                for kept in (progress.params, progress.state):
                    kept |= {name: array for name, array in progress.best.items() if name in kept}
                progress.best, progress.best_score = {}, None
            progress.stage, progress.epoch = progress.stage + 1, 0
    finally:
        progress.move(backend.to_numpy)
    return progress


class _TrainingData(NamedTuple):
    """What batches are made of; the names are those of :func:`train`."""

    split: Split
    normalization: Normalization
    augment: Sequence[Transform]


def _enter(stage: Stage, progress: Progress) -> None:
    for target, source in stage.start_from.items():
        copied = select(progress.params, source)
        if not copied:
            raise ConfigError(f"Stage.start_from: there is no network {source!r} to start from")
        progress.params = progress.params | add_prefix(target, copied)
        progress.state = progress.state | add_prefix(target, select(progress.state, source))
    learning = _learning(stage, progress.params)
    for name in stage.objective.learns:
        if not select(learning, name):
            raise ConfigError(f"Stage.objective: there is no network {name!r} to train")
    # The optimiser writes in place: from here on these arrays are the loop's own.
    progress.params = progress.params | {name: array.copy() for name, array in learning.items()}
    progress.optimizer = stage.optimizer.init(learning)
    if stage.ema_decay is not None:
        progress.average = {name: array.copy() for name, array in learning.items()}


def _useful_threads(stage: Stage, progress: Progress) -> int | None:
    # By what learns alone: whether a teacher's logits are stored must not change a bit.
    # Convolutions do not count: their products are small, and made side by side.
    learning = _learning(stage, progress.params).values()
    largest = max((a.size for a in learning if a.ndim < 4), default=0)
    return 1 if 2 * stage.batch_size * largest < _WORTH_A_SECOND_THREAD else None


def _learning(stage: Stage, arrays: Mapping[str, Array]) -> Arrays:
    return {n: a for n, a in arrays.items() if n.partition(".")[0] in stage.objective.learns}


def _run_epoch(
    stage: Stage,
    step: TrainingStep,
    progress: Progress,
    data: _TrainingData,
    monitor: Monitor | None,
    backend: Backend,
) -> None:
    steps = -(-len(data.split) // stage.batch_size)
    total = steps * stage.epochs
    for batch in _batches(stage, progress, data, backend):
        taken = progress.epoch * steps + progress.step
        terms, progress.state = step(
            progress.params,
            progress.state,
            progress.optimizer,
            batch,
            progress.rng,
            lr=stage.optimizer.lr * stage.schedule.factor(taken, total),
            where=f"epoch {progress.epoch + 1}, step {progress.step + 1}",
        )
        if stage.ema_decay is not None:
            update_average(progress.average, progress.params, decay=stage.ema_decay)
        for name, term in terms.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + term * len(batch.labels)
        progress.step += 1
        if monitor is not None:
            monitor.after_step(progress, steps)


def _batches(
    stage: Stage, progress: Progress, data: _TrainingData, backend: Backend
) -> Iterator[Batch]:
    split = data.split
    key: tuple[int | str, ...] = (*stage.objective.learns, progress.stage, progress.epoch)
    order = generator(progress.seed, Purpose.ORDER, *key).permutation(len(split))
    dtype = next(iter(_learning(stage, progress.params).values())).dtype
    size, logits = stage.batch_size, split.teacher_logits
    starts = range(progress.step * size, len(split), size)
    rows_of = [order[start : start + size] for start in starts]

    def generator_of(row: int) -> np.random.Generator:
        return generator(progress.seed, Purpose.AUGMENT, *key, row)

    with closing(batches(split.images, rows_of, data.augment, generator_of)) as images:
        for step, (rows, stored) in enumerate(zip(rows_of, images, strict=True), progress.step):
            yield Batch(
                to_batch(backend.asarray(stored), data.normalization, dtype),
                backend.asarray(split.labels[rows]),
                None if logits is None else backend.asarray(logits[rows].astype(dtype, copy=False)),
                size,
                progress.epoch,
                step,
            )


def _close_epoch(
    stage: Stage,
    progress: Progress,
    examples: int,
    evaluate: Evaluate | None,
    monitor: Monitor | None,
) -> None:
    record: dict[str, float] = {"stage": progress.stage + 1, "epoch": progress.epoch + 1}
    record |= {name: value / examples for name, value in progress.sums.items()}
    if evaluate is not None:
        record |= evaluate({**progress.params, **progress.average}, progress.state)
    if stage.keep == "best":
        _keep_if_best(stage, progress, record)
    progress.history.append(record)
    progress.sums = {}
    progress.epoch, progress.step = progress.epoch + 1, 0
    if monitor is not None:
        monitor.after_epoch(progress, record)


def _keep_if_best(stage: Stage, progress: Progress, record: Mapping[str, float]) -> None:
    score = record.get("validation_accuracy")
    if score is None:
        raise ConfigError(
            "Stage.keep: 'best' needs a validation_accuracy after each epoch; give the data a "
            "validation split, or keep the last epoch"
        )
    if progress.best_score is None or score > progress.best_score:
        learned = _learning(stage, progress.params) | progress.average
        learned |= _learning(stage, progress.state)
        progress.best = {name: array.copy() for name, array in learned.items()}
        progress.best_score = score
