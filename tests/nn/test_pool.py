"""Pooling layers: what they add to their kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd import ops
from refkd.errors import ConfigError
from refkd.nn import AdaptiveAvgPool2d, AvgPool2d, Layer, MaxPool2d
from refkd.testing.tolerances import tolerance
from tests.nn.layer_problem import LayerProblem, assert_exact

SHAPE = (2, 3, 7, 6)
LAYERS: list[Layer] = [
    MaxPool2d(2),
    MaxPool2d((3, 2), (1, 2), padding=(1, 0), dilation=(2, 1)),
    MaxPool2d(3, 2, ceil_mode=True),
    AvgPool2d(2),
    AvgPool2d((3, 2), (1, 3), padding=(1, 0), count_include_pad=False),
    AvgPool2d(3, 2, padding=1, ceil_mode=True),
    AdaptiveAvgPool2d(1),
    AdaptiveAvgPool2d((3, 4)),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=repr)


@every_layer
def test_gradients_are_exact(layer: Layer) -> None:
    problem = LayerProblem(layer, *SHAPE)
    assert_exact(problem, problem.dy, mode="full")


@every_layer
def test_there_are_no_parameters_no_state_no_features_and_no_needless_dx(layer: Layer) -> None:
    problem = LayerProblem(layer, *SHAPE)
    assert layer.shapes() == ({}, {})
    assert problem.features() == {}
    assert problem.backward(problem.dy, need_dx=False) == (None, {})
    with pytest.raises(ConfigError, match=f"{type(layer).__name__}.backward: tap 'x'"):
        problem.backward(problem.dy, taps={"x": problem.dy})


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": (1, 2), "padding": 1},
        {"kernel_size": (2, 3), "dilation": (1, 2)},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    ],
)
def test_a_max_pool_hands_its_options_to_the_kernel(options: dict[str, Any]) -> None:
    problem = LayerProblem(MaxPool2d(**options), *SHAPE, seed=1)
    expected, _ = ops.max_pool2d_forward(problem.x, **options)
    np.testing.assert_array_equal(problem.y, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": (1, 2), "padding": 1},
        {"kernel_size": 3, "padding": 1, "count_include_pad": False},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    ],
)
def test_a_mean_pool_hands_its_options_to_the_kernels(options: dict[str, Any]) -> None:
    problem = LayerProblem(AvgPool2d(**options), *SHAPE, seed=2)
    np.testing.assert_array_equal(problem.y, ops.avg_pool2d_forward(problem.x, **options))
    expected = ops.avg_pool2d_backward(problem.dy, input_shape=SHAPE, **options)
    np.testing.assert_array_equal(problem.backward(problem.dy)[0], expected)


def test_windows_lie_side_by_side_where_no_stride_is_given() -> None:
    assert MaxPool2d(2) == MaxPool2d((2, 2), 2)
    assert AvgPool2d((2, 3)) == AvgPool2d((2, 3), (2, 3))
    assert MaxPool2d((2, 3)).stride == (2, 3)
    assert hash(MaxPool2d([2, 2])) == hash(MaxPool2d(2))  # type: ignore[arg-type]


def test_adaptive_pooling_to_one_is_the_mean_of_the_image() -> None:
    problem = LayerProblem(AdaptiveAvgPool2d(1), *SHAPE, seed=3)
    expected = problem.x.mean(axis=(2, 3), keepdims=True)
    error = np.abs(problem.y - expected).max()
    assert error <= tolerance("float64", "reduction") * np.abs(expected).max()


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (MaxPool2d, {"kernel_size": 0}, "kernel_size must be at least 1"),
        (MaxPool2d, {"kernel_size": 2, "stride": 0}, "stride must be at least 1"),
        (MaxPool2d, {"kernel_size": 2, "padding": -1}, "padding must be at least 0"),
        (MaxPool2d, {"kernel_size": 2, "dilation": 0}, "dilation must be at least 1"),
        (
            MaxPool2d,
            {"kernel_size": 3, "padding": 2},
            r"padding must be at most half the kernel, got padding=\(2, 2\) with kernel_size=\(3",
        ),
        (MaxPool2d, {"kernel_size": (4, 3), "padding": (1, 2)}, "padding must be at most half"),
        (AvgPool2d, {"kernel_size": 3, "padding": 2}, "padding must be at most half the kernel"),
        (AvgPool2d, {"kernel_size": (3, 4), "padding": 2}, "padding must be at most half"),
        (AvgPool2d, {"kernel_size": 2.0}, "kernel_size must be an integer or a pair"),
        (AvgPool2d, {"kernel_size": 2, "stride": (1,)}, "stride must be an integer or a pair"),
        (AvgPool2d, {"kernel_size": 2, "padding": -1}, "padding must be at least 0"),
        (AdaptiveAvgPool2d, {"output_size": 0}, "output_size must be at least 1"),
        (AdaptiveAvgPool2d, {"output_size": None}, "output_size must be an integer or a pair"),
    ],
)
def test_numbers_out_of_range_are_errors(layer: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{layer.__name__}: {message}"):
        layer(**options)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
@pytest.mark.parametrize(
    ("layer", "switch"),
    [(MaxPool2d, "ceil_mode"), (AvgPool2d, "ceil_mode"), (AvgPool2d, "count_include_pad")],
)
def test_switches_are_on_or_off(layer: Any, switch: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{layer.__name__}: {switch} must be true or false, got"):
        layer(2, **{switch: value})
