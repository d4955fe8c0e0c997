"""What is minimised: the objective contract, and plain supervised learning.

An objective names its networks, which of them learn, and computes loss terms and
gradients for one batch. It holds no arrays and draws no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from refkd.dispatch import Array
from refkd.losses.cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from refkd.nn.layer import Arrays, Layer, add_prefix

__all__ = ["Batch", "Objective", "StepResult", "Supervised", "select"]


class Batch(NamedTuple):
    """One batch, already in the parameters' dtype.

    Attributes
    ----------
    images : array, shape (B, ...)
    labels : integer array, shape (B,)
    teacher_logits : array, shape (B, C), or None
        Stored logits, which stand in for the teacher network.
    nominal_size : int
        B of a full batch; the last batch of an epoch may be smaller.
    """

    images: Array
    labels: Array
    teacher_logits: Array | None
    nominal_size: int


class StepResult(NamedTuple):
    """Loss terms, gradients and new state of one batch.

    Attributes
    ----------
    terms : dict of str to array, shape ()
        ``"loss"`` is what the gradients belong to; the others are its parts.
    grads : dict of str to array
        By prefixed parameter name, for the networks that learn.
    state : dict of str to array
        Prefixed, of all networks.
    """

    terms: dict[str, Array]
    grads: Arrays
    state: Arrays


class Objective(Protocol):
    """A loss on one or more networks; parameters carry the network's name as prefix."""

    @property
    def networks(self) -> Mapping[str, Layer]:
        """The networks by name: ``{"student": ..., "teacher": ...}``."""
        ...

    @property
    def learns(self) -> tuple[str, ...]:
        """The networks whose parameters receive gradients."""
        ...

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        """The networks whose outputs are constants to the loss."""
        ...

    def value_and_grad(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
    ) -> StepResult:
        """Return loss terms, gradients and the state after this batch."""
        ...


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy with the labels.

    Attributes
    ----------
    network : Layer
    name : str
        Prefix of its parameters.
    label_smoothing : float, in [0, 1]
    """

    network: Layer
    name: str = "student"
    label_smoothing: float = 0.0

    @property
    def networks(self) -> Mapping[str, Layer]:
        """See :class:`Objective`."""
        return {self.name: self.network}

    @property
    def learns(self) -> tuple[str, ...]:
        """See :class:`Objective`."""
        return (self.name,)

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        """See :class:`Objective`."""
        return ()

    def value_and_grad(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
    ) -> StepResult:
        """Return the cross-entropy and its gradients."""
        own, own_state = select(params, self.name), select(state, self.name)
        logits, cache = self.network.forward(own, own_state, batch.images, train=True, rng=rng)
        smoothing = self.label_smoothing
        loss, log_q = softmax_cross_entropy_forward(logits, batch.labels, label_smoothing=smoothing)
        dlogits = softmax_cross_entropy_backward(
            1.0, log_q, batch.labels, label_smoothing=smoothing
        )
        _, grads = self.network.backward(own, cache, dlogits, need_dx=False)
        next_state = dict(state) | add_prefix(self.name, self.network.next_state(own_state, cache))
        return StepResult({"loss": loss}, add_prefix(self.name, grads), next_state)


def select(arrays: Mapping[str, Array], network: str) -> Arrays:
    """Return the entries of one network, without its prefix."""
    prefix = f"{network}."
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
