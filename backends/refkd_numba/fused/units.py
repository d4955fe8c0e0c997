"""Layers that are two or three of refkd's in one: convolution, batch norm, ReLU.

A unit's parameters, state and gradients carry the names of the layers it stands for. Where
its kernels do not serve, it runs those layers one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import BatchNorm2d, Conv2d
from refkd.nn.conv import Conv2dCache
from refkd.nn.layer import Arrays, Layer, add_prefix, check_no_taps, split_by_prefix
from refkd.nn.norm import BatchNorm2dCache
from refkd.ops.activation import relu_backward, relu_forward
from refkd.ops.im2col import ConvSizes
from refkd_numba import conv
from refkd_numba.batch_norm import batch_norm_relu_backward, batch_norm_relu_forward
from refkd_numba.join import masked_gradient
from refkd_numba.layout import as_images, channels_last
from refkd_numba.operands import are_float32, is_positive

__all__ = ["ConvNorm", "ConvReLU", "Kept", "Norm"]


@dataclass
class Kept:
    """What a unit of a frozen network made of its arrays: one thing for each algorithm."""

    arrays: tuple[Array, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def get(self, algorithm: str, arrays: tuple[Array, ...], make: Callable[[], Any]) -> Any:
        """Return ``make()``, or what it returned for the same arrays."""
        if tuple(map(id, arrays)) != tuple(map(id, self.arrays)):
            self.arrays, self.made = arrays, {}
        if algorithm not in self.made:
            self.made[algorithm] = make()
        return self.made[algorithm]


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
    kept : Kept or None
        For a network that does not learn.
    """

    name: str
    conv: Conv2d
    kept: Kept | None = field(default=None, compare=False)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConvReLUCache]:
        y = self.infer(params, state, x)
        return y, ConvReLUCache(x, y)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        own = _of(self.name, params)
        weight, bias, g = _convolution(self.conv, own, x)
        if g is None:
            return relu_forward(self.conv.infer(own, {}, x))
        packed = None
        if self.kept is not None:
            make = functools.partial(_packed, weight, g)
            packed = self.kept.get(conv.algorithm(g), (weight,), make)
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
        check_no_taps(self, taps)
        x, y = cache
        if are_float32(y, dy):
            gradient, dbias = masked_gradient(channels_last(dy), channels_last(y))
            between = as_images(gradient)
        else:
            between, dbias = relu_backward(dy, y), None
        dx, grads = _convolution_backward(
            self.conv, _of(self.name, params), x, between, dbias, need_dx=need_dx
        )
        return dx, add_prefix(self.name, grads)


class NormCache(NamedTuple):
    norm: BatchNorm2dCache
    y: Array | None  # where a ReLU is behind the norm


@dataclass(frozen=True)
class Norm(Layer):
    """batch_norm(x), or max(batch_norm(x), 0).

    Attributes
    ----------
    name : str
        Of the norm.
    norm : BatchNorm2d
    relu : bool
        Whether a ReLU is behind it.
    """

    name: str
    norm: BatchNorm2d
    relu: bool

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, NormCache]:
        own, statistics = _of(self.name, params), _of(self.name, state)
        of_batch = train or not self.norm.track_running_stats
        result = NotImplemented
        if self.relu and getattr(x, "ndim", 0) == 4:
            result = batch_norm_relu_forward(
                x,
                own["weight"],
                own["bias"],
                None if of_batch else statistics["running_mean"],
                None if of_batch else statistics["running_var"],
                eps=self.norm.eps,
            )
        if result is NotImplemented:
            y, cache = self.norm.forward(own, statistics, x, train=train)
            y = relu_forward(y) if self.relu else y
        else:
            y, mean, var, rstd = result
            cache = BatchNorm2dCache(x, mean, var, rstd, of_batch)
        return y, NormCache(cache, y if self.relu else None)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: NormCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        own, (norm, y) = _of(self.name, params), cache
        result = NotImplemented
        if y is not None:
            result = batch_norm_relu_backward(
                dy,
                y,
                norm.x,
                own["weight"],
                norm.mean,
                norm.rstd,
                batch_statistics=norm.batch_statistics,
            )
        if result is NotImplemented:
            dy = dy if y is None else relu_backward(dy, y)
            dx, grads = self.norm.backward(own, norm, dy)
        else:
            dx, grads = result[0], {"weight": result[1], "bias": result[2]}
        return dx if need_dx else None, add_prefix(self.name, grads)

    def next_state(self, state: Mapping[str, Array], cache: NormCache) -> Arrays:
        return add_prefix(self.name, self.norm.next_state(_of(self.name, state), cache.norm))


class ConvNormCache(NamedTuple):
    x: Array
    norm: NormCache


