"""Normalisation layers: running statistics, modes, and gradients in each."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError, ShapeError
from refkd.nn import BatchNorm2d, GroupNorm, Layer, LayerNorm
from refkd.testing.tolerances import tolerance
from tests.nn.layer_problem import LayerProblem, assert_exact, assert_same_arrays

SHAPE = (3, 4, 3, 2)
STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]
SUMS = tolerance("float64", "reduction")
LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (BatchNorm2d(4), SHAPE),
    (BatchNorm2d(4, eps=0.1, momentum=0.3), SHAPE),
    (BatchNorm2d(4, track_running_stats=False), SHAPE),
    (GroupNorm(2, 4), SHAPE),
    (GroupNorm(1, 4, eps=0.1), SHAPE),
    (LayerNorm(4), (3, 2, 4)),
    (LayerNorm(4, eps=0.1), (5, 4)),
]
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: repr(v))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= SUMS * np.abs(expected).max()


def per_channel(x: np.ndarray) -> np.ndarray:
    """Return (C, all values of a channel)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


@pytest.mark.parametrize("train", [True, False])
@every_layer
def test_gradients_are_exact(layer: Layer, shape: tuple[int, ...], train: bool) -> None:
    problem = LayerProblem(layer, *shape, train=train)
    assert_exact(problem, problem.dy, mode="full")


@every_layer
def test_a_layer_begins_as_the_mere_normalisation(layer: Layer, shape: tuple[int, ...]) -> None:
    params, state = layer.init(np.random.default_rng(0))
    assert list(params) == ["weight", "bias"]
    assert np.all(params["weight"] == 1)
    assert not np.any(params["bias"])
    assert {a.shape for a in params.values()} == {(4,)}
    assert {n: (a.shape, a.dtype) for n, a in state.items()} in (
        {},
        dict.fromkeys(STATISTICS[:2], ((4,), np.float32))
        | {"num_batches_tracked": ((), np.dtype(np.int64))},
    )
    assert layer.shapes() == (
        {n: a.shape for n, a in params.items()},
        {n: a.shape for n, a in state.items()},
    )


@every_layer
def test_a_leaf_has_no_features_and_may_skip_dx(layer: Layer, shape: tuple[int, ...]) -> None:
    problem = LayerProblem(layer, *shape, seed=1)
    assert problem.features() == {}
    _, expected = problem.backward(problem.dy)
    dx, grads = problem.backward(problem.dy, need_dx=False)
    assert dx is None
    assert_same_arrays(grads, expected)
    with pytest.raises(ConfigError, match=f"{type(layer).__name__}.backward: tap 'x'"):
        problem.backward(problem.dy, taps={"x": problem.dy})


def test_in_training_a_channel_has_the_moments_of_its_weight_and_bias() -> None:
    problem = LayerProblem(BatchNorm2d(4, eps=1e-30), *SHAPE, seed=2)
    y = per_channel(problem.y)
    assert_close(y.mean(axis=1), problem.params["bias"])
    assert_close(y.std(axis=1), np.abs(problem.params["weight"]))


def test_in_evaluation_the_running_statistics_take_the_place_of_the_batchs() -> None:
    problem = LayerProblem(BatchNorm2d(4, eps=0.1), *SHAPE, seed=3, train=False)
    mean, var = (problem.state[n][:, None, None] for n in STATISTICS[:2])
    weight, bias = (problem.params[n][:, None, None] for n in ("weight", "bias"))
    assert_close(problem.y, (problem.x - mean) / np.sqrt(var + 0.1) * weight + bias)


def test_in_evaluation_an_image_does_not_see_the_others() -> None:
    problem = LayerProblem(BatchNorm2d(4), *SHAPE, seed=4, train=False)
    np.testing.assert_array_equal(problem.forward(x=problem.x[1:2])[0], problem.y[1:2])


def test_without_running_statistics_an_image_sees_the_others_in_evaluation_too() -> None:
    layer = BatchNorm2d(4, track_running_stats=False)
    training = LayerProblem(layer, *SHAPE, seed=5)
    evaluation = LayerProblem(layer, *SHAPE, seed=5, train=False)
    assert training.state == {}
    np.testing.assert_array_equal(evaluation.y, training.y)
    alone, _ = evaluation.forward(x=evaluation.x[1:2])
    assert np.abs(alone - evaluation.y[1:2]).max() > 0.1
    for problem in (training, evaluation):
        assert layer.next_state({}, problem.cache) == {}


@given(
    seed=st.integers(0, 2**32),
    momentum=st.floats(0, 1),
    shape=st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
)
def test_the_running_statistics_are_means_weighted_by_momentum(
    seed: int, momentum: float, shape: tuple[int, ...]
) -> None:
    problem = LayerProblem(BatchNorm2d(shape[1], momentum=momentum), *shape, seed=seed)
    before = problem.state
    after = problem.layer.next_state(before, problem.cache)
    values = per_channel(problem.x)
    for name, of_batch in zip(
        STATISTICS[:2], (values.mean(axis=1), values.var(axis=1, ddof=1)), strict=True
    ):
        expected = (1 - momentum) * before[name] + momentum * of_batch
        scale = np.abs(before[name]).max() + np.abs(of_batch).max()
        assert np.abs(after[name] - expected).max() <= SUMS * scale
    assert after["num_batches_tracked"] == before["num_batches_tracked"] + 1


