"""Layers that are two or three of refkd's in one: convolution, batch norm, ReLU.

A unit's parameters, state and gradients carry the names of the layers it stands for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import BatchNorm2d, Conv2d
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.ops.im2col import ConvSizes, conv_sizes
from refkd_numba import conv
from refkd_numba.batch_norm import batch_norm_relu_backward, batch_norm_relu_forward
from refkd_numba.join import masked_gradient
from refkd_numba.layout import channels_last

__all__ = ["ConvNormReLU", "ConvReLU", "NormReLU", "Prepared"]


@dataclass
class Prepared:
    """What was made of constant arrays, made once: the packed weights of a frozen network."""

    made: dict[Any, tuple[tuple[Array, ...], Any]] = field(default_factory=dict)

    def get(self, key: Any, arrays: tuple[Array, ...], make: Callable[[], Any]) -> Any:
        """Return ``make()``, or what it returned for the same arrays."""
        kept = self.made.get(key)
        if kept is None or any(a is not b for a, b in zip(kept[0], arrays, strict=True)):
            kept = self.made[key] = (arrays, make())
        return kept[1]


class ConvReLUCache(NamedTuple):
    x: Array
    y: Array


@dataclass(frozen=True)
class ConvReLU(Layer):
    """max(conv(x), 0).

    Attributes
    ----------
    name : str
        Of the convolution.
    conv : Conv2d
    prepared : Prepared or None
        For a network that does not learn.
    """

    name: str
    conv: Conv2d
    prepared: Prepared | None = field(default=None, compare=False)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConvReLUCache]:
        weight, bias = params[f"{self.name}.weight"], params.get(f"{self.name}.bias")
        y = conv.forward(x, weight, bias, _sizes(self.conv, x, weight), relu=True)
        return y, ConvReLUCache(x, y)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        weight, bias = params[f"{self.name}.weight"], params.get(f"{self.name}.bias")
        g = _sizes(self.conv, x, weight)
        packed = None
        if self.prepared is not None:
            packed = self.prepared.get((self.name, g), (weight,), lambda: _kept(weight, g))
        return conv.forward(x, weight, bias, g, relu=True, prepared=packed)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ConvReLUCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        weight = params[f"{self.name}.weight"]
        g = _sizes(self.conv, cache.x, weight)
        gradient, dbias = masked_gradient(channels_last(dy), channels_last(cache.y))
        grads = {"weight": conv.backward_weight(gradient, cache.x, g)}
        if self.conv.bias:
            grads["bias"] = dbias
        dx = conv.backward_input(gradient, weight, g) if need_dx else None
        return dx, add_prefix(self.name, grads)


class NormReLUCache(NamedTuple):
    x: Array
    y: Array
    mean: Array
    var: Array
    rstd: Array
    batch_statistics: bool


@dataclass(frozen=True)
class NormReLU(Layer):
    """max(batch_norm(x), 0).

    Attributes
    ----------
    name : str
        Of the norm.
    norm : BatchNorm2d
    """

    name: str
    norm: BatchNorm2d

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, NormReLUCache]:
        of_batch = train or not self.norm.track_running_stats
        y, mean, var, rstd = batch_norm_relu_forward(
            x,
            params[f"{self.name}.weight"],
            params[f"{self.name}.bias"],
            None if of_batch else state[f"{self.name}.running_mean"],
            None if of_batch else state[f"{self.name}.running_var"],
            eps=self.norm.eps,
        )
        return y, NormReLUCache(x, y, mean, var, rstd, of_batch)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: NormReLUCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        dx, dweight, dbias = batch_norm_relu_backward(
            dy,
            cache.y,
            cache.x,
            params[f"{self.name}.weight"],
            cache.mean,
            cache.rstd,
            batch_statistics=cache.batch_statistics,
        )
        return dx, add_prefix(self.name, {"weight": dweight, "bias": dbias})

    def next_state(self, state: Mapping[str, Array], cache: NormReLUCache) -> Arrays:
        prefix = f"{self.name}."
        own = {key.removeprefix(prefix): value for key, value in state.items()}
        return add_prefix(self.name, self.norm.next_state(own, cache))


class ConvNormReLUCache(NamedTuple):
    x: Array
    norm: NormReLUCache


@dataclass(frozen=True)
class ConvNormReLU(Layer):
    """max(batch_norm(conv(x)), 0).

    Attributes
    ----------
    name : str
        Of the convolution.
    conv : Conv2d
    norm : NormReLU
    prepared : Prepared or None
        For a network that does not learn.

    Notes
    -----
    In evaluation the norm is an affine map of each channel, which the weight and the bias of
    the convolution take in: conv(x) s + t with s = w/√(v + ε), t = b − μ s.
    """

    name: str
    conv: Conv2d
    norm: NormReLU
    prepared: Prepared | None = field(default=None, compare=False)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConvNormReLUCache]:
        weight, bias = params[f"{self.name}.weight"], params.get(f"{self.name}.bias")
        between = conv.forward(x, weight, bias, _sizes(self.conv, x, weight))
        y, cache = self.norm.forward(params, state, between, train=train)
        return y, ConvNormReLUCache(x, cache)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        if not self.norm.norm.track_running_stats:
            y, _ = self.forward(params, state, x, train=False)
            return y
        weight = params[f"{self.name}.weight"]
        g = _sizes(self.conv, x, weight)
        if self.prepared is None:
            folded, bias = self._folded(params, state)
            return conv.forward(x, folded, bias, g, relu=True)

        def make() -> tuple[Array, Array]:
            folded, bias = self._folded(params, state)
            return _kept(folded, g), bias

        arrays = (*params.values(), *state.values())
        packed, bias = self.prepared.get((self.name, g), arrays, make)
        return conv.forward(x, weight, bias, g, relu=True, prepared=packed)

    def _folded(
        self, params: Mapping[str, Array], state: Mapping[str, Array]
    ) -> tuple[Array, Array]:
        norm = self.norm.name
        scale = params[f"{norm}.weight"] / np.sqrt(
            state[f"{norm}.running_var"] + np.float32(self.norm.norm.eps)
        )
        shift = -state[f"{norm}.running_mean"]
        if self.conv.bias:
            shift = shift + params[f"{self.name}.bias"]
        weight = params[f"{self.name}.weight"] * scale[:, None, None, None]
        return weight, params[f"{norm}.bias"] + shift * scale

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ConvNormReLUCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        between, grads = self.norm.backward(params, cache.norm, dy)
        weight = params[f"{self.name}.weight"]
        g = _sizes(self.conv, cache.x, weight)
        gradient = channels_last(between)
        own = {"weight": conv.backward_weight(gradient, cache.x, g)}
        if self.conv.bias and cache.norm.batch_statistics:
            own["bias"] = np.zeros_like(params[f"{self.name}.bias"])  # the mean takes it away
        elif self.conv.bias:
            own["bias"] = conv.bias_gradient(gradient)
        dx = conv.backward_input(gradient, weight, g) if need_dx else None
        return dx, add_prefix(self.name, own) | grads

    def next_state(self, state: Mapping[str, Array], cache: ConvNormReLUCache) -> Arrays:
        return self.norm.next_state(state, cache.norm)


def _kept(weight: Array, g: ConvSizes) -> conv.Packed:
    """Return a packed weight that is not recycled memory."""
    return conv.prepare(weight, g, functools.partial(np.empty, dtype=np.float32))


def _sizes(layer: Conv2d, x: Array, weight: Array) -> ConvSizes:
    return conv_sizes("Conv2d", x.shape, weight.shape, **layer.options())
