"""The convolution layer: what it adds to its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd import ops
from refkd.errors import ConfigError, ShapeError
from refkd.nn import Conv2d, Linear
from refkd.testing.tolerances import tolerance
from tests.nn.layer_problem import LayerProblem, assert_exact

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1), "bias": False},
    {"kernel_size": 2, "dilation": (1, 2), "padding": 1},
    {"kernel_size": (3, 2), "groups": 2, "stride": 2},
]
every_option = pytest.mark.parametrize("options", OPTIONS)


@every_option
def test_gradients_are_exact(options: dict[str, Any]) -> None:
    problem = LayerProblem(Conv2d(4, 6, **options), 2, 4, 5, 5)
    assert_exact(problem, problem.dy, mode="full")


@every_option
def test_it_hands_its_options_to_the_kernels(options: dict[str, Any]) -> None:
    problem = LayerProblem(Conv2d(4, 6, **options), 2, 4, 5, 5, seed=1)
    given = {k: v for k, v in options.items() if k not in ("kernel_size", "bias")}
    weight, bias = problem.params["weight"], problem.params.get("bias")
    expected = ops.conv2d_forward(problem.x, weight, bias, **given)
    np.testing.assert_array_equal(problem.y, expected)
    dx, dweight, dbias = ops.conv2d_backward(problem.dy, problem.x, weight, **given)
    ours, grads = problem.backward(problem.dy)
    np.testing.assert_array_equal(ours, dx)
    np.testing.assert_array_equal(grads["weight"], dweight)
    if bias is not None:
        np.testing.assert_array_equal(grads["bias"], dbias)


def test_a_kernel_of_one_pixel_is_a_linear_layer_over_channels() -> None:
    problem = LayerProblem(Conv2d(3, 5, 1), 2, 3, 4, 4, seed=2)
    params = {**problem.params, "weight": problem.params["weight"][:, :, 0, 0]}
    y, _ = Linear(3, 5).forward(params, {}, problem.x.transpose(0, 2, 3, 1), train=True)
    error = np.abs(problem.y - y.transpose(0, 3, 1, 2)).max()
    assert error <= tolerance("float64", "product") * np.abs(y).max()


def test_sizes_are_kept_as_pairs_so_that_equal_layers_are_equal() -> None:
    layer = Conv2d(3, 4, [3, 3], stride=2)  # type: ignore[arg-type]
    assert layer == Conv2d(3, 4, 3, stride=(2, 2), padding=(0, 0), dilation=[1, 1])  # type: ignore[arg-type]
    assert hash(layer) == hash(Conv2d(3, 4, 3, 2))
    assert layer.kernel_size == (3, 3)
    assert layer != Conv2d(3, 4, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_names_and_shapes_are_those_of_pytorch(bias: bool) -> None:
    params, state = Conv2d(6, 4, (3, 5), groups=2, bias=bias).shapes()
    assert params == {"weight": (4, 3, 3, 5)} | ({"bias": (4,)} if bias else {})
    assert state == {}


def test_without_need_there_is_no_dx_and_gradients_are_the_same() -> None:
    problem = LayerProblem(Conv2d(3, 4, 3), 2, 3, 5, 5, seed=3)
    _, expected = problem.backward(problem.dy)
    dx, grads = problem.backward(problem.dy, need_dx=False)
    assert dx is None
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, expected[name])


def test_a_leaf_has_no_features_to_tap() -> None:
    problem = LayerProblem(Conv2d(3, 4, 3), 2, 3, 5, 5)
    assert problem.features() == {}
    with pytest.raises(ConfigError, match=r"Conv2d\.backward: tap 'x'"):
        problem.backward(problem.dy, taps={"x": problem.dy})


def test_images_with_other_channels_are_an_error() -> None:
    layer = Conv2d(3, 4, 3)
    params, _ = layer.init(np.random.default_rng(0))
    with pytest.raises(ShapeError, match="channels"):
        layer.forward(params, {}, np.zeros((1, 4, 5, 5), np.float32), train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be an integer >= 1, got 0"),
        ({"out_channels": 2.0}, "out_channels must be an integer >= 1"),
        ({"groups": True}, "groups must be an integer >= 1"),
        ({"groups": 3}, "groups must divide both channel numbers"),
        ({"out_channels": 5, "groups": 2}, "groups must divide both channel numbers"),
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer or a pair"),
        ({"stride": (1, 0)}, "stride must be at least 1"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": "same"}, "padding must be an integer or a pair"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"bias": "no"}, "bias must be true or false, got 'no'"),
        ({"bias": None}, "bias must be true or false, got None"),
    ],
)
def test_numbers_out_of_range_are_errors(options: dict[str, Any], message: str) -> None:
    valid = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    with pytest.raises(ConfigError, match=f"Conv2d: {message}"):
        Conv2d(**(valid | options))
