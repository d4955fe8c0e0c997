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
from refkd.distill.heads import checked_weights, separate_heads
from refkd.errors import check_unit_interval
from refkd.losses.cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from refkd.nn.checks import check_layer
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
    epoch, step : int
        Where the training stands: the epoch of the stage and the step of the epoch, both
        from 0.
    """

    images: Array
    labels: Array
    teacher_logits: Array | None
    nominal_size: int
    epoch: int = 0
    step: int = 0


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
    """Cross-entropy with the labels, of one head or of several.

    Attributes
    ----------
    network : Layer
    name : str
        Prefix of its parameters.
    label_smoothing : float, in [0, 1]
    head_weights : tuple of float, >= 0
        Of a network that returns several logits, the weight of each in the loss, in the
        order in which it returns them: (1, 0.3, 0.3) for GoogLeNet, whose auxiliary heads
        come last. Empty for a network that returns one array.

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.
    """

    network: Layer
    name: str = "student"
    label_smoothing: float = 0.0
    head_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_layer("Supervised", "network", self.network)
        check_unit_interval("Supervised", "label_smoothing", self.label_smoothing)
        weights = checked_weights("Supervised", self.head_weights)
        object.__setattr__(self, "head_weights", weights)

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
        """Return the cross-entropy and its gradients.

        The terms are the ``loss`` and, with ``head_weights``, the cross-entropy of each
        head: ``head1``, ``head2``, ...

        Raises
        ------
        ConfigError
            If the network does not return one array for each weight.
        """
        own, own_state = select(params, self.name), select(state, self.name)
        outputs, cache = self.network.forward(own, own_state, batch.images, train=True, rng=rng)
        heads = separate_heads(f"Supervised: {self.name}", outputs, self.head_weights)
        weights = self.head_weights or (1.0,)
        losses, cotangents = [], []
        for logits, weight in zip(heads, weights, strict=True):
            loss, log_q = softmax_cross_entropy_forward(
                logits, batch.labels, label_smoothing=self.label_smoothing
            )
            losses.append(loss)
            cotangents.append(
                softmax_cross_entropy_backward(
                    weight, log_q, batch.labels, label_smoothing=self.label_smoothing
                )
            )
        # L = Σ_h w_h CE_h, so each head's cotangent is w_h times its own gradient.
        terms = {"loss": losses[0]}
        if self.head_weights:
            terms = {"loss": sum(w * loss for w, loss in zip(weights, losses, strict=True))}
            terms |= {f"head{number}": loss for number, loss in enumerate(losses, 1)}
        dy = tuple(cotangents) if isinstance(outputs, tuple) else cotangents[0]
        _, grads = self.network.backward(own, cache, dy, need_dx=False)
        next_state = dict(state) | add_prefix(self.name, self.network.next_state(own_state, cache))
        return StepResult(terms, add_prefix(self.name, grads), next_state)


def select(arrays: Mapping[str, Array], network: str) -> Arrays:
    """Return the entries of one network, without its prefix."""
    prefix = f"{network}."
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
