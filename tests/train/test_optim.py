"""Optimisers against their formulas in float64, chunks, the moving average, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops.update import adam_update, ema_update, sgd_update
from refkd.testing.tolerances import tolerance
from refkd.train.optim import SGD, Adam, AdamW, clip_by_global_norm, global_norm, update_average

CHUNKED = (17, 2000)  # more than one chunk, and no multiple of a chunk
SHAPES = {"a": CHUNKED, "b": (5, 3), "c": ()}
STEPS = 7


def drawn(seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(s), dtype) for name, s in SHAPES.items()}


def sgd_by_the_formula(optimizer: SGD) -> Callable[..., Any]:
    buffers: dict[str, Any] = {}

    def step(name: str, w: Any, g: Any, k: int, lr: float) -> Any:
        g = g + optimizer.weight_decay * w
        b = optimizer.momentum * buffers.get(name, 0.0) + g
        buffers[name] = b
        return w - lr * (g + optimizer.momentum * b if optimizer.nesterov else b)

    return step


def adam_by_the_formula(optimizer: Adam) -> Callable[..., Any]:
    moments: dict[str, Any] = {}
    (beta1, beta2), decay = optimizer.betas, optimizer.weight_decay

    def step(name: str, w: Any, g: Any, k: int, lr: float) -> Any:
        if isinstance(optimizer, AdamW):
            w = w - lr * decay * w
        else:
            g = g + decay * w
        m, v = moments.get(name, (0.0, 0.0))
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        moments[name] = m, v
        m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2**k)
        return w - lr * m_hat / (v_hat**0.5 + optimizer.eps)

    return step


OPTIMIZERS: list[Any] = [
    SGD(0.1),
    SGD(0.1, weight_decay=0.3),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, weight_decay=0.2),
    SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.2),
    Adam(0.01),
    Adam(0.01, betas=(0.5, 0.7), eps=1e-2, weight_decay=0.3),
    AdamW(0.01),
    AdamW(0.05, betas=(0.0, 0.9), weight_decay=0.9),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def assert_close(actual: Any, expected: Any, operation: str = "pointwise") -> None:
    allowed = tolerance("float64", operation) * np.abs(expected).max()
    assert np.abs(actual - expected).max() <= allowed


@every_optimizer
def test_steps_follow_the_formula(optimizer: Any) -> None:
    formula = sgd_by_the_formula if isinstance(optimizer, SGD) else adam_by_the_formula
    by_formula = formula(optimizer)
    params, expected = drawn(0), drawn(0)
    state = optimizer.init(params)
    for k in range(1, STEPS + 1):
        grads, lr = drawn(k), optimizer.lr / k
        optimizer.update(params, grads, state, lr=lr)
        for name, w in expected.items():
            expected[name] = by_formula(name, w, grads[name], k, lr)
            assert_close(params[name], expected[name])


@every_optimizer
def test_chunks_change_no_bit(optimizer: Any) -> None:
    def trained(cut: int) -> Any:
        parts = {"w": cut}
        flat = drawn(0)["a"].reshape(-1)
        pieces = {f"{n}{i}": p.copy() for n in parts for i, p in enumerate(np.split(flat, cut))}
        state = optimizer.init(pieces)
        for k in range(1, 4):
            grads = np.split(drawn(k)["a"].reshape(-1), cut)
            named = {f"w{i}": g for i, g in enumerate(grads)}
            optimizer.update(pieces, named, state, lr=optimizer.lr)
        return np.concatenate(list(pieces.values()))

    np.testing.assert_array_equal(trained(1), trained(40))


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "a transpose": lambda a: np.ascontiguousarray(a.T).T,
    "every other column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_optimizer
def test_any_layout_of_the_parameters_is_updated_in_place(optimizer: Any, layout: Any) -> None:
    expected, strided = {"a": drawn(0)["a"]}, {"a": layout(drawn(0)["a"])}
    array = strided["a"]
    states = optimizer.init(expected), optimizer.init(strided)
    for k in range(1, 4):
        grads = {"a": drawn(k)["a"]}
        optimizer.update(expected, grads, states[0], lr=optimizer.lr)
        optimizer.update(strided, {"a": layout(grads["a"])}, states[1], lr=optimizer.lr)
    assert strided["a"] is array
    np.testing.assert_array_equal(array, expected["a"])


@every_optimizer
def test_gradients_are_only_read(optimizer: Any) -> None:
    params, grads = drawn(0), drawn(1)
    optimizer.update(params, grads, optimizer.init(params), lr=0.1)
    np.testing.assert_equal(grads, drawn(1))
    assert np.any(params["a"] != drawn(0)["a"])


@every_optimizer
def test_a_parameter_without_gradient_stays(optimizer: Any) -> None:
    params = drawn(0)
    state = optimizer.init(params)
    optimizer.update(params, {"b": drawn(1)["b"]}, state, lr=0.1)
    np.testing.assert_array_equal(params["a"], drawn(0)["a"])
    assert np.any(params["b"] != drawn(0)["b"])


@every_optimizer
def test_float32_parameters_stay_float32_and_near_float64(optimizer: Any) -> None:
    single = drawn(0, np.float32)
    double = {n: a.astype(np.float64) for n, a in single.items()}
    states = optimizer.init(single), optimizer.init(double)
    for k in range(1, STEPS + 1):
        grads = drawn(k, np.float32)
        optimizer.update(single, grads, states[0], lr=optimizer.lr)
        in_double = {n: g.astype(np.float64) for n, g in grads.items()}
        optimizer.update(double, in_double, states[1], lr=optimizer.lr)
    for name, array in single.items():
        assert array.dtype == np.float32
        allowed = tolerance("float32", "product") * np.abs(double[name]).max()
        assert np.abs(array - double[name]).max() <= allowed


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient() -> None:
    grads = {"w": np.array([1e-6, -1e-3, 1.0, 1e8])}
    params = {"w": np.zeros(4)}
    optimizer = Adam(lr=0.1, eps=1e-20)
    optimizer.update(params, grads, optimizer.init(params), lr=0.1)
    np.testing.assert_allclose(params["w"], [-0.1, 0.1, -0.1, -0.1], rtol=1e-13)


def test_decoupled_decay_shrinks_even_without_a_gradient_and_l2_is_normalised_by_adam() -> None:
    moved = {}
    for optimizer in (Adam(0.1, weight_decay=0.5), AdamW(0.1, weight_decay=0.5)):
        params = {"w": np.array([4.0])}
        optimizer.update(params, {"w": np.zeros(1)}, optimizer.init(params), lr=0.1)
        moved[type(optimizer)] = float(params["w"][0])
    assert moved[AdamW] == pytest.approx(4 * (1 - 0.1 * 0.5), rel=1e-15)
    assert moved[Adam] == pytest.approx(4 - 0.1, rel=1e-7)


@given(decay=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_the_moving_average_is_its_formula(decay: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    average, value = rng.standard_normal((2, 20_000))
    expected = decay * average + (1 - decay) * value
    before = value.copy()
    ema_update(average, value, decay=decay)
    assert_close(average, expected)
    np.testing.assert_array_equal(value, before)


def test_the_moving_average_of_a_constant_converges_to_it_geometrically() -> None:
    average = {"w": np.zeros(3)}
    params = {"w": np.array([1.0, -2.0, 5.0]), "other": np.ones(1)}
    for _ in range(10):
        update_average(average, params, decay=0.5)
    np.testing.assert_allclose(average["w"], (1 - 0.5**10) * params["w"], rtol=1e-14)
    assert list(average) == ["w"]


UPDATES: dict[str, tuple[Callable[..., None], int, dict[str, Any]]] = {
    "sgd_update": (
        sgd_update,
        3,
        {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    ),
    "adam_update": (
        adam_update,
        4,
        {
            **{"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.99},
            **{"eps": 1e-8, "weight_decay": 0.0, "decoupled": True},
        },
    ),
    "ema_update": (ema_update, 2, {"decay": 0.9}),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (np.zeros((1, 3)), ShapeError),  # would broadcast
        (np.zeros(()), ShapeError),
        (np.zeros((2, 3), np.float32), DtypeError),
        (np.zeros((2, 3), np.int64), DtypeError),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(
    name: str, wrong: Any, error: type[Exception]
) -> None:
    update, count, options = UPDATES[name]
    for place in range(1, count):
        arrays: list[Any] = [np.ones((2, 3)) for _ in range(count)]
        arrays[place] = wrong
        with pytest.raises(error, match=name):
            update(*arrays, **options)
        assert np.all(arrays[0] == 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "SGD: lr"),
        (lambda: SGD(-1.0), "SGD: lr"),
        (lambda: SGD(math.nan), "SGD: lr"),
        (lambda: SGD("0.1"), "SGD: lr"),
        (lambda: SGD(0.1, momentum=1.0), "SGD: momentum"),
        (lambda: SGD(0.1, momentum=-0.1), "SGD: momentum"),
        (lambda: SGD(0.1, weight_decay=-1.0), "SGD: weight_decay must be a finite number >= 0"),
        (lambda: SGD(0.1, weight_decay=math.inf), "SGD: weight_decay"),
        (lambda: SGD(0.1, nesterov=True), "nesterov=True needs momentum"),
        (lambda: Adam(lr=math.inf), "Adam: lr"),
        (lambda: Adam(eps=0.0), "Adam: eps"),
        (lambda: Adam(betas=(0.9, 1.0)), r"Adam: betas\[1\]"),
        (lambda: AdamW(betas=(math.nan, 0.9)), r"AdamW: betas\[0\]"),
        (lambda: Adam(betas=(0.9,)), "Adam: betas must be a tuple of two"),
        (lambda: Adam(betas=0.9), "Adam: betas must be a tuple of two"),
        (lambda: AdamW(weight_decay=-0.01), "AdamW: weight_decay"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_adamw_decays_by_a_hundredth_by_default_and_adam_does_not() -> None:
    assert (Adam().weight_decay, AdamW().weight_decay) == (0.0, 0.01)


def test_the_global_norm_is_that_of_all_entries_together() -> None:
    grads = drawn(3)
    flat = np.concatenate([g.ravel() for g in grads.values()])
    assert global_norm(grads) == pytest.approx(float(np.sqrt((flat**2).sum())), rel=1e-13)
    assert global_norm({}) == global_norm({"empty": np.zeros((0, 3))}) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_global_norm_of_huge_gradients_does_not_overflow(dtype: Any) -> None:
    large = float(np.finfo(dtype).max) / 8
    grads = {"a": np.array([[3 * large]], dtype), "b": np.array([0, -4 * large], dtype)}
    assert global_norm(grads) == pytest.approx(5 * large, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_global_norm_is_not_finite_where_a_gradient_is_not(bad: float) -> None:
    grads = {"a": np.ones(3, np.float32), "b": np.array([1.0, bad], np.float32)}
    assert not math.isfinite(global_norm(grads))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1.5, 1e3, 1e30])
def test_clipping_scales_all_gradients_to_the_norm(factor: float, dtype: Any) -> None:
    unit = {n: g / global_norm(drawn(4)) for n, g in drawn(4).items()}
    grads = {n: (factor * g).astype(dtype) for n, g in unit.items()}
    clipped, norm = clip_by_global_norm(grads, 1.0)
    rel = tolerance(dtype, "product")
    assert norm == pytest.approx(factor, rel=rel)
    expected = factor / (factor + 1e-6)
    assert global_norm(clipped) == pytest.approx(expected, rel=rel)
    for name, grad in clipped.items():
        assert grad.dtype == dtype
        np.testing.assert_allclose(grad, expected * unit[name], rtol=rel, atol=1e-12)


def test_clipping_leaves_smaller_gradients_as_they_are() -> None:
    grads = drawn(5)
    clipped, norm = clip_by_global_norm(grads, 2 * global_norm(grads))
    assert norm == global_norm(grads)
    for name, grad in grads.items():
        assert clipped[name] is grad


def test_clipping_writes_into_no_gradient() -> None:
    grads = drawn(6)
    clip_by_global_norm(grads, 1e-3)
    np.testing.assert_equal(grads, drawn(6))


def test_a_numpy_clipping_norm_keeps_float32() -> None:
    clipped, _ = clip_by_global_norm({"w": np.ones(4, np.float32)}, np.float64(0.5))
    assert clipped["w"].dtype == np.float32
