"""Activations and reshaping: layers without parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ShapeError, check_choice
from refkd.nn.layer import Arrays, Layer, check_no_taps
from refkd.ops import activation as ops

__all__ = ["GELU", "Flatten", "ReLU", "SiLU", "Sigmoid", "Tanh"]


class ActivationCache(NamedTuple):
    saved: Array  # the input or the output, whichever the backward kernel takes


class Activation(Layer):
    """A pointwise function: a kernel pair, and whether its backward takes the output."""

    kernels: ClassVar[tuple[Callable[..., Array], Callable[..., Array]]]
    saves_output: ClassVar[bool]

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of both kernels."""
        return {}

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ActivationCache]:
        y = self.kernels[0](x, **self.options())
        return y, ActivationCache(y if self.saves_output else x)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ActivationCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        return self.kernels[1](dy, cache.saved, **self.options()) if need_dx else None, {}


@dataclass(frozen=True)
class ReLU(Activation):
    """max(x, 0); its slope at 0 is 0."""

    kernels = (ops.relu_forward, ops.relu_backward)
    saves_output = True


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(−x))."""

    kernels = (ops.sigmoid_forward, ops.sigmoid_backward)
    saves_output = True


@dataclass(frozen=True)
class Tanh(Activation):
    """The hyperbolic tangent."""

    kernels = (ops.tanh_forward, ops.tanh_backward)
    saves_output = True


@dataclass(frozen=True)
class SiLU(Activation):
    """x σ(x), also known as Swish."""

    kernels = (ops.silu_forward, ops.silu_backward)
    saves_output = False


@dataclass(frozen=True)
class GELU(Activation):
    """x Φ(x).

    Attributes
    ----------
    approximate : {"none", "tanh"}
        See :func:`refkd.ops.gelu_forward`.
    """

    approximate: str = "none"
    kernels = (ops.gelu_forward, ops.gelu_backward)
    saves_output = False

    def __post_init__(self) -> None:
        check_choice("GELU", "approximate", self.approximate, ("none", "tanh"))

    def options(self) -> dict[str, Any]:
        return {"approximate": self.approximate}


class FlattenCache(NamedTuple):
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Flatten(Layer):
    """(N, ...) → (N, product of the rest)."""

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, FlattenCache]:
        if x.ndim < 1:
            raise ShapeError("Flatten: expected a batch (N, ...), got a scalar")
        shape = tuple(x.shape)
        # The size is spelled out: reshape cannot infer -1 for an empty batch.
        return x.reshape(shape[0], int(np.prod(shape[1:]))), FlattenCache(shape)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: FlattenCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        return dy.reshape(cache.shape) if need_dx else None, {}
