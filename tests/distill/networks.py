"""Small networks with several heads, and how the tests of this folder draw and step them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.distill import Batch, Objective
from refkd.nn import Dropout, Layer, Linear, ReLU, Sequential, Tanh
from refkd.nn.layer import add_cotangents, add_prefix, split_by_prefix
from refkd.testing import check_grad
from tests.nn.contract_layers import BatchStatistics

FEATURES, CLASSES, ROWS = 4, 3, 5


class HeadsCache(NamedTuple):
    trunk: Any
    heads: tuple[Any, ...]


@dataclass(frozen=True)
class Heads(Layer):
    """x → the outputs of all heads on trunk(x), as a tuple."""

    trunk: Layer
    heads: tuple[tuple[str, Layer], ...]

    def children(self):
        return (("trunk", self.trunk), *self.heads)

    def shapes(self):
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for name, layer in self.children():
            own, own_state = layer.shapes()
            params |= add_prefix(name, own)
            state |= add_prefix(name, own_state)
        return params, state

    def init(self, rng, *, dtype=np.float32):
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for name, layer in self.children():
            own, own_state = layer.init(rng, dtype=dtype)
            params |= add_prefix(name, own)
            state |= add_prefix(name, own_state)
        return params, state

    def forward(self, params, state, x, *, train, rng=None):
        of, state_of = split_by_prefix(params), split_by_prefix(state)
        x, trunk = self.trunk.forward(
            of["trunk"], state_of.get("trunk", {}), x, train=train, rng=rng
        )
        outputs, caches = zip(
            *(
                head.forward(of[name], state_of.get(name, {}), x, train=train, rng=rng)
                for name, head in self.heads
            ),
            strict=True,
        )
        return outputs, HeadsCache(trunk, caches)

    def backward(self, params, cache, dy, *, need_dx=True, taps=None):
        of = split_by_prefix(params)
        grads: dict[str, Any] = {}
        dfeature = None
        for (name, head), head_cache, dhead in zip(self.heads, cache.heads, dy, strict=True):
            dx, own = head.backward(of[name], head_cache, dhead)
            dfeature = add_cotangents(dfeature, dx)
            grads |= add_prefix(name, own)
        dx, own = self.trunk.backward(of["trunk"], cache.trunk, dfeature, need_dx=need_dx)
        return dx, add_prefix("trunk", own) | grads

    def next_state(self, state, cache):
        trunk = self.trunk.next_state(split_by_prefix(state).get("trunk", {}), cache.trunk)
        return add_prefix("trunk", trunk)


@dataclass(frozen=True)
class HeadsInTrainingOnly(Heads):
    """As in circulation: in evaluation the auxiliary heads are left out of the output."""

    def forward(self, params, state, x, *, train, rng=None):
        outputs, cache = super().forward(params, state, x, train=train, rng=rng)
        return outputs if train else outputs[0], cache


def hidden(width: int, *layers: tuple[str, Layer]) -> Sequential:
    return Sequential((("fc1", Linear(FEATURES, width)), *layers))


def three(trunk: Layer, width: int, kind: type[Heads] = Heads) -> Heads:
    """Put heads on a trunk; the first auxiliary one is a network of its own."""
    aux2 = Sequential((("fc1", Linear(width, 2)), ("tanh", Tanh()), ("fc2", Linear(2, CLASSES))))
    return kind(
        trunk, (("fc", Linear(width, CLASSES)), ("aux2", aux2), ("aux1", Linear(width, CLASSES)))
    )


THREE_HEADS = three(hidden(5, ("tanh", Tanh())), 5)
DROPPING_HEADS = three(hidden(5, ("tanh", Tanh()), ("dropout", Dropout(0.4))), 5)
NORMALISED_HEADS = three(hidden(5, ("norm", BatchStatistics(5)), ("tanh", Tanh())), 5)
STUDENT = hidden(6, ("tanh", Tanh()), ("fc2", Linear(6, CLASSES)))
# ReLU and dropout are what the published student has; Tanh keeps other tests from kinks.
DROPPING_STUDENT = hidden(
    6, ("relu", ReLU()), ("dropout", Dropout(0.4)), ("fc2", Linear(6, CLASSES))
)
NORMALISED_STUDENT = hidden(
    6, ("norm", BatchStatistics(6)), ("tanh", Tanh()), ("fc2", Linear(6, CLASSES))
)


def drawn(objective: Objective, *, dtype: Any = np.float64) -> tuple[Any, Any, Batch]:
    """Return parameters and state of all networks, and a batch.

    Running statistics are drawn too, so that they differ from those of any batch.
    """
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name, network in objective.networks.items():
        own, own_state = network.init(rng, dtype=dtype)
        params |= add_prefix(name, {k: 3 * v for k, v in own.items()})
        for key, array in own_state.items():
            if array.dtype.kind == "f":
                array = (array + rng.uniform(0.1, 0.5, array.shape)).astype(dtype)
            state[f"{name}.{key}"] = array
    images = rng.standard_normal((ROWS, FEATURES)).astype(dtype)
    return params, state, Batch(images, rng.integers(CLASSES, size=ROWS), None, ROWS)


def step(objective: Objective, params: Any, state: Any, batch: Batch, seed: int = 0) -> Any:
    return objective.value_and_grad(params, state, batch, np.random.default_rng(seed))


def assert_gradient_is_exact(objective: Objective, *, epoch: int = 0) -> None:
    """Check every parameter that learns by the complex step, at one seed of the masks."""
    params, state, batch = drawn(objective)
    learning = {k: v for k, v in params.items() if k.partition(".")[0] in objective.learns}
    constant = {k: v for k, v in params.items() if k not in learning}

    def run(moved: Any) -> Any:
        single = next(iter(moved.values())).dtype == np.float32

        def cast(array: Any) -> Any:
            return array.astype(np.float32) if single and array.dtype.kind == "f" else array

        return step(
            objective,
            {**{k: cast(v) for k, v in constant.items()}, **moved},
            {k: cast(v) for k, v in state.items()},
            batch._replace(images=cast(batch.images), epoch=epoch),
        )

    check_grad(
        lambda **moved: run(moved).terms["loss"],
        learning,
        lambda **moved: run(moved).grads,
        method="complex",
        mode="full",
    ).raise_if_failed()
