"""Layers that use the parts of the contract which the package's own layers leave out.

Tuples in and out, integer inputs, cotangents that are None, running statistics; and a
network of them. Written for tests, so they check nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.nn import Layer, Linear, Sequential, Tanh


class Inputs(NamedTuple):
    inputs: Any


@dataclass(frozen=True)
class Embed(Layer):
    """(ids (N,), values (N, k)) → (table[ids], values Wᵀ), both (N, width)."""

    size: int
    width: int
    values: int

    def shapes(self):
        return {"table": (self.size, self.width), "weight": (self.width, self.values)}, {}

    def init(self, rng, *, dtype=np.float32):
        return {n: rng.standard_normal(s).astype(dtype) for n, s in self.shapes()[0].items()}, {}

    def forward(self, params, state, x, *, train, rng=None):
        ids, values = x
        return (params["table"][ids], values @ params["weight"].T), Inputs(x)

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        ids, values = cache.inputs
        grads = {name: np.zeros_like(p) for name, p in params.items()}
        dvalues = None
        if dy[0] is not None:
            np.add.at(grads["table"], ids, dy[0])
        if dy[1] is not None:
            grads["weight"] += dy[1].T @ values
            dvalues = dy[1] @ params["weight"]
        return (None, dvalues) if need_dx else None, grads


@dataclass(frozen=True)
class Mix(Layer):
    """(a, b) → (sin(a) b, a²)."""

    def forward(self, params, state, x, *, train, rng=None):
        a, b = x
        return (np.sin(a) * b, a * a), Inputs(x)

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        a, b = cache.inputs
        da, db = np.zeros_like(a), None
        if dy[0] is not None:
            da, db = da + dy[0] * np.cos(a) * b, dy[0] * np.sin(a)
        if dy[1] is not None:
            da = da + dy[1] * 2 * a
        return (da, db) if need_dx else None, {}


@dataclass(frozen=True)
class Join(Layer):
    """(a, b) → a b + a."""

    def forward(self, params, state, x, *, train, rng=None):
        a, b = x
        return a * b + a, Inputs(x)

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        a, b = cache.inputs
        return (dy * (b + 1), dy * a) if need_dx else None, {}


class BatchStatisticsCache(NamedTuple):
    normalised: Any
    rstd: Any
    mean: Any
    variance: Any
    train: bool


@dataclass(frozen=True)
class BatchStatistics(Layer):
    """x (N, width) normalised by the batch's statistics, in evaluation by the running ones."""

    width: int

    def shapes(self):
        per_feature = (self.width,)
        return (
            {"weight": per_feature, "bias": per_feature},
            {"running_mean": per_feature, "running_var": per_feature, "num_batches_tracked": ()},
        )

    def init(self, rng, *, dtype=np.float32):
        ones, zeros = np.ones(self.width, dtype), np.zeros(self.width, dtype)
        return (
            {"weight": ones, "bias": zeros},
            {
                "running_mean": zeros.copy(),
                "running_var": ones.copy(),
                "num_batches_tracked": np.zeros((), np.int64),
            },
        )

    def forward(self, params, state, x, *, train, rng=None):
        mean = x.mean(axis=0) if train else state["running_mean"]
        centred = x - mean
        variance = (centred * centred).mean(axis=0) if train else state["running_var"]
        rstd = 1 / np.sqrt(variance + 1e-5)
        normalised = centred * rstd
        y = normalised * params["weight"] + params["bias"]
        return y, BatchStatisticsCache(normalised, rstd, mean, variance, train)

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        h = cache.normalised
        grads = {"weight": (dy * h).sum(axis=0), "bias": dy.sum(axis=0)}
        dh = dy * params["weight"]
        if cache.train:
            dh = dh - dh.mean(axis=0) - h * (dh * h).mean(axis=0)
        return dh * cache.rstd if need_dx else None, grads

    def next_state(self, state, cache):
        return {
            "running_mean": 0.9 * state["running_mean"] + 0.1 * cache.mean,
            "running_var": 0.9 * state["running_var"] + 0.1 * cache.variance,
            "num_batches_tracked": np.asarray(state["num_batches_tracked"] + 1),
        }


@dataclass(frozen=True)
class Fork(Layer):
    """x (N, width) → (x Uᵀ, tanh(x Vᵀ)), three and two wide."""

    width: int

    def shapes(self):
        return {"u": (3, self.width), "v": (2, self.width)}, {}

    def init(self, rng, *, dtype=np.float32):
        return {n: rng.standard_normal(s).astype(dtype) for n, s in self.shapes()[0].items()}, {}

    def forward(self, params, state, x, *, train, rng=None):
        gate = np.tanh(x @ params["v"].T)
        return (x @ params["u"].T, gate), Inputs((x, gate))

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        x, gate = cache.inputs
        dx = np.zeros_like(x)
        grads = {name: np.zeros_like(p) for name, p in params.items()}
        if dy[0] is not None:
            grads["u"] += dy[0].T @ x
            dx = dx + dy[0] @ params["u"]
        if dy[1] is not None:
            dz = dy[1] * (1 - gate * gate)
            grads["v"] += dz.T @ x
            dx = dx + dz @ params["v"]
        return dx if need_dx else None, grads


WHOLE_CONTRACT = Sequential(
    (
        ("embed", Embed(size=5, width=4, values=3)),
        ("mix", Mix()),
        ("join", Join()),
        (
            "body",
            Sequential(
                (
                    ("0", Linear(4, 6)),
                    ("norm", BatchStatistics(6)),
                    ("inner", Sequential.numbered(Tanh(), Linear(6, 6, bias=False))),
                )
            ),
        ),
        ("head", Fork(6)),
    )
)
"""Tuples at both ends, ids that take no cotangent, state, two levels of nesting."""
