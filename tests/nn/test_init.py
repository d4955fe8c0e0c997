"""What initial weights are drawn from: ranges, moments, seeds, precision."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.nn import Conv2d, KaimingNormal, Layer, Linear, Normal, Uniform
from refkd.nn.init import Initializer
from tests.nn.layer_problem import LayerProblem

LAYERS = [
    (lambda i: Linear(40, 500, initializer=i), 40, 500),
    (lambda i: Conv2d(6, 90, (3, 5), initializer=i), 90, 1350),
    (lambda i: Conv2d(60, 90, (5, 3), groups=3, initializer=i), 300, 1350),
]
every_layer = pytest.mark.parametrize(
    ("layer_with", "fan_in", "fan_out"), LAYERS, ids=["linear", "conv", "grouped conv"]
)


def drawn(layer: Layer, seed: int = 0) -> dict[str, Any]:
    return layer.init(np.random.default_rng(seed), dtype=np.float64)[0]


def assert_normal(values: np.ndarray, std: float) -> None:
    """Check mean, deviation and the share within one deviation, each to five of its own."""
    n = values.size
    assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * n)
    share = math.erf(math.sqrt(0.5))
    assert abs((np.abs(values) < std).mean() - share) < 5 * math.sqrt(share * (1 - share) / n)


@every_layer
def test_uniform_fills_one_over_root_fan_in(layer_with: Any, fan_in: int, fan_out: int) -> None:
    params, bound = drawn(layer_with(Uniform())), 1 / math.sqrt(fan_in)
    for name, least in (("weight", 0.99), ("bias", 0.9)):
        values = params[name]
        assert least * bound < np.abs(values).max() <= bound
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
        # The variance of a square of a uniform number is (1/5 − 1/9) bound⁴.
        squares = 5 * bound**2 * math.sqrt(4 / 45 / values.size)
        assert abs((values**2).mean() - bound**2 / 3) < squares


@every_layer
def test_kaiming_normal_has_variance_two_over_fan_out(
    layer_with: Any, fan_in: int, fan_out: int
) -> None:
    params = drawn(layer_with(KaimingNormal()))
    assert_normal(params["weight"], math.sqrt(2 / fan_out))
    assert not np.any(params["bias"])


@every_layer
def test_normal_has_the_deviation_it_is_given(layer_with: Any, fan_in: int, fan_out: int) -> None:
    params = drawn(layer_with(Normal(0.01)))
    assert_normal(params["weight"], 0.01)
    assert not np.any(params["bias"])


def test_kaiming_normal_keeps_the_size_of_cotangents_behind_a_relu() -> None:
    layer = Conv2d(32, 64, 3, padding=1, bias=False, initializer=KaimingNormal())
    problem = LayerProblem(layer, 8, 32, 14, 14, seed=1)
    params = drawn(layer)
    passed = problem.rng.random(problem.dy.shape) < 0.5  # a ReLU stops the other half
    dx, _ = layer.backward(params, problem.cache, problem.dy * passed)
    inside = dx[:, :, 1:-1, 1:-1]  # at the border, some of it goes to the padding
    assert (inside**2).mean() == pytest.approx((problem.dy**2).mean(), rel=0.05)


@pytest.mark.parametrize("initializer", [Uniform(), KaimingNormal(), Normal(2.0)], ids=repr)
def test_float32_weights_are_the_rounded_float64_ones(initializer: Initializer) -> None:
    layer = Conv2d(3, 4, 3, initializer=initializer)
    single, _ = layer.init(np.random.default_rng(0))
    for name, values in drawn(layer).items():
        assert single[name].dtype == np.float32
        np.testing.assert_array_equal(single[name], values.astype(np.float32))


def test_the_default_is_uniform() -> None:
    assert Linear(3, 2) == Linear(3, 2, initializer=Uniform())
    assert Conv2d(3, 2, 1) == Conv2d(3, 2, 1, initializer=Uniform())
    assert Linear(3, 2) != Linear(3, 2, initializer=KaimingNormal())


def test_a_seed_gives_the_linear_layer_it_always_gave() -> None:
    params, _ = Linear(784, 20).init(np.random.default_rng(0))
    digest = hashlib.sha256(params["weight"].tobytes() + params["bias"].tobytes()).hexdigest()
    assert digest == "4a404650728b705ed2c0c6ce09c80d7fdb4401b038be23e631d0f0b803c73daa"


@pytest.mark.parametrize("initializer", [Uniform(), KaimingNormal(), Normal(1.0)], ids=repr)
def test_without_a_bias_none_is_drawn(initializer: Initializer) -> None:
    with_bias = drawn(Linear(5, 4, initializer=initializer))
    without = drawn(Linear(5, 4, bias=False, initializer=initializer))
    assert list(without) == ["weight"]
    np.testing.assert_array_equal(without["weight"], with_bias["weight"])


@pytest.mark.parametrize("std", [0, -1.0, math.nan, math.inf, "small", True])
def test_a_deviation_is_a_positive_number(std: Any) -> None:
    with pytest.raises(ConfigError, match="Normal: std"):
        Normal(std)
