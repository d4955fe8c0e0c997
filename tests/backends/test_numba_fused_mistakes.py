"""Mistakes in what a rewritten network is given: what comes of them is what came before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import get_backend, use_backend
from refkd.distill import Batch, LogitDistillation, Supervised
from refkd.errors import BackendUnavailable
from refkd.losses import KDSpec
from refkd.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Parallel,
    ReLU,
    Sequential,
)
from refkd.nn.layer import Layer, add_prefix
from refkd.train.optim import SGD
from refkd.train.step import EagerStep
from tests.backends.rewritten import assert_same, outcome

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba.fused.network import fuse
from refkd_numba.fused.parts import InParts
from refkd_numba.fused.step import compile_step

Given = dict[str, Any]  # "params", "state", "images"


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba"):
        yield


def network(eps: float = 1e-5, pooled: int = 3) -> Sequential:
    """Return a network that has all of what is rewritten, of 5 classes."""
    branches = Parallel(
        (
            ("wide", Sequential.numbered(Conv2d(6, 4, 3, padding=1), ReLU())),
            ("pooled", MaxPool2d(pooled, 1, pooled // 2)),
            ("normal", Sequential.numbered(BatchNorm2d(6, eps), ReLU())),
        )
    )
    return Sequential(
        (
            ("first", Conv2d(3, 8, 3, padding=1)),
            ("norm1", BatchNorm2d(8, eps)),
            ("relu1", ReLU()),
            ("second", Conv2d(8, 6, 1, bias=False)),
            ("norm2", BatchNorm2d(6, eps)),
            ("branches", branches),
            ("joined", Concat()),
            ("pool", AdaptiveAvgPool2d(1)),
            ("flat", Flatten()),
            ("last", Linear(16, 5)),
        )
    )


def given(layer: Layer) -> Given:
    rng = np.random.default_rng(0)
    params, state = layer.init(rng)
    params = {
        k: (p + 0.1 * rng.standard_normal(p.shape)).astype(p.dtype) for k, p in params.items()
    }
    state = {
        k: (v + rng.uniform(0.1, 0.2, v.shape)).astype(v.dtype) if v.ndim else v
        for k, v in state.items()
    }
    images = rng.standard_normal((6, 3, 9, 9)).astype(np.float32)
    return {"params": params, "state": state, "images": images}


def of(kind: str, name: str, change: Callable[[Any], Any]) -> Callable[[Given], None]:
    """Return the mistake in one array."""

    def spoil(arrays: Given) -> None:
        arrays[kind] = arrays[kind] | {name: change(arrays[kind][name])}

    return spoil


def in_images(change: Callable[[Any], Any]) -> Callable[[Given], None]:
    return lambda arrays: arrays.update(images=change(arrays["images"]))


def without(name: str) -> Callable[[Given], None]:
    return lambda arrays: arrays.update(
        params={k: v for k, v in arrays["params"].items() if k != name}
    )


def double(x: Any) -> Any:
    return x.astype(np.float64)


MISTAKES: dict[str, Callable[[Given], None]] = {
    "none": lambda arrays: None,
    **{
        f"{name}: {words}": of("params", name, change)
        for name in (
            "first.weight",
            "first.bias",
            "norm1.weight",
            "norm1.bias",
            "second.weight",
            "norm2.weight",
            "branches.wide.0.weight",
            "branches.wide.0.bias",
            "branches.normal.0.bias",
        )
        for words, change in {
            "one entry": lambda p: p[(slice(1),) * p.ndim],
            "a row less": lambda p: p[1:],
            "an axis more": lambda p: p[None],
            "no entries": lambda p: p[:0],
            "float64": double,
            "a list": lambda p: p.tolist(),
        }.items()
    },
    **{
        f"{name}: {words}": of("state", name, change)
        for name in ("norm1.running_mean", "norm2.running_var", "branches.normal.0.running_var")
        for words, change in {
            "one entry": lambda v: v[:1],
            "float64": double,
            "integers": lambda v: v.astype(np.int64),
            "an axis more": lambda v: v[None],
        }.items()
    },
    "no bias": without("first.bias"),
    "no weight": without("branches.wide.0.weight"),
    "one image of one pixel": in_images(lambda x: x[:1, :, :1, :1]),
    "other channels": in_images(lambda x: x[:, :2]),
    "no images": in_images(lambda x: x[:0]),
    "no pixels": in_images(lambda x: x[..., :0]),
    "images in a row": in_images(lambda x: x[0]),
    "double images": in_images(double),
    "whole numbers": in_images(lambda x: x.astype(np.int64)),
    "images backwards": in_images(lambda x: x[::-1, :, ::-1]),
}
SPEC = KDSpec.preset("hinton", temperature=4.0, alpha=0.5)
OBJECTIVES: dict[str, Callable[[Layer], Any]] = {
    "supervised": Supervised,
    "with a teacher": lambda layer: LogitDistillation(layer, layer, SPEC, exact=False),
    "with a training teacher": lambda layer: LogitDistillation(
        layer, layer, SPEC, teacher_mode="train", student_eval_from=0
    ),
}
MISTAKEN = {
    "supervised": "student", "with a teacher": "teacher", "with a training teacher": "student"
}  # fmt: skip


def passes(layer: Layer, arrays: Given, *, train: bool) -> Any:
    """Return what forward, next_state and backward return."""
    params, state, images = arrays["params"], arrays["state"], arrays["images"]
    y, cache = layer.forward(params, state, images, train=train)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    dx, grads = layer.backward(params, cache, dy)
    return y, dx, layer.next_state(state, cache), grads


def spoiled(layer: Layer, mistake: str) -> Given:
    arrays = given(layer)
    MISTAKES[mistake](arrays)
    return arrays


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("train", [False, True])
def test_a_network_says_of_a_mistake_what_the_given_one_says(train: bool, mistake: str) -> None:
    layer = network()
    arrays = spoiled(layer, mistake)
    assert_same(*(outcome(passes, n, arrays, train=train) for n in (fuse(layer), layer)))


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("frozen", [False, True])
def test_so_it_does_in_evaluation(frozen: bool, mistake: str) -> None:
    layer = network()
    fused = InParts(fuse(layer, frozen=frozen))
    before = given(layer)
    fused.infer(before["params"], before["state"], before["images"])  # and keeps its weights
    arrays = spoiled(layer, mistake)
    named = arrays["params"], arrays["state"], arrays["images"]
    assert_same(*(outcome(n.infer, *named) for n in (fused, layer)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "layer", [network(eps=1e-38), network(eps=1e6), network(pooled=15), network(pooled=17)]
)
def test_options_that_no_kernel_serves(layer: Layer, train: bool) -> None:
    fused, arrays = fuse(layer), given(layer)
    assert_same(passes(fused, arrays, train=train), passes(layer, arrays, train=train))
    named = arrays["params"], arrays["state"], arrays["images"]
    assert_same(fused.infer(*named), layer.infer(*named))


def taken(step: Any, images: Any, arrays: dict[str, Given]) -> Any:
    """Return all that a step returns or writes, for networks with these arrays."""
    params, state = {}, {}
    for name, own in arrays.items():
        copies = {k: v.copy() for k, v in own["params"].items()}
        params |= add_prefix(name, copies)
        state |= add_prefix(name, own["state"])
    learned = {k: v for k, v in params.items() if k.startswith("student.")}
    terms, new_state = step(
        params, state, SGD(0.1).init(learned), Batch(images, np.arange(len(images)) % 5, None, 6),
        np.random.default_rng(0), lr=0.1, where="here",
    )  # fmt: skip
    return terms, params, new_state


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_so_does_a_step(kind: str, mistake: str) -> None:
    objective = OBJECTIVES[kind](network())
    compiled = compile_step(objective, SGD(0.1))
    assert compiled is not None
    arrays = {name: given(layer) for name, layer in objective.networks.items()}
    arrays[MISTAKEN[kind]] = spoiled(network(), mistake)
    images = arrays[MISTAKEN[kind]]["images"]
    steps = compiled, EagerStep(objective, SGD(0.1))
    assert_same(*(outcome(taken, step, images, arrays) for step in steps))
