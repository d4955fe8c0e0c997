"""A body and its shortcut; the contract is in test_composite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError, ShapeError
from refkd.nn import Dropout, Linear, Residual, Sequential, Tanh
from tests.nn.composite_layers import DOWNSAMPLING, IDENTITY, IMAGES
from tests.nn.layer_problem import LayerProblem, assert_exact

BODY = ["conv1", "bn1", "tanh", "conv2", "bn2"]


def test_the_names_are_those_of_torchvision() -> None:
    params, state = DOWNSAMPLING.shapes()
    assert list(params) == [
        *("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"),
        *("downsample.0.weight", "downsample.1.weight", "downsample.1.bias"),
    ]
    assert list(state) == [
        f"{norm}.{name}"
        for norm in ("bn1", "bn2", "downsample.1")
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]


def test_the_output_is_the_sum_of_body_and_shortcut() -> None:
    problem = LayerProblem(DOWNSAMPLING, *IMAGES)
    features = problem.features()
    assert list(features) == [*BODY, "downsample.0", "downsample.1", "downsample"]
    np.testing.assert_array_equal(problem.y, features["bn2"] + features["downsample"])
    np.testing.assert_array_equal(features["downsample"], features["downsample.1"])


def test_without_a_layer_the_shortcut_is_the_identity() -> None:
    problem = LayerProblem(IDENTITY, *IMAGES, seed=1)
    assert list(problem.features()) == ["conv", "norm", "silu"]
    np.testing.assert_array_equal(problem.y, problem.features()["silu"] + problem.x)


def test_the_cotangent_passes_an_identity_unchanged() -> None:
    body = Sequential((("fc", Linear(3, 3, bias=False)),))
    problem = LayerProblem(Residual(body), 4, 3)
    dx, _ = problem.backward(problem.dy)
    np.testing.assert_array_equal(dx, problem.dy @ problem.params["fc.weight"] + problem.dy)


def test_the_gradient_of_a_zero_body_is_that_of_the_shortcut_alone() -> None:
    body = Sequential((("fc", Linear(3, 2)),))
    problem = LayerProblem(Residual(body, Linear(3, 2)), 4, 3, seed=2)
    for name in ("fc.weight", "fc.bias"):
        problem.params[name] = np.zeros_like(problem.params[name])
    dx, grads = problem.backward(problem.dy)
    np.testing.assert_array_equal(dx, problem.dy @ problem.params["downsample.weight"])
    np.testing.assert_array_equal(grads["downsample.weight"], problem.dy.T @ problem.x)
    np.testing.assert_array_equal(grads["fc.weight"], problem.dy.T @ problem.x)


def test_residual_layers_nest() -> None:
    inner = Residual(Sequential((("fc", Linear(3, 3)), ("tanh", Tanh()))))
    outer = Residual(Sequential((("inner", inner), ("out", Linear(3, 2)))), Linear(3, 2), "skip")
    problem = LayerProblem(outer, 4, 3, seed=3)
    taps = {path: problem.tap(path) for path in ("inner.fc", "inner", "skip")}
    assert_exact(problem, problem.dy, taps, mode="full")


def test_body_and_shortcut_draw_in_turn() -> None:
    layer = Residual(Sequential((("drop", Dropout(0.5)),)), Dropout(0.5), "skip")
    x = np.ones((40, 40))
    y, cache = layer.forward({}, {}, x, train=True, rng=np.random.default_rng(4))
    features = dict(layer.features(cache))
    np.testing.assert_array_equal(y, features["drop"] + features["skip"])
    assert (features["drop"] != features["skip"]).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("shortcut", [Linear(4, 1), None])
def test_shapes_that_would_broadcast_are_an_error(shortcut: Linear | None) -> None:
    width = 1 if shortcut is None else 4
    layer = Residual(Sequential((("fc", Linear(4, width)),)), shortcut)
    params, state = layer.init(np.random.default_rng(0), dtype=np.float64)
    with pytest.raises(ShapeError, match=r"Residual\.forward: expected equal shapes, got body"):
        layer.forward(params, state, np.zeros((3, 4)), train=True)


@pytest.mark.parametrize("body", [Tanh(), (("tanh", Tanh()),), None])
def test_the_body_is_a_sequential(body: Any) -> None:
    with pytest.raises(ConfigError, match=r"Residual: body must be a Sequential, got .*numbered"):
        Residual(body)


@pytest.mark.parametrize("name", [3, None, ("a",), ["a"]])
def test_the_name_of_a_shortcut_is_a_string(name: Any) -> None:
    with pytest.raises(ConfigError, match="Residual: shortcut_name must be a string, got"):
        Residual(Sequential.numbered(Tanh()), Tanh(), name)
