"""refkd's side of a training step: the steps that :func:`refkd.train.loop.train` takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workloads.step import (
    LEARNING_RATE,
    SCALE,
    VERIFY_EPS,
    VERIFY_LEARNING_RATE,
    Workload,
)
from refkd.data.dataset import Normalization, Split, to_batch
from refkd.dispatch import set_default_backend
from refkd.distill import Batch, Objective, Stage
from refkd.train.loop import begin, train
from refkd.train.optim import Adam
from refkd.train.progress import Progress
from refkd.train.schedule import Constant
from refkd.train.step import training_step

__all__ = ["RefkdSide"]

_NORMALIZATION = Normalization(SCALE)


class RefkdSide:
    """One workload, trained by refkd's own loop.

    Parameters
    ----------
    workload : Workload
    backend : str
    timed, verified : Objective
        The objective with dropout, and without.

    Attributes
    ----------
    backend_seconds : float
        How long it took to select the backend.
    """

    def __init__(
        self, workload: Workload, backend: str, *, timed: Objective, verified: Objective
    ) -> None:
        started = time.perf_counter()
        if backend != "numpy":
            set_default_backend(backend)
        self.backend_seconds = time.perf_counter() - started
        self.workload, self.timed, self.verified = workload, timed, verified
        self.params, self.state = workload.params(), workload.state()
        self.split = Split(*workload.data())

    def verify(self, dtype: str) -> dict[str, NDArray[Any]]:
        """Return loss, gradients, parameters and statistics after one step, on the first batch."""
        kind = np.dtype(dtype).type
        params = {name: value.astype(kind) for name, value in self.params.items()}
        state = {
            name: value.astype(kind) if value.dtype.kind == "f" else value.copy()
            for name, value in self.state.items()
        }
        rows = slice(self.workload.batch_size)
        images = to_batch(self.split.images[rows], _NORMALIZATION, kind)
        batch = Batch(images, self.split.labels[rows], None, self.workload.batch_size)
        rng = np.random.default_rng(0)
        result = self.verified.value_and_grad(params, state, batch, rng)
        outputs = {f"gradient of {name}": grad for name, grad in result.grads.items()}
        # The step that is timed may be compiled into one piece, which shows no gradients.
        optimizer = Adam(VERIFY_LEARNING_RATE, eps=VERIFY_EPS)
        step = training_step(
            Stage(self.verified, optimizer, Constant(), 1, self.workload.batch_size)
        )
        moments = optimizer.init(result.grads)
        terms, state = step(params, state, moments, batch, rng, lr=optimizer.lr, where="verify")
        outputs["loss"] = np.asarray(terms["loss"])
        after = params | state
        learned = [name for name in after if name.partition(".")[0] in self.verified.learns]
        return outputs | {f"{name} after the step": after[name] for name in learned}

    def run(self, steps: int) -> list[float]:
        """Train from the initial parameters; return the seconds of each step after the first."""
        stage = Stage(
            self.timed,
            Adam(LEARNING_RATE),
            Constant(),
            epochs=steps + 1,
            batch_size=self.workload.batch_size,
        )
        progress = begin([stage], seed=3)
        progress.params |= self.params
        progress.state |= self.state
        clock = _Clock(steps)
        with contextlib.suppress(_EnoughSteps):
            train([stage], progress, self.split, normalization=_NORMALIZATION, monitor=clock)
        return [float(seconds) for seconds in np.diff(clock.stamps)]


class _EnoughSteps(Exception):
    """Ends a training between two steps."""


class _Clock:
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.stamps: list[float] = []

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        self.stamps.append(time.perf_counter())
        if len(self.stamps) > self.steps:
            raise _EnoughSteps

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        """An epoch's end costs what it costs; its time falls on the next step."""
