"""Normalisation layers: by the statistics of a batch, of a group of channels, of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array, namespace
from refkd.errors import ConfigError, check_positive, check_unit_interval
from refkd.nn.checks import check_counts, check_switch
from refkd.nn.layer import Arrays, Layer, Shapes, check_no_taps
from refkd.ops.batch_norm import (
    batch_norm_backward,
    batch_norm_forward,
    running_statistics,
)
from refkd.ops.group_norm import group_norm_backward, group_norm_forward
from refkd.ops.layer_norm import layer_norm_backward, layer_norm_forward
from refkd.ops.window import check_images

__all__ = ["BatchNorm2d", "GroupNorm", "LayerNorm"]


class NormCache(NamedTuple):
    x: Array
    mean: Array
    rstd: Array


class BatchNorm2dCache(NamedTuple):
    x: Array
    mean: Array
    var: Array  # biased
    rstd: Array
    batch_statistics: bool  # whether mean and var are those of x


@dataclass(frozen=True)
class BatchNorm2d(Layer):
    """Normalise each channel of images (N, C, H, W), then scale and shift it.

    Attributes
    ----------
    num_features : int
        Channels.
    eps : float, above 0
    momentum : float, in [0, 1]
        Share of a batch in the running statistics.
    track_running_stats : bool
        False keeps no statistics: evaluation too uses those of the batch at hand, and
        what the network says of an image depends on the images beside it.

    Raises
    ------
    ConfigError
        On construction, for a number out of range or a switch that is no bool.

    Notes
    -----
    In training a batch is normalised by its own mean and biased variance, in evaluation
    by the running ones. Those are updated as in PyTorch, with the *unbiased* variance of
    the n = N · H · W values of a channel::

        running_mean ← (1 − momentum) running_mean + momentum mean
        running_var  ← (1 − momentum) running_var  + momentum var · n/(n − 1)

    See Also
    --------
    refkd.ops.batch_norm_forward

    References
    ----------
    Ioffe, Szegedy: Batch normalization, ICML 2015.
    """

    num_features: int
    eps: float = 1e-5
    momentum: float = 0.1
    track_running_stats: bool = True

    def __post_init__(self) -> None:
        check_counts("BatchNorm2d", num_features=self.num_features)
        check_positive("BatchNorm2d", "eps", self.eps)
        check_unit_interval("BatchNorm2d", "momentum", self.momentum)
        check_switch("BatchNorm2d", "track_running_stats", self.track_running_stats)

    def shapes(self) -> tuple[Shapes, Shapes]:
        channels = (self.num_features,)
        state: Shapes = {}
        if self.track_running_stats:
            state = {"running_mean": channels, "running_var": channels, "num_batches_tracked": ()}
        return {"weight": channels, "bias": channels}, state

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        state: Arrays = {}
        if self.track_running_stats:
            state = {
                "running_mean": np.zeros(self.num_features, dtype),
                "running_var": np.ones(self.num_features, dtype),
                "num_batches_tracked": np.zeros((), np.int64),
            }
        return _ones_and_zeros(self.num_features, dtype), state

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, BatchNorm2dCache]:
        check_images("BatchNorm2d.forward", "x", x)
        of_batch = train or not self.track_running_stats
        y, mean, var, rstd = batch_norm_forward(
            x,
            params["weight"],
            params["bias"],
            None if of_batch else state["running_mean"],
            None if of_batch else state["running_var"],
            eps=self.eps,
        )
        return y, BatchNorm2dCache(x, mean, var, rstd, of_batch)

    def backward(
        self,
        params: Mapping[str, Array],
        cache: BatchNorm2dCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Array | None, Arrays]:
        check_no_taps(self, taps)
        dx, dweight, dbias = batch_norm_backward(
            dy,
            cache.x,
            params["weight"],
            cache.mean,
            cache.rstd,
            batch_statistics=cache.batch_statistics,
        )
        return dx if need_dx else None, {"weight": dweight, "bias": dbias}

    def next_state(self, state: Mapping[str, Array], cache: BatchNorm2dCache) -> Arrays:
        if not self.track_running_stats or not cache.batch_statistics:
            return dict(state)
        mean, var = running_statistics(
            state["running_mean"],
            state["running_var"],
            cache.mean,
            cache.var,
            momentum=self.momentum,
            count=math.prod(cache.x.shape) // self.num_features,
        )
        tracked = state["num_batches_tracked"]
        return {
            "running_mean": mean,
            "running_var": var,
            # A sum of two numbers is a scalar in NumPy, and the state holds arrays.
            "num_batches_tracked": namespace(tracked).asarray(tracked + 1),
        }


@dataclass(frozen=True)
class GroupNorm(Layer):
    """Normalise groups of channels of (N, C, ...) within each example, then scale and shift.

    Attributes
    ----------
    num_groups : int
        1 normalises an example as a whole, ``num_channels`` each channel by itself.
    num_channels : int
    eps : float, above 0

    Raises
    ------
    ConfigError
        On construction, for a number out of range, or channels that do not divide into
        the groups.

    See Also
    --------
    refkd.ops.group_norm_forward

    References
    ----------
    Wu, He: Group normalization, ECCV 2018.
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_counts("GroupNorm", num_groups=self.num_groups, num_channels=self.num_channels)
        check_positive("GroupNorm", "eps", self.eps)
        if self.num_channels % self.num_groups:
            raise ConfigError(
                f"GroupNorm: num_groups must divide num_channels, got {self.num_groups} groups "
                f"for {self.num_channels} channels"
            )

    def shapes(self) -> tuple[Shapes, Shapes]:
        return {"weight": (self.num_channels,), "bias": (self.num_channels,)}, {}

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return _ones_and_zeros(self.num_channels, dtype), {}

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, NormCache]:
        y, mean, rstd = group_norm_forward(
            x, params["weight"], params["bias"], num_groups=self.num_groups, eps=self.eps
        )
        return y, NormCache(x, mean, rstd)

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
        dx, dweight, dbias = group_norm_backward(
            dy, cache.x, params["weight"], cache.mean, cache.rstd, num_groups=self.num_groups
        )
        return dx if need_dx else None, {"weight": dweight, "bias": dbias}


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Normalise the last axis of (..., num_features), then scale and shift each feature.

    Attributes
    ----------
    num_features : int
    eps : float, above 0

    Raises
    ------
    ConfigError
        On construction, for a number out of range.

    See Also
    --------
    refkd.ops.layer_norm_forward

    References
    ----------
    Ba, Kiros, Hinton: Layer normalization, arXiv:1607.06450.
    """

    num_features: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_counts("LayerNorm", num_features=self.num_features)
        check_positive("LayerNorm", "eps", self.eps)

    def shapes(self) -> tuple[Shapes, Shapes]:
        return {"weight": (self.num_features,), "bias": (self.num_features,)}, {}

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return _ones_and_zeros(self.num_features, dtype), {}

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, NormCache]:
        y, mean, rstd = layer_norm_forward(x, params["weight"], params["bias"], eps=self.eps)
        return y, NormCache(x, mean, rstd)

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
        dx, dweight, dbias = layer_norm_backward(
            dy, cache.x, params["weight"], cache.mean, cache.rstd
        )
        return dx if need_dx else None, {"weight": dweight, "bias": dbias}


def _ones_and_zeros(width: int, dtype: type[np.floating[Any]]) -> Arrays:
    return {"weight": np.ones(width, dtype), "bias": np.zeros(width, dtype)}
