"""The layers one by one: initialisation, gradients, dropout, flattening."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError, ShapeError
from refkd.nn import GELU, Dropout, Flatten, Layer, Linear, ReLU, Sequential, Sigmoid, SiLU, Tanh
from refkd.testing import check_grad
from refkd.testing.adapters.layer import from_layer

ACTIVATIONS: list[Layer] = [ReLU(), Sigmoid(), Tanh(), SiLU(), GELU(), GELU("tanh")]
every_activation = pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)


def assert_gradient_is_exact(layer: Layer, x: np.ndarray, seed: int = 0) -> None:
    """Check parameters and input by the complex step with a random cotangent."""
    params, state = layer.init(np.random.default_rng(seed), dtype=np.float64)
    subject = from_layer(layer, params, state, x, train=False, rng=seed)
    check_grad(*subject, method="complex", mode="full").raise_if_failed()


@pytest.mark.parametrize(("fan_in", "fan_out"), [(1, 1), (3, 500), (784, 7)])
def test_linear_draws_uniformly_within_one_over_root_fan_in(fan_in: int, fan_out: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    params, state = Linear(fan_in, fan_out).init(np.random.default_rng(0), dtype=np.float64)
    assert state == {}
    drawn = np.concatenate([p.ravel() for p in params.values()])
    assert np.abs(drawn).max() <= bound
    if drawn.size > 1000:
        assert np.abs(drawn).max() > 0.99 * bound
        assert abs(drawn.mean()) < 5 * bound / math.sqrt(3 * drawn.size)
        assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_float32_parameters_are_the_rounded_float64_ones() -> None:
    network = Sequential.numbered(Linear(5, 4), ReLU(), Linear(4, 3))
    double, _ = network.init(np.random.default_rng(1), dtype=np.float64)
    single, _ = network.init(np.random.default_rng(1))
    for name, values in double.items():
        assert single[name].dtype == np.float32
        np.testing.assert_array_equal(single[name], values.astype(np.float32))


def test_layers_of_one_shape_draw_different_parameters() -> None:
    network = Sequential.numbered(Linear(4, 4), Linear(4, 4))
    params, _ = network.init(np.random.default_rng(2))
    assert not np.any(params["0.weight"] == params["1.weight"])
    assert not np.any(params["0.bias"] == params["1.bias"])


@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradient_is_exact(bias: bool) -> None:
    x = np.random.default_rng(3).standard_normal((4, 2, 5))
    assert_gradient_is_exact(Linear(5, 3, bias=bias), x)


def test_linear_without_bias_ignores_a_bias_it_is_handed() -> None:
    layer, x = Linear(2, 2, bias=False), np.ones((1, 2))
    params, _ = layer.init(np.random.default_rng(4), dtype=np.float64)
    y, _ = layer.forward({**params, "bias": np.ones(2)}, {}, x, train=True)
    np.testing.assert_array_equal(y, layer.forward(params, {}, x, train=True)[0])


def test_linear_with_bias_does_not_run_without_one() -> None:
    layer = Linear(2, 2)
    params, _ = layer.init(np.random.default_rng(5), dtype=np.float64)
    with pytest.raises(KeyError, match="bias"):
        layer.forward({"weight": params["weight"]}, {}, np.ones((1, 2)), train=True)


@every_activation
def test_activation_gradient_is_exact(layer: Layer) -> None:
    assert_gradient_is_exact(layer, 3 * np.random.default_rng(6).standard_normal((5, 4)))


@every_activation
def test_activation_has_no_parameters_and_needs_no_dx(layer: Layer) -> None:
    x = np.random.default_rng(7).standard_normal((2, 3))
    y, cache = layer.forward({}, {}, x, train=True)
    assert y.shape == x.shape
    assert layer.backward({}, cache, y, need_dx=False) == (None, {})
    assert layer.init(np.random.default_rng(0)) == layer.shapes() == ({}, {})


@pytest.mark.parametrize("layer", [*ACTIVATIONS, Flatten(), Dropout(), Linear(3, 3)], ids=repr)
def test_a_leaf_has_no_features_to_tap(layer: Layer) -> None:
    params, _ = layer.init(np.random.default_rng(8), dtype=np.float64)
    x = np.ones((2, 3))
    y, cache = layer.forward(params, {}, x, train=False)
    assert list(layer.features(cache)) == []
    with pytest.raises(ConfigError, match=f"{type(layer).__name__}.backward: tap 'x'"):
        layer.backward(params, cache, y, taps={"x": y})


def test_relu_has_slope_zero_at_zero() -> None:
    layer, x = ReLU(), np.array([[-1.0, -0.0, 0.0, 1.0]])
    _, cache = layer.forward({}, {}, x, train=True)
    dx, _ = layer.backward({}, cache, np.full((1, 4), 3.0))
    np.testing.assert_array_equal(dx, [[0, 0, 0, 3]])


def test_an_unknown_gelu_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tanh'"):
        GELU("tan")


@pytest.mark.parametrize("shape", [(3, 2, 4), (3,), (0, 2, 4), (0,), (5, 0, 2)])
def test_flatten_keeps_the_batch_and_inverts_itself(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(9).standard_normal(shape)
    y, cache = Flatten().forward({}, {}, x, train=True)
    assert y.shape == (shape[0], math.prod(shape[1:]))
    np.testing.assert_array_equal(Flatten().backward({}, cache, y)[0], x)


def test_flatten_of_a_scalar_is_an_error() -> None:
    with pytest.raises(ShapeError, match="scalar"):
        Flatten().forward({}, {}, np.float64(1.0), train=True)


def test_an_empty_batch_passes_through_a_network_and_back() -> None:
    network = Sequential.numbered(Flatten(), Linear(6, 4), ReLU(), Linear(4, 3))
    params, state = network.init(np.random.default_rng(10))
    y, cache = network.forward(params, state, np.zeros((0, 2, 3), np.float32), train=True)
    dx, grads = network.backward(params, cache, y)
    assert y.shape == (0, 3)
    assert dx.shape == (0, 2, 3)
    assert all(not np.any(g) and g.shape == params[n].shape for n, g in grads.items())


@pytest.mark.parametrize(("p", "train"), [(0.5, False), (0.0, True), (1.0, False)])
def test_dropout_that_drops_nothing_is_the_identity(p: float, train: bool) -> None:
    x = np.random.default_rng(11).standard_normal((3, 4))
    y, cache = Dropout(p).forward({}, {}, x, train=train)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(Dropout(p).backward({}, cache, x)[0], x)


def test_dropout_in_training_needs_a_generator() -> None:
    with pytest.raises(ConfigError, match=r"Dropout.*numpy\.random\.Generator"):
        Dropout(0.5).forward({}, {}, np.ones((2, 2)), train=True)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, "half", True])
def test_dropout_probability_outside_the_unit_interval_is_an_error(p: Any) -> None:
    with pytest.raises(ConfigError, match="Dropout: p"):
        Dropout(p)


@given(seed=st.integers(0, 2**32), p=st.floats(0.01, 0.99))
def test_the_dropout_mask_depends_on_the_seed_and_not_on_the_precision(seed: int, p: float) -> None:
    masks = [
        Dropout(p)
        .forward({}, {}, np.ones((6, 7), dtype), train=True, rng=np.random.default_rng(seed))[1]
        .mask
        for dtype in (np.float32, np.float64)
    ]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_drops_a_fraction_p(p: float) -> None:
    n = 200_000
    y, _ = Dropout(p).forward({}, {}, np.ones(n), train=True, rng=np.random.default_rng(12))
    deviation = math.sqrt(p / (1 - p) / n)
    assert abs(y.mean() - 1) < 5 * deviation
    assert abs((y == 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - p)], rtol=1e-15)


def test_dropout_of_probability_one_leaves_nothing() -> None:
    x = np.random.default_rng(13).standard_normal((3, 4))
    y, cache = Dropout(1.0).forward({}, {}, x, train=True, rng=np.random.default_rng(0))
    assert not np.any(y)
    assert not np.any(Dropout(1.0).backward({}, cache, x)[0])


def test_dropout_backward_is_the_adjoint_of_its_forward() -> None:
    rng = np.random.default_rng(14)
    x, dy = rng.standard_normal((2, 30, 20))
    y, cache = Dropout(0.4).forward({}, {}, x, train=True, rng=rng)
    dx, _ = Dropout(0.4).backward({}, cache, dy)
    assert (dy * y).sum() == pytest.approx((dx * x).sum(), rel=1e-12)
    np.testing.assert_array_equal(dx == 0, y == 0)


def test_each_dropout_of_a_network_draws_its_own_mask() -> None:
    network = Sequential.numbered(Dropout(0.5), Dropout(0.5))
    x = np.ones((40, 40))
    _, cache = network.forward({}, {}, x, train=True, rng=np.random.default_rng(15))
    first, second = (child.mask for child in cache.children)
    assert (first != second).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("widths", [(0, 3), (3, 0), (-2, 3), (2.0, 3), (True, 3)])
def test_a_linear_layer_needs_positive_widths(widths: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Linear: (in|out)_features must be an integer >= 1"):
        Linear(*widths)


def test_whether_a_linear_layer_has_a_bias_is_yes_or_no() -> None:
    with pytest.raises(ConfigError, match="Linear: bias must be true or false, got 'no'"):
        Linear(3, 4, bias="no")
