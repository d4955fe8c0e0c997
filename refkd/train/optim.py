"""Optimisers as frozen hyperparameters over the update kernels, and gradient clipping.

An optimiser holds no arrays. Its state is a flat dictionary, ``"exp_avg.fc1.weight"``
and the like, which the caller keeps, saves and hands back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refkd.dispatch import Array, namespace
from refkd.errors import ConfigError, check_non_negative, check_positive
from refkd.ops.update import adam_update, ema_update, sgd_update

__all__ = ["SGD", "Adam", "AdamW", "clip_by_global_norm", "global_norm", "update_average"]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; see :func:`refkd.ops.update.sgd_update`.

    Attributes
    ----------
    lr : float, > 0
        Base learning rate; a schedule multiplies it.
    momentum : float, in [0, 1)
    nesterov : bool
        Needs momentum.
    weight_decay : float, >= 0

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_positive("SGD", "lr", self.lr)
        _check_fraction("SGD", "momentum", self.momentum)
        check_non_negative("SGD", "weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise ConfigError("SGD: nesterov=True needs momentum > 0, got 0")

    def init(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """Return the state before the first step: a zero momentum buffer per parameter."""
        return _zeros("momentum_buffer", params)

    def update(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        state: Mapping[str, Array],
        *,
        lr: float,
    ) -> None:
        """Write one step into ``params`` and ``state``; parameters without gradient stay."""
        for name, grad in grads.items():
            sgd_update(
                params[name],
                grad,
                state[f"momentum_buffer.{name}"],
                lr=lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
            )


@dataclass(frozen=True)
class Adam:
    """Adam; see :func:`refkd.ops.update.adam_update`.

    Attributes
    ----------
    lr : float, > 0
        Base learning rate; a schedule multiplies it.
    betas : tuple of two floats, in [0, 1)
    eps : float, > 0
    weight_decay : float, >= 0
        Added to the gradient (L2 regularisation).

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    decoupled = False

    def __post_init__(self) -> None:
        where = type(self).__name__
        check_positive(where, "lr", self.lr)
        check_positive(where, "eps", self.eps)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ConfigError(f"{where}: betas must be a tuple of two, got {self.betas!r}")
        for i, beta in enumerate(self.betas):
            _check_fraction(where, f"betas[{i}]", beta)
        check_non_negative(where, "weight_decay", self.weight_decay)

    def init(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """Return the state before the first step: zero moments and a step count of 0."""
        return {
            "step": np.zeros((), np.int64),
            **_zeros("exp_avg", params),
            **_zeros("exp_avg_sq", params),
        }

    def update(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        state: Mapping[str, Array],
        *,
        lr: float,
    ) -> None:
        """Write one step into ``params`` and ``state``; parameters without gradient stay."""
        state["step"][...] += 1
        step = int(state["step"])
        for name, grad in grads.items():
            adam_update(
                params[name],
                grad,
                state[f"exp_avg.{name}"],
                state[f"exp_avg_sq.{name}"],
                step=step,
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
                decoupled=self.decoupled,
            )


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, .01 by default as in PyTorch."""

    weight_decay: float = 0.01

    decoupled = True


def global_norm(grads: Mapping[str, Array]) -> float:
    """Return √(Σ g²) over all entries of all gradients; NaN or infinite if one is."""
    with np.errstate(over="ignore"):
        total = sum(_sum_of_squares(g) for g in grads.values())
    if math.isinf(total):  # squares overflow long before their root: scale them
        largest = max(float(abs(g).max()) for g in grads.values() if g.size)
        if 0 < largest < math.inf:
            return largest * math.sqrt(sum(_sum_of_squares(g / largest) for g in grads.values()))
    return math.sqrt(total)


def clip_by_global_norm(
    grads: Mapping[str, Array], max_norm: float
) -> tuple[dict[str, Array], float]:
    """Scale the gradients so that their global norm is at most ``max_norm``.

    Returns
    -------
    grads : dict of str to array
        Times min(1, max_norm / (norm + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``.
    norm : float
        Before clipping.
    """
    norm = global_norm(grads)
    scale = float(max_norm) / (norm + 1e-6)
    if scale >= 1:
        return dict(grads), norm
    return {name: grad * scale for name, grad in grads.items()}, norm


def update_average(
    average: Mapping[str, Array], params: Mapping[str, Array], *, decay: float
) -> None:
    """Write one step of the exponential moving average of ``params`` into ``average``."""
    for name, value in average.items():
        ema_update(value, params[name], decay=decay)


def _sum_of_squares(grad: Array) -> float:
    flat = grad.reshape(-1)
    return float(namespace(grad).dot(flat, flat))


def _zeros(prefix: str, params: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": namespace(p).zeros_like(p) for name, p in params.items()}


def _check_fraction(where: str, name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{where}: {name} must be in [0, 1), got {value!r}")
