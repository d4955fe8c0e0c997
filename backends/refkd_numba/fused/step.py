"""Training steps of convolutional networks: the kernels, on rewritten networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refkd.dispatch import Array
from refkd.distill import Batch, LogitDistillation, Objective, Optimizer, Supervised
from refkd.nn import BatchNorm2d, Conv2d
from refkd.nn.layer import Arrays, Layer
from refkd.train.step import EagerStep
from refkd_numba.fused.network import all_in, fuse
from refkd_numba.fused.parts import InParts

__all__ = ["FusedStep", "compile_step"]


@dataclass(frozen=True)
class FusedStep:
    """A step on rewritten networks in float32, on the given ones otherwise.

    Attributes
    ----------
    given, fused : EagerStep
    """

    given: EagerStep
    fused: EagerStep

    def __call__(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
        *,
        lr: float,
        where: str,
    ) -> tuple[dict[str, float], Arrays]:
        """See :class:`refkd.train.step.TrainingStep`."""
        single = (batch.images, *params.values())
        # What a state counts are integers.
        single += tuple(a for a in state.values() if getattr(a, "dtype", None) != np.int64)
        fits = all(type(a) is np.ndarray and a.dtype == np.float32 for a in single)
        step = self.fused if fits and batch.images.ndim == 4 else self.given
        return step(params, state, optimizer_state, batch, rng, lr=lr, where=where)


def compile_step(objective: Objective, optimizer: Optimizer) -> FusedStep | None:
    """Return a step for an objective on networks of convolutions, None for others."""
    if not any(isinstance(layer, Conv2d) for layer in all_in(objective.networks.values())):
        return None
    if type(objective) is Supervised:
        fused: Objective = dataclasses.replace(objective, network=fuse(objective.network))
    elif type(objective) is LogitDistillation:
        fused = dataclasses.replace(
            objective, student=fuse(objective.student), teacher=_fused_teacher(objective)
        )
    else:
        return None
    return FusedStep(EagerStep(objective, optimizer), EagerStep(fused, optimizer))


def _fused_teacher(objective: LogitDistillation) -> Layer | None:
    if objective.teacher is None or objective.exact:
        return objective.teacher  # exactly what is stored of it, which other code computes
    if objective.teacher_mode == "train":
        return fuse(objective.teacher)
    fused = fuse(objective.teacher, frozen=True)
    return fused if _mixes_images(objective.teacher) else InParts(fused)


def _mixes_images(network: Layer) -> bool:
    """Return whether what it says of an image in evaluation depends on those beside it."""
    return any(
        isinstance(layer, BatchNorm2d) and not layer.track_running_stats
        for layer in all_in([network])
    )