@dataclass(frozen=True)
class ConvNorm(Layer):
    """batch_norm(conv(x)), or max(batch_norm(conv(x)), 0).

    Attributes
    ----------
    name : str
        Of the convolution.
    conv : Conv2d
    norm : Norm
    kept : Kept or None
        For a network that does not learn.

    Notes
    -----
    In evaluation the norm is an affine map of each channel, which the weight and the bias of
    the convolution take in: conv(x) s + t with s = w/√(v + ε), t = b − μ s.
    """

    name: str
    conv: Conv2d
    norm: Norm
    kept: Kept | None = field(default=None, compare=False)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConvNormCache]:
        between, _ = self.conv.forward(_of(self.name, params), {}, x, train=train)
        y, cache = self.norm.forward(params, state, between, train=train)
        return y, ConvNormCache(x, cache)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        own, of_norm = _of(self.name, params), _of(self.norm.name, params)
        statistics = _of(self.norm.name, state)
        weight, bias, g = _convolution(self.conv, own, x)
        if g is None or not _folds(self.norm.norm, of_norm, statistics, g):
            y, _ = self.forward(params, state, x, train=False)
            return y
        fold = functools.partial(_folded, weight, bias, of_norm, statistics, self.norm.norm.eps)
        relu = self.norm.relu
        if self.kept is None:
            return conv.forward(x, *fold(), g, relu=relu)

        def make() -> tuple[conv.Packed, Array]:
            folded, shift = fold()
            return _packed(folded, g), shift

        arrays = (*own.values(), *of_norm.values(), *statistics.values())
        packed, shift = self.kept.get(conv.algorithm(g), arrays, make)
        return conv.forward(x, weight, shift, g, relu=relu, prepared=packed)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ConvNormCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        between, grads = self.norm.backward(params, cache.norm, dy)
        own, dbias = _of(self.name, params), None
        if self.conv.bias and cache.norm.norm.batch_statistics:
            dbias = np.zeros_like(own["bias"])  # the mean takes it away
        dx, conv_grads = _convolution_backward(
            self.conv, own, cache.x, between, dbias, need_dx=need_dx
        )
        return dx, add_prefix(self.name, conv_grads) | grads

    def next_state(self, state: Mapping[str, Array], cache: ConvNormCache) -> Arrays:
        return self.norm.next_state(state, cache.norm)


def _of(name: str, arrays: Mapping[str, Array]) -> Arrays:
    return split_by_prefix(arrays).get(name, {})


def _convolution(
    layer: Conv2d, params: Mapping[str, Array], x: Array
) -> tuple[Array, Array | None, ConvSizes | None]:
    """Return weight, bias and the sizes, which are None where the layer must judge."""
    weight, bias = params["weight"], params["bias"] if layer.bias else None
    return weight, bias, conv.forward_sizes(x, weight, bias, **layer.options())


def _convolution_backward(
    layer: Conv2d,
    params: Mapping[str, Array],
    x: Array,
    dy: Array,
    dbias: Array | None,
    *,
    need_dx: bool,
) -> tuple[Array | None, Arrays]:
    """Return what the layer's backward does; dbias need not be summed where it is given."""
    weight = params["weight"]
    g = conv.backward_sizes(dy, x, weight, **layer.options())
    if g is None:
        return layer.backward(params, Conv2dCache(x), dy, need_dx=need_dx)
    gradient = channels_last(dy)
    grads = {"weight": conv.backward_weight(gradient, x, g)}
    if layer.bias:
        grads["bias"] = conv.bias_gradient(gradient) if dbias is None else dbias
    return conv.backward_input(gradient, weight, g) if need_dx else None, grads


def _folds(
    norm: BatchNorm2d, params: Mapping[str, Array], statistics: Mapping[str, Array], g: ConvSizes
) -> bool:
    """Return whether a norm is the same map for every image, of the channels of ``g``."""
    if not norm.track_running_stats or not is_positive(norm.eps):
        return False
    affine = params["weight"], params["bias"]
    moments = statistics["running_mean"], statistics["running_var"]
    return are_float32(*affine, *moments) and affine[0].shape == (g.outputs,)


def _folded(
    weight: Array,
    bias: Array | None,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    eps: float,
) -> tuple[Array, Array]:
    """Return the weight and the bias of a convolution that does what a norm behind it does."""
    scale = params["weight"] / np.sqrt(statistics["running_var"] + np.float32(eps))
    shift = -statistics["running_mean"] if bias is None else bias - statistics["running_mean"]
    return weight * scale[:, None, None, None], params["bias"] + shift * scale


def _packed(weight: Array, g: ConvSizes) -> conv.Packed:
    """Return a packed weight that is not recycled memory."""
    return conv.prepare(weight, g, functools.partial(np.empty, dtype=np.float32))