def test_the_variance_that_normalises_is_biased_and_the_one_that_is_kept_is_not() -> None:
    problem = LayerProblem(BatchNorm2d(4, momentum=1.0), *SHAPE, seed=6)
    n = SHAPE[0] * SHAPE[2] * SHAPE[3]
    kept = problem.layer.next_state(problem.state, problem.cache)["running_var"]
    assert_close(kept, problem.cache.var * n / (n - 1))
    assert_close(problem.cache.rstd, 1 / np.sqrt(problem.cache.var + 1e-5))


def test_running_statistics_come_to_those_of_the_data() -> None:
    layer = BatchNorm2d(2, momentum=0.05)
    rng = np.random.default_rng(7)
    params, state = layer.init(rng, dtype=np.float64)
    mean, std = np.array([3.0, -1.0]), np.array([0.5, 2.0])
    for _ in range(300):
        x = mean[:, None, None] + std[:, None, None] * rng.standard_normal((8, 2, 4, 4))
        _, cache = layer.forward(params, state, x, train=True)
        state = layer.next_state(state, cache)
    assert state["num_batches_tracked"] == 300
    np.testing.assert_allclose(state["running_mean"], mean, atol=0.1)
    np.testing.assert_allclose(state["running_var"], std**2, rtol=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_next_state_is_pure_and_keeps_dtypes(dtype: Any) -> None:
    problem = LayerProblem(BatchNorm2d(4), *SHAPE, seed=8, dtype=dtype)
    before = copy.deepcopy((problem.state, problem.cache))
    first = problem.layer.next_state(problem.state, problem.cache)
    second = problem.layer.next_state(problem.state, problem.cache)
    assert_same_arrays(first, second)
    np.testing.assert_equal((problem.state, problem.cache), before)
    assert list(first) == STATISTICS
    for name, array in first.items():
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.dtype) == (problem.state[name].shape, problem.state[name].dtype)
        assert not np.shares_memory(array, problem.state[name])


def test_evaluation_leaves_the_state_as_it_is() -> None:
    problem = LayerProblem(BatchNorm2d(4), *SHAPE, seed=9, train=False)
    assert_same_arrays(problem.layer.next_state(problem.state, problem.cache), problem.state)


def test_one_value_per_channel_has_no_statistics() -> None:
    layer = BatchNorm2d(2)
    params, state = layer.init(np.random.default_rng(0))
    x = np.zeros((1, 2, 1, 1), np.float32)
    with pytest.raises(ShapeError):
        layer.forward(params, state, x, train=True)
    assert layer.forward(params, state, x, train=False)[0].shape == x.shape


def test_batch_norm_takes_images_only() -> None:
    layer = BatchNorm2d(2)
    params, state = layer.init(np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"BatchNorm2d.forward: x must be a batch of images"):
        layer.forward(params, state, np.zeros((3, 2), np.float32), train=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_gives_every_group_of_an_example_mean_zero_and_variance_one(
    groups: int,
) -> None:
    layer = GroupNorm(groups, 4, eps=1e-30)
    params, _ = layer.init(np.random.default_rng(0), dtype=np.float64)
    x = np.random.default_rng(10).standard_normal(SHAPE)
    y, _ = layer.forward(params, {}, x, train=True)
    rows = y.reshape(SHAPE[0] * groups, -1)
    assert np.abs(rows.mean(axis=1)).max() <= SUMS
    assert np.abs(rows.std(axis=1) - 1).max() <= SUMS


def test_layer_norm_gives_every_row_mean_zero_and_variance_one() -> None:
    layer = LayerNorm(4, eps=1e-30)
    params, _ = layer.init(np.random.default_rng(0), dtype=np.float64)
    y, _ = layer.forward(
        params, {}, np.random.default_rng(11).standard_normal((3, 5, 4)), train=True
    )
    assert np.abs(y.mean(axis=-1)).max() <= SUMS
    assert np.abs(y.std(axis=-1) - 1).max() <= SUMS


@pytest.mark.parametrize("momentum", [None, -0.1, 1.1, math.nan, "0.1", True])
def test_momentum_is_a_number_in_the_unit_interval(momentum: Any) -> None:
    with pytest.raises(ConfigError, match="BatchNorm2d: momentum must be a number"):
        BatchNorm2d(3, momentum=momentum)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (BatchNorm2d, (0,), "num_features must be an integer >= 1"),
        (BatchNorm2d, (3, 0.0), "eps must be a finite number > 0"),
        (GroupNorm, (0, 4), "num_groups must be an integer >= 1"),
        (GroupNorm, (2, 4.0), "num_channels must be an integer >= 1"),
        (GroupNorm, (3, 4), "num_groups must divide num_channels, got 3 groups for 4 channels"),
        (GroupNorm, (2, 4, -1.0), "eps must be a finite number > 0"),
        (LayerNorm, (True,), "num_features must be an integer >= 1"),
        (LayerNorm, (4, math.inf), "eps must be a finite number > 0"),
    ],
)
def test_numbers_out_of_range_are_errors(layer: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{layer.__name__}: {message}"):
        layer(*arguments)


@pytest.mark.parametrize("value", [1, 0, "no", None])
def test_running_statistics_are_kept_or_not(value: Any) -> None:
    with pytest.raises(ConfigError, match="BatchNorm2d: track_running_stats must be true or false"):
        BatchNorm2d(3, track_running_stats=value)
