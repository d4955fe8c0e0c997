"""The MLP workloads in refkd: the steps that :func:`refkd.train.loop.train` itself takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bench.workloads import WORKLOADS
from bench.workloads.mlp import (
    DROPOUT,
    HARD_WEIGHT,
    LEARNING_RATE,
    SCALE,
    TEMPERATURE,
    VERIFY_EPS,
    VERIFY_LEARNING_RATE,
    MLPWorkload,
)
from refkd.data.dataset import Split, to_batch
from refkd.dispatch import set_default_backend
from refkd.distill import Batch, LogitDistillation, Objective, Stage, Supervised
from refkd.losses.spec import KDSpec
from refkd.models import mlp
from refkd.train.loop import begin, train
from refkd.train.optim import Adam
from refkd.train.progress import Progress
from refkd.train.schedule import Constant

__all__ = ["RefkdSide", "open_side"]


def open_side(workload: str, mode: str, threads: int) -> RefkdSide:
    """Return refkd's side of ``workload`` on the backend ``mode``."""
    if mode != "numpy":
        set_default_backend(mode)
    return RefkdSide(WORKLOADS[workload])


class RefkdSide:
    """One workload, trained by refkd's own loop."""

    def __init__(self, workload: MLPWorkload) -> None:
        self.workload = workload
        self.params = workload.params()
        self.split = Split(*workload.data())

    def verify(self) -> dict[str, NDArray[np.float32]]:
        """Return loss, gradients and parameters after one step, on the first batch."""
        workload = self.workload
        objective = _objective(workload, dropout=0.0)
        params = {name: value.copy() for name, value in self.params.items()}
        rows = slice(workload.batch_size)
        images = to_batch(self.split.images[rows], SCALE, np.float32)
        batch = Batch(images, self.split.labels[rows], None, workload.batch_size)
        result = objective.value_and_grad(params, {}, batch, np.random.default_rng(0))
        optimizer = Adam(VERIFY_LEARNING_RATE, eps=VERIFY_EPS)
        optimizer.update(params, result.grads, optimizer.init(result.grads), lr=optimizer.lr)
        outputs = {"loss": np.asarray(result.terms["loss"])}
        outputs |= {f"gradient of {name}": grad for name, grad in result.grads.items()}
        return outputs | {f"{name} after the step": params[name] for name in result.grads}

    def run(self, steps: int) -> list[float]:
        """Train from the initial parameters; return the seconds of each step after the first."""
        stage = Stage(
            _objective(self.workload, dropout=DROPOUT),
            Adam(LEARNING_RATE),
            Constant(),
            epochs=steps + 1,
            batch_size=self.workload.batch_size,
        )
        progress = begin([stage], seed=3, frozen_params=self.params)
        progress.params |= self.params
        clock = _Clock(steps)
        with contextlib.suppress(_EnoughSteps):
            train([stage], progress, self.split, scale=SCALE, monitor=clock)
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


def _objective(workload: MLPWorkload, *, dropout: float) -> Objective:
    networks = {
        name: mlp(
            in_features=widths[0], hidden=widths[1:-1], num_classes=widths[-1], dropout=dropout
        )
        for name, widths in workload.widths.items()
    }
    if "teacher" not in networks:
        return Supervised(networks["student"])
    spec = KDSpec.preset("hinton", temperature=TEMPERATURE, alpha=HARD_WEIGHT)
    return LogitDistillation(networks["student"], networks["teacher"], spec)
