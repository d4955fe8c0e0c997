"""Logit distillation: a student learns from labels and from a frozen teacher's logits."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array, namespace
from refkd.distill.objective import Batch, StepResult, select
from refkd.errors import ConfigError
from refkd.losses.distillation import kd_backward, kd_forward
from refkd.losses.spec import KDSpec
from refkd.nn.layer import Layer, add_prefix
from refkd.threads import limit_blas_threads

__all__ = ["LogitDistillation", "frozen_logits"]

_ROW_TILE = 32  # of which the row tiles of most BLAS kernels are divisors
_PROBES = 8


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
        Rows of every matrix product, rounded up to a multiple of 32; those that hold no
        image are zero.

    Returns
    -------
    logits : array, shape (N, C)
        Bit for bit the same for an image wherever it stands in ``images``; logits
        computed once and stored equal those computed during training.

    Notes
    -----
    A matrix product sums in an order that depends on its shape and, with many BLAS
    kernels, on the row: every second group of six on AVX2, the remainder after groups
    of twelve; with several threads, on who computes it. So all products have one shape
    and one thread, and images stand in the rows that were found to sum as row 0 does.
    """
    with limit_blas_threads(1):
        return _in_blocks(network, params, state, images, -(-block // _ROW_TILE) * _ROW_TILE)


def _in_blocks(
    network: Layer,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    images: Array,
    block: int,
) -> Array:
    xp = namespace(images)
    shape, name = tuple(images.shape[1:]), images.dtype.name
    places = _rows_like_the_first(network, block, shape, name)  # type: ignore[arg-type]
    outputs = []
    for start in range(0, max(1, images.shape[0]), len(places)):
        part = images[start : start + len(places)]
        rows = xp.zeros((block, *shape), images.dtype)
        rows[places[: len(part)]] = part
        logits, _ = network.forward(params, state, rows, train=False)
        outputs.append(logits[places[: len(part)]])
    return outputs[0] if len(outputs) == 1 else xp.concatenate(outputs)


@functools.lru_cache(maxsize=64)
def _rows_like_the_first(
    network: Layer, block: int, shape: tuple[int, ...], dtype: str
) -> NDArray[np.intp]:
    """Return the rows of a block in which an image has the same logits as in row 0."""
    rng = np.random.default_rng(0)
    params, state = network.init(rng, dtype=np.dtype(dtype).type)
    alike = np.ones(block, bool)
    for _ in range(_PROBES):  # a few, because another order may round to the same bits
        image = rng.standard_normal(shape).astype(dtype)
        rows = np.ascontiguousarray(np.broadcast_to(image, (block, *shape)))
        logits, _ = network.forward(params, state, rows, train=False)
        alike &= (logits == logits[0]).all(axis=1)
    return np.flatnonzero(alike)
