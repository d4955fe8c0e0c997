"""A network that uses the whole layer contract: exact gradients, purity, features, state."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, ShapeError
from refkd.nn import Linear, ReLU, Sequential
from refkd.testing import check_grad
from tests.nn.contract_layers import WHOLE_CONTRACT

NETWORK = WHOLE_CONTRACT
FEATURES = [
    "embed",
    "mix",
    "join",
    "body.0",
    "body.norm",
    "body.inner.0",
    "body.inner.1",
    "body.inner",
    "body",
    "head",
]
ROWS = 7


class Problem:
    """Parameters, inputs and cotangents of the network, drawn from one seed."""

    def __init__(self, seed: int = 0, *, rows: int = ROWS, dtype: Any = np.float64) -> None:
        self.rng = np.random.default_rng(seed)
        self.params, self.state = NETWORK.init(self.rng, dtype=dtype)
        for name in self.state:  # running statistics that are not the trivial ones
            if name.endswith(("mean", "var")):
                self.state[name] = self.state[name] + self.rng.random(6).astype(dtype)
        self.ids = self.rng.integers(5, size=rows)
        self.values = self.normal(rows, 3, dtype=dtype)
        self.dy = (self.normal(rows, 3, dtype=dtype), self.normal(rows, 2, dtype=dtype))

    def normal(self, *shape: int, dtype: Any = np.float64) -> Any:
        return self.rng.standard_normal(shape).astype(dtype)

    def forward(self, *, train: bool = True) -> Any:
        return NETWORK.forward(self.params, self.state, (self.ids, self.values), train=train)

    def tap(self, path: str) -> Any:
        """Draw a cotangent for the feature ``path``, of its structure."""
        feature = dict(NETWORK.features(self.forward()[1]))[path]
        if isinstance(feature, tuple):
            return tuple(self.normal(*y.shape) for y in feature)
        return self.normal(*feature.shape)


def inner_product(cotangent: Any, y: Any) -> Any:
    """Return Σ cotangent · y over arrays and tuples; None counts as zero."""
    if cotangent is None:
        return 0.0
    if isinstance(y, tuple):
        return sum(inner_product(c, part) for c, part in zip(cotangent, y, strict=True))
    return (cotangent * y).sum()


def assert_exact(problem: Problem, dy: Any, taps: dict[str, Any], *, train: bool) -> None:
    """Check parameters and input by the complex step, for cotangents at dy and all taps."""

    def run(values: Any, params: Any) -> Any:
        return NETWORK.forward(params, problem.state, (problem.ids, values), train=train)

    def f(values: Any, **params: Any) -> Any:
        y, cache = run(values, params)
        features = dict(NETWORK.features(cache))
        tapped = sum(inner_product(tap, features[path]) for path, tap in taps.items())
        return inner_product(dy, y) + tapped

    def grad(values: Any, **params: Any) -> Any:
        _, cache = run(values, params)
        as_given = {k: cast(v, values.dtype) for k, v in taps.items()}
        dx, grads = NETWORK.backward(params, cache, cast(dy, values.dtype), taps=as_given)
        assert list(grads) == list(params)
        dids, dvalues = (None, None) if dx is None else dx
        assert dids is None
        return {"values": np.zeros_like(values) if dvalues is None else dvalues, **grads}

    point = {"values": problem.values, **problem.params}
    report = check_grad(f, point, grad, method="complex", mode="full")
    report.raise_if_failed()
    assert report.entries == problem.values.size + sum(p.size for p in problem.params.values())


def cast(cotangent: Any, dtype: Any) -> Any:
    if cotangent is None or isinstance(cotangent, np.ndarray):
        return None if cotangent is None else cotangent.astype(dtype)
    return tuple(cast(part, dtype) for part in cotangent)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_gradients_are_exact_whichever_outputs_are_used(train: bool, used: Any) -> None:
    problem = Problem(1)
    dy = tuple(d if keep else None for d, keep in zip(problem.dy, used, strict=True))
    assert_exact(problem, dy, {}, train=train)


@pytest.mark.parametrize("path", FEATURES)
@pytest.mark.parametrize("with_dy", [True, False])
def test_gradients_are_exact_with_a_cotangent_at_any_feature(path: str, with_dy: bool) -> None:
    problem = Problem(2)
    dy = problem.dy if with_dy else None
    assert_exact(problem, dy, {path: problem.tap(path)}, train=True)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("path", ["embed", "mix", "head"])
def test_a_tap_may_leave_out_parts_of_a_tuple(path: str, part: int) -> None:
    problem = Problem(3)
    tap = list(problem.tap(path))
    tap[part] = None
    assert_exact(problem, None, {path: tuple(tap)}, train=True)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 9),
    paths=st.sets(st.sampled_from(FEATURES)),
    train=st.booleans(),
)
def test_gradients_are_exact_for_any_set_of_taps(
    seed: int, rows: int, paths: set[str], train: bool
) -> None:
    problem = Problem(seed, rows=rows)
    assert_exact(problem, problem.dy, {p: problem.tap(p) for p in sorted(paths)}, train=train)


def test_layers_that_no_cotangent_reaches_have_zero_gradients() -> None:
    problem = Problem(4)
    _, cache = problem.forward()
    dx, grads = NETWORK.backward(
        problem.params, cache, None, taps={"body.0": problem.tap("body.0")}
    )
    reached = ("embed.table", "embed.weight", "body.0.weight", "body.0.bias")
    assert list(grads) == list(problem.params)
    for name, grad in grads.items():
        assert grad.shape == problem.params[name].shape
        assert grad.dtype == np.float64
        assert np.any(grad != 0) == (name in reached), name
    assert dx[0] is None
    assert np.any(dx[1] != 0)


def test_without_any_cotangent_everything_is_zero() -> None:
    problem = Problem(5)
    dx, grads = NETWORK.backward(problem.params, problem.forward()[1], None)
    assert dx is None
    assert list(grads) == list(problem.params)
    assert not any(np.any(grad) for grad in grads.values())


def test_skipping_dx_changes_no_gradient() -> None:
    problem = Problem(6)
    _, cache = problem.forward()
    taps = {"join": problem.tap("join")}
    _, expected = NETWORK.backward(problem.params, cache, problem.dy, taps=taps)
    dx, grads = NETWORK.backward(problem.params, cache, problem.dy, taps=taps, need_dx=False)
    assert dx is None
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, expected[name])


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("bodi", "did you mean 'body'"),
        ("body.2", "'2' names no feature"),
        ("body.0.weight", "'weight' names no feature"),
        ("body.inner.1.x", "'x' names no feature"),
        ("", "names no feature"),
    ],
)
def test_a_tap_at_an_unknown_path_is_an_error(path: str, suggestion: str) -> None:
    problem = Problem(7)
    with pytest.raises(ConfigError, match=suggestion):
        NETWORK.backward(
            problem.params, problem.forward()[1], problem.dy, taps={path: np.ones((ROWS, 6))}
        )


@pytest.mark.parametrize("shape", [(6,), (1, 6), (ROWS, 1), (ROWS, 5)])
def test_a_tap_of_another_shape_is_an_error_and_not_broadcast(shape: tuple[int, ...]) -> None:
    network = Sequential((("a", Linear(4, 6)), ("b", ReLU())))
    rng = np.random.default_rng(8)
    params, state = network.init(rng, dtype=np.float64)
    y, cache = network.forward(params, state, rng.standard_normal((ROWS, 4)), train=True)
    with pytest.raises(ShapeError):
        network.backward(params, cache, y, taps={"a": np.ones(shape)})


def test_forward_and_backward_mutate_nothing() -> None:
    problem = Problem(9)
    taps = {path: problem.tap(path) for path in FEATURES}
    given_arrays = (problem.params, problem.state, problem.ids, problem.values, problem.dy, taps)
    before = copy.deepcopy(given_arrays)
    y, cache = problem.forward()
    y_before, cache_before = copy.deepcopy((y, cache))
    first = NETWORK.backward(problem.params, cache, problem.dy, taps=taps)
    first_before = copy.deepcopy(first)
    second = NETWORK.backward(problem.params, cache, problem.dy, taps=taps)
    NETWORK.next_state(problem.state, cache)
    np.testing.assert_equal(given_arrays, before)
    np.testing.assert_equal((y, cache), (y_before, cache_before))
    np.testing.assert_equal(second, first_before)
    np.testing.assert_equal(first, first_before)


def test_gradients_are_fresh_arrays() -> None:
    problem = Problem(10)
    _, cache = problem.forward()
    dx, grads = NETWORK.backward(problem.params, cache, problem.dy)
    known = [*problem.params.values(), problem.values, *problem.dy]
    for array in (*grads.values(), dx[1]):
        assert not any(np.shares_memory(array, other) for other in known)


@pytest.mark.parametrize("train", [True, False])
def test_float32_stays_float32(train: bool) -> None:
    problem = Problem(11, dtype=np.float32)
    y, cache = problem.forward(train=train)
    dx, grads = NETWORK.backward(problem.params, cache, problem.dy)
    assert {a.dtype for a in (*y, dx[1], *grads.values())} == {np.dtype(np.float32)}
    statistics = NETWORK.next_state(problem.state, cache)
    for name, array in statistics.items():
        assert array.dtype == problem.state[name].dtype


def test_next_state_updates_the_nested_running_statistics() -> None:
    problem = Problem(12)
    _, cache = problem.forward()
    x = dict(NETWORK.features(cache))["body.0"]
    updated = NETWORK.next_state(problem.state, cache)
    assert list(updated) == list(problem.state)
    expected = 0.9 * problem.state["body.norm.running_mean"] + 0.1 * x.mean(axis=0)
    np.testing.assert_allclose(updated["body.norm.running_mean"], expected, rtol=1e-14)
    assert updated["body.norm.num_batches_tracked"] == 1
    assert problem.state["body.norm.num_batches_tracked"] == 0


def test_evaluation_uses_the_running_statistics_and_not_the_batch() -> None:
    problem = Problem(13)
    (logits, gate), _ = problem.forward(train=False)
    one_row = (problem.ids[:1], problem.values[:1])
    (first_logits, first_gate), _ = NETWORK.forward(
        problem.params, problem.state, one_row, train=False
    )
    np.testing.assert_allclose(first_logits, logits[:1], rtol=1e-12)
    np.testing.assert_allclose(first_gate, gate[:1], rtol=1e-12)


def test_features_are_named_by_path_in_the_order_they_are_computed() -> None:
    y, cache = Problem(14).forward()
    features = list(NETWORK.features(cache))
    assert [path for path, _ in features] == FEATURES
    assert features[-1][1] is y


def test_a_feature_is_what_the_next_layer_receives() -> None:
    problem = Problem(15)
    features = dict(NETWORK.features(problem.forward()[1]))
    np.testing.assert_array_equal(features["body.inner.0"], np.tanh(features["body.norm"]))
    np.testing.assert_array_equal(
        features["body.inner.1"],
        features["body.inner.0"] @ problem.params["body.inner.1.weight"].T,
    )
    np.testing.assert_array_equal(features["body"], features["body.inner"])
