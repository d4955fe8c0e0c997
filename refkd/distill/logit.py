"""Logit distillation: a student learns from labels and from a frozen teacher's logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refkd.dispatch import Array, namespace
from refkd.distill.objective import Batch, StepResult, select
from refkd.errors import ConfigError
from refkd.losses.distillation import kd_backward, kd_forward
from refkd.losses.spec import KDSpec
from refkd.nn.layer import Layer, add_prefix

__all__ = ["LogitDistillation", "frozen_logits"]

# BLAS treats the last rows of a product that fill no whole register tile in another
# order of summation. Blocks of a multiple of this many rows have no such rows.
_ROW_TILE = 32


@dataclass(frozen=True)
class LogitDistillation:
    """Hinton's objective: ``spec`` between the student's logits and the teacher's.

    The teacher is evaluated in eval mode and is a constant to the loss.

    Attributes
    ----------
    student : Layer
    teacher : Layer or None
        None where every batch brings stored teacher logits.
    spec : KDSpec
    """

    student: Layer
    teacher: Layer | None
    spec: KDSpec

    @property
    def networks(self) -> Mapping[str, Layer]:
        """See :class:`refkd.distill.Objective`."""
        if self.teacher is None:
            return {"student": self.student}
        return {"student": self.student, "teacher": self.teacher}

    @property
    def learns(self) -> tuple[str, ...]:
        """See :class:`refkd.distill.Objective`."""
        return ("student",)

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        """See :class:`refkd.distill.Objective`."""
        return ("teacher",)

    def value_and_grad(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
    ) -> StepResult:
        """Return the terms ``loss``, ``hard``, ``soft`` and the student's gradients."""
        teacher_logits = batch.teacher_logits
        if teacher_logits is None:
            if self.teacher is None:
                raise ConfigError(
                    "LogitDistillation: there is no teacher network and the batch has no "
                    "teacher_logits; give one of them"
                )
            teacher_logits = frozen_logits(
                self.teacher,
                select(params, "teacher"),
                select(state, "teacher"),
                batch.images,
                block=batch.nominal_size,
            )
        own, own_state = select(params, "student"), select(state, "student")
        logits, cache = self.student.forward(own, own_state, batch.images, train=True, rng=rng)
        terms, saved = kd_forward(logits, teacher_logits, batch.labels, self.spec)
        dlogits = kd_backward(1.0, saved, batch.labels, self.spec)
        _, grads = self.student.backward(own, cache, dlogits, need_dx=False)
        next_state = dict(state) | add_prefix("student", self.student.next_state(own_state, cache))
        return StepResult(terms._asdict(), add_prefix("student", grads), next_state)


def frozen_logits(
    network: Layer,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    images: Array,
    *,
    block: int,
) -> Array:
    """Evaluate a frozen network so that a row's result does not depend on its neighbours.

    Parameters
    ----------
    network : Layer
    params, state : mapping of str to array
    images : array, shape (N, ...)
    block : int
        Rows evaluated at once, rounded up to a multiple of 32. The last block is
        filled up with zeros, so that every matrix product has the same shape.

    Returns
    -------
    logits : array, shape (N, C)
        Bit for bit the same for an image wherever it stands in ``images``; logits
        computed once and stored equal those computed during training.
    """
    xp = namespace(images)
    block = -(-block // _ROW_TILE) * _ROW_TILE
    outputs = []
    for start in range(0, images.shape[0], block):
        rows = images[start : start + block]
        missing = block - rows.shape[0]
        if missing:
            rows = xp.concatenate([rows, xp.zeros((missing, *rows.shape[1:]), rows.dtype)])
        logits, _ = network.forward(params, state, rows, train=False)
        outputs.append(logits[: block - missing])
    return outputs[0] if len(outputs) == 1 else xp.concatenate(outputs)
