"""Attention: what its output and gradients keep to, extreme scores, layouts, accuracy, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import attention_backward, attention_backward_stepwise, attention_forward
from refkd.testing.layouts import LAYOUTS
from refkd.testing.strategies import AttentionShape, attention_shapes, seeded_array
from refkd.testing.tolerances import tolerance

ROUNDINGS = tolerance("float64", "product")
NAMES = ("q", "k", "v")
SHAPE = attention_shapes(masks="none")
VALUE_WIDTH = st.integers(1, 4)
SCALE = st.floats(0.05, 2)
SEED = st.integers(0, 2**32 - 1)
LAYOUT = st.sampled_from([np.ascontiguousarray, *LAYOUTS.values()])
some = settings(max_examples=40, deadline=None)

Arrays = dict[str, np.ndarray]


def shapes_of(shape: AttentionShape, value_width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of dy, q, k and v."""
    return {
        "dy": (*shape.query_shape[:3], value_width),
        "q": shape.query_shape,
        "k": shape.key_shape,
        "v": (*shape.key_shape[:3], value_width),
    }


def draw(seed: int, shape: AttentionShape, value_width: int) -> tuple[np.ndarray, Arrays]:
    """Return dy, and q, k and v by name."""
    rng = np.random.default_rng(seed)
    sizes = shapes_of(shape, value_width).items()
    drawn = {name: rng.standard_normal(size) for name, size in sizes}
    return drawn.pop("dy"), drawn


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return multiples of 1/4, whose products and sums are exact."""
    return rng.integers(-8, 9, shape) / 4


def gradients(dy: np.ndarray, given: Arrays, scale: float) -> Arrays:
    _, probabilities = attention_forward(**given, scale=scale)
    returned = attention_backward(dy, **given, probabilities=probabilities, scale=scale)
    return dict(zip(NAMES, returned, strict=True))


def sizes_of(dy: np.ndarray, given: Arrays, scale: float) -> dict[str, float]:
    """Return the sizes of what is added up for the gradients, which rounding is relative to."""
    q, k, v = (float(np.abs(given[name]).max(initial=0)) for name in NAMES)
    dscores = scale * float(np.abs(dy).sum()) * v
    return {"q": dscores * k, "k": dscores * q, "v": float(np.abs(dy).sum())}


def assert_close(actual: Any, expected: Any, allowed: float) -> None:
    assert np.shape(actual) == np.shape(expected)
    assert np.max(np.abs(actual - expected), initial=0) <= allowed


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_every_row_is_the_weighted_mean_its_formula_says(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    _, given = draw(seed, shape, value_width)
    y, probabilities = attention_forward(**given, scale=scale)
    assert y.shape == (*shape.query_shape[:3], value_width)
    assert probabilities.shape == (*shape.query_shape[:3], shape.key_length)
    q, k, v = (given[name] for name in NAMES)
    for b, h, m in np.ndindex(shape.query_shape[:3]):
        weights = [math.exp(scale * math.fsum(q[b, h, m] * key)) for key in k[b, h]]
        expected = [weight / math.fsum(weights) for weight in weights]
        assert_close(probabilities[b, h, m], expected, ROUNDINGS)
        mean = [math.fsum(expected * column) for column in v[b, h].T]
        assert_close(y[b, h, m], mean, ROUNDINGS * np.abs(v).max())


@some
@given(SHAPE, VALUE_WIDTH, st.sampled_from([1e-3, 1.0, 30.0, 1e4]), SEED)
def test_probabilities_sum_to_one_and_y_lies_among_the_values(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    _, given = draw(seed, shape, value_width)
    y, probabilities = attention_forward(**given, scale=scale)
    assert (probabilities >= 0).all()
    assert_close(probabilities.sum(axis=-1), np.ones(shape.query_shape[:3]), ROUNDINGS)
    v = given["v"]
    slack = ROUNDINGS * np.abs(v).max()
    assert (y >= v.min(axis=2, keepdims=True) - slack).all()
    assert (y <= v.max(axis=2, keepdims=True) + slack).all()


@some
@given(SHAPE, VALUE_WIDTH, SCALE, LAYOUT, SEED)
def test_backward_is_the_complex_step_in_a_random_direction(
    shape: AttentionShape,
    value_width: int,
    scale: float,
    relay: Callable[..., np.ndarray],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    dy, given = draw(seed, shape, value_width)
    dy, given = relay(dy), {name: relay(array) for name, array in given.items()}
    found, size = gradients(dy, given, scale), sizes_of(dy, given, scale)
    for name in NAMES:
        u = rng.standard_normal(given[name].shape)
        y, _ = attention_forward(**{**given, name: given[name] + 1e-30j * u}, scale=scale)
        slope = (dy * y.imag / 1e-30).sum()
        allowed = ROUNDINGS * size[name] * np.abs(u).sum()
        assert abs((found[name] * u).sum() - slope) <= allowed


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_node_by_node_the_backward_is_the_same(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    dy, given = draw(seed, shape, value_width)
    _, probabilities = attention_forward(**given, scale=scale)
    steps = attention_backward_stepwise(dy, **given, probabilities=probabilities, scale=scale)
    found, size = gradients(dy, given, scale), sizes_of(dy, given, scale)
    for name, expected in zip(NAMES, steps, strict=True):
        assert_close(found[name], expected, ROUNDINGS * size[name])


@some
@given(SHAPE, VALUE_WIDTH, SEED)
def test_a_shift_of_all_keys_changes_no_bit_so_that_their_gradients_sum_to_zero(
    shape: AttentionShape, value_width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = shapes_of(shape, value_width)
    dy, *arrays = (integers(rng, size) for size in sizes.values())
    here = dict(zip(NAMES, arrays, strict=True))
    there = {**here, "k": here["k"] + integers(rng, (*shape.key_shape[:2], 1, shape.head_dim))}
    for a, b in zip(
        attention_forward(**here, scale=0.5), attention_forward(**there, scale=0.5), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    total = gradients(dy, here, 0.5)["k"].sum(axis=2)
    assert_close(total, np.zeros_like(total), ROUNDINGS * sizes_of(dy, here, 0.5)["k"])


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_a_shift_of_all_values_shifts_y_so_that_their_gradients_sum_to_that_of_y(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    dy, given = draw(seed, shape, value_width)
    y, _ = attention_forward(**given, scale=scale)
    shifted, _ = attention_forward(**{**given, "v": given["v"] + 3}, scale=scale)
    assert_close(shifted, y + 3, ROUNDINGS * 4 * np.abs(given["v"]).max())
    dv = gradients(dy, given, scale)["v"]
    assert_close(dv.sum(axis=2), dy.sum(axis=2), ROUNDINGS * np.abs(dy).sum())


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_queries_and_keys_share_the_slope_of_the_scale(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    # s·dy/ds = ⟨q, dq⟩ = ⟨k, dk⟩, head by head: a product is scaled by either factor.
    dy, given = draw(seed, shape, value_width)
    found, size = gradients(dy, given, scale), sizes_of(dy, given, scale)
    along = {name: (given[name] * found[name]).sum(axis=(2, 3)) for name in ("q", "k")}
    allowed = ROUNDINGS * size["k"] * np.abs(given["k"]).sum()
    assert_close(along["q"], along["k"], allowed)
    turned = {**given, "q": given["q"] * (1 + 1e-30j)}
    y, _ = attention_forward(**turned, scale=scale)
    assert_close(along["q"], (dy * y.imag / 1e-30).sum(axis=(2, 3)), allowed)


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_the_order_of_queries_is_kept_and_that_of_keys_is_not_seen(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dy, given = draw(seed, shape, value_width)
    rows, columns = (rng.permutation(n) for n in (shape.query_length, shape.key_length))
    order = {"q": rows, "k": columns, "v": columns}
    mixed = {name: array[:, :, order[name]] for name, array in given.items()}
    y, probabilities = attention_forward(**given, scale=scale)
    mixed_y, mixed_probabilities = attention_forward(**mixed, scale=scale)
    assert_close(mixed_y, y[:, :, rows], ROUNDINGS * np.abs(given["v"]).max())
    assert_close(mixed_probabilities, probabilities[:, :, rows][..., columns], ROUNDINGS)
    found, size = gradients(dy, given, scale), sizes_of(dy, given, scale)
    for name, value in gradients(dy[:, :, rows], mixed, scale).items():
        assert_close(value, found[name][:, :, order[name]], ROUNDINGS * size[name])


@some
@given(SHAPE, VALUE_WIDTH, SCALE, SEED)
def test_a_head_sees_neither_the_others_nor_other_examples(
    shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    dy, given = draw(seed, shape, value_width)
    y, probabilities = attention_forward(**given, scale=scale)
    found, size = gradients(dy, given, scale), sizes_of(dy, given, scale)
    for b, h in np.ndindex(shape.query_shape[:2]):
        one = (slice(b, b + 1), slice(h, h + 1))
        alone = {name: array[one] for name, array in given.items()}
        alone_y, alone_probabilities = attention_forward(**alone, scale=scale)
        assert_close(y[one], alone_y, ROUNDINGS * np.abs(given["v"]).max())
        assert_close(probabilities[one], alone_probabilities, ROUNDINGS)
        for name, value in gradients(dy[one], alone, scale).items():
            assert_close(found[name][one], value, ROUNDINGS * size[name])


def test_nan_stays_in_its_head() -> None:
    dy, given = draw(0, AttentionShape(2, 3, 4, 5, 3), 2)
    given["k"][1, 2, 0, 1] = np.nan
    head = np.zeros((2, 3), bool)
    head[1, 2] = True
    y, _ = attention_forward(**given, scale=0.5)
    for array in (y, *gradients(dy, given, 0.5).values()):
        np.testing.assert_array_equal(np.isnan(array).any(axis=(2, 3)), head)


def test_one_key_gives_its_value_whatever_the_query() -> None:
    dy, given = draw(0, AttentionShape(2, 3, 4, 1, 3), 2)
    y, probabilities = attention_forward(**given, scale=0.5)
    np.testing.assert_array_equal(probabilities, np.ones((2, 3, 4, 1)))
    np.testing.assert_array_equal(y, np.broadcast_to(given["v"], y.shape))
    found = gradients(dy, given, 0.5)
    np.testing.assert_array_equal(found["q"], np.zeros_like(found["q"]))
    np.testing.assert_array_equal(found["k"], np.zeros_like(found["k"]))


def test_a_query_of_zeros_gives_the_mean_of_the_values() -> None:
    _, given = draw(0, AttentionShape(1, 2, 3, 4, 5), 3)
    y, probabilities = attention_forward(**{**given, "q": np.zeros((1, 2, 3, 5))}, scale=1.0)
    np.testing.assert_array_equal(probabilities, np.full((1, 2, 3, 4), 0.25))
    mean = given["v"].mean(axis=2, keepdims=True)
    assert_close(y, np.broadcast_to(mean, y.shape), ROUNDINGS * np.abs(given["v"]).max())


def test_a_large_scale_tends_to_the_value_of_the_best_key() -> None:
    _, given = draw(0, AttentionShape(2, 2, 3, 4, 5), 3)
    y, _ = attention_forward(**given, scale=1e6)
    best = (given["q"] @ given["k"].swapaxes(-1, -2)).argmax(axis=-1)
    np.testing.assert_array_equal(y, np.take_along_axis(given["v"], best[..., None], axis=2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_extreme_scores_are_exact_and_their_gradients_finite(
    dtype: type[np.floating], magnitude: float
) -> None:
    q = np.array([[1, 0], [-1, 0], [0, 1]], dtype)[None, None]
    k = np.array([[magnitude, magnitude], [-magnitude, magnitude]], dtype)[None, None]
    v = np.array([[3.0], [5.0]], dtype)[None, None]
    y, probabilities = attention_forward(q, k, v, scale=1.0)
    np.testing.assert_array_equal(probabilities[0, 0], [[1, 0], [0, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(y[0, 0], [[3], [5], [4]])
    dq, dk, dv = attention_backward(y, q, k, v, probabilities, scale=1.0)
    # Where the choice is certain nothing pulls at it; where it is open, the second value does.
    np.testing.assert_array_equal(dq[0, 0], [[0, 0], [0, 0], [dtype(-4 * magnitude), 0]])
    np.testing.assert_array_equal(dk[0, 0], [[0, -2], [0, 2]])
    np.testing.assert_array_equal(dv[0, 0], [[5], [7]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_impossible_key_has_probability_zero(dtype: type[np.floating]) -> None:
    k = np.array([0, -np.inf, 0], dtype).reshape(1, 1, 3, 1)
    v = np.array([1, 100, 3], dtype).reshape(1, 1, 3, 1)
    y, probabilities = attention_forward(np.ones((1, 1, 2, 1), dtype), k, v, scale=1.0)
    np.testing.assert_array_equal(probabilities[0, 0], 2 * [[0.5, 0, 0.5]])
    np.testing.assert_array_equal(y[0, 0], [[2], [2]])


@some
@given(
    SHAPE,
    VALUE_WIDTH,
    st.sampled_from(["ties", "equal", "zeros", "subnormal", "large"]),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from(["C", *LAYOUTS]),
    SEED,
)
def test_values_that_numerical_code_gets_wrong_give_finite_results(
    shape: AttentionShape, value_width: int, values: str, dtype: str, layout: str, seed: int
) -> None:
    sizes = shapes_of(shape, value_width).values()
    dy, *arrays = (
        seeded_array(size, dtype, values=values, layout=layout, seed=seed + i)
        for i, size in enumerate(sizes)
    )
    given = dict(zip(NAMES, arrays, strict=True))
    y, probabilities = attention_forward(**given, scale=0.5)
    for array in (y, probabilities, *gradients(dy, given, 0.5).values()):
        assert array.dtype == dtype
        assert np.isfinite(array).all()
    rows = probabilities.sum(axis=-1, dtype=np.float64)
    assert_close(rows, np.ones_like(rows), tolerance(dtype, "reduction"))


def heads_of_tokens(x: np.ndarray) -> np.ndarray:
    """Return x as a layer hands it over: a view of (B, tokens, heads, width)."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("relay", [np.ascontiguousarray, heads_of_tokens, LAYOUTS["transposed"]])
@pytest.mark.parametrize(("tokens", "width"), [(197, 64), (64, 128)])
def test_float32_is_accurate_in_any_layout(
    relay: Callable[..., np.ndarray], tokens: int, width: int
) -> None:
    dy, given = draw(0, AttentionShape(1, 2, tokens, tokens, width), width)
    single = {name: relay(array.astype(np.float32)) for name, array in given.items()}
    double = {name: array.astype(np.float64) for name, array in single.items()}
    dy = relay(dy.astype(np.float32))
    scale = 1 / math.sqrt(width)
    actual = [*attention_forward(**single, scale=scale), *gradients(dy, single, scale).values()]
    exact = attention_forward(**double, scale=scale)
    exact = [*exact, *gradients(dy.astype(np.float64), double, scale).values()]
    for a, e in zip(actual, exact, strict=True):
        assert a.dtype == np.float32
        assert_close(a, e, tolerance("float32", "reduction") * np.abs(e).max())


def test_dtype_is_kept_for_any_kind_of_scale() -> None:
    for dtype in (np.float32, np.float64, np.complex128):
        x = np.ones((1, 2, 3, 4), dtype)
        for scale in (2, 0.5, np.float64(0.5), np.float32(0.5), np.int64(2)):
            y, probabilities = attention_forward(x, x, x, scale=scale)
            returned = attention_backward(y, x, x, x, probabilities, scale=scale)
            assert {a.dtype for a in (y, probabilities, *returned)} == {np.dtype(dtype)}


def test_any_argument_may_be_complex_alone() -> None:
    dy, given = draw(0, AttentionShape(2, 2, 3, 4, 3), 2)
    _, probabilities = attention_forward(**given, scale=0.5)
    arguments = {"dy": dy, **given, "probabilities": probabilities}
    expected = attention_backward(**arguments, scale=0.5)
    for name in arguments:
        changed = {**arguments, name: arguments[name] + 0j}
        for a, e in zip(attention_backward(**changed, scale=0.5), expected, strict=True):
            assert_close(a, e, ROUNDINGS * np.abs(e).max())
    outputs = attention_forward(**given, scale=0.5)
    for name in NAMES:
        changed = {**given, name: given[name] + 0j}
        for a, e in zip(attention_forward(**changed, scale=0.5), outputs, strict=True):
            assert_close(a, e, ROUNDINGS * np.abs(e).max())


Q, K, V = (2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        (Q[1:], K, V),
        (Q, K, V[1:]),
        ((1, 3, 4, 5), K, V),
        (Q, (2, 1, 6, 5), V),
        (Q, (2, 3, 6, 4), V),
        (Q, K, (2, 3, 5, 7)),
        (Q, K, (2, 3, 7, 6)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]
) -> None:
    arrays = (np.ones(q), np.ones(k), np.ones(v))
    words = r"expected q \(B, heads, M, d\), k \(B, heads, N, d\) and v \(B, heads, N, e\), got q "
    with pytest.raises(ShapeError, match=f"^attention_forward: {words}"):
        attention_forward(*arrays, scale=1.0)
    with pytest.raises(ShapeError, match=f"^attention_backward: {words}"):
        attention_backward(np.ones((2, 3, 4, 7)), *arrays, np.ones((2, 3, 4, 6)), scale=1.0)


def test_no_key_is_refused_and_no_query_or_example_is_not() -> None:
    with pytest.raises(ShapeError, match=r"at least one key, got k \(2, 3, 0, 5\)"):
        attention_forward(np.ones(Q), np.ones((2, 3, 0, 5)), np.ones((2, 3, 0, 7)), scale=1.0)
    y, _ = attention_forward(np.ones((2, 3, 0, 5)), np.ones(K), np.ones(V), scale=1.0)
    assert y.shape == (2, 3, 0, 7)
    y, _ = attention_forward(*(np.ones((0, *shape[1:])) for shape in (Q, K, V)), scale=1.0)
    assert y.shape == (0, 3, 4, 7)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("dy", (2, 3, 4, 5), (2, 3, 4, 7)),
        ("dy", (2, 3, 7, 4), (2, 3, 4, 7)),
        ("dy", (3, 4, 7), (2, 3, 4, 7)),
        ("probabilities", (2, 3, 6, 4), (2, 3, 4, 6)),
        ("probabilities", (1, 3, 4, 6), (2, 3, 4, 6)),
    ],
)
def test_backward_refuses_what_is_not_the_forwards(
    name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    given = {"dy": np.ones((2, 3, 4, 7)), "probabilities": np.ones((2, 3, 4, 6))}
    given[name] = np.ones(shape)
    words = f"attention_backward: {name} must have shape {expected} to match q {Q}, k {K} and v {V}"
    with pytest.raises(ShapeError) as caught:
        attention_backward(q=np.ones(Q), k=np.ones(K), v=np.ones(V), **given, scale=1.0)
    assert str(caught.value) == f"{words}, got {shape}"


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_a_scale_that_is_no_positive_number_is_refused(scale: Any) -> None:
    x = np.ones((1, 1, 2, 2))
    with pytest.raises(ConfigError, match=r"^attention_forward: scale must be a finite .*> 0"):
        attention_forward(x, x, x, scale=scale)
    with pytest.raises(ConfigError, match=r"^attention_backward: scale must be a finite .*> 0"):
        attention_backward(x, x, x, x, x, scale=scale)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_floating_array_or_of_another_dtype_is_refused(name: str) -> None:
    given = dict.fromkeys(NAMES, np.ones((1, 1, 2, 2)))
    for wrong, words in (
        (np.ones((1, 1, 2, 2), np.float32), f"{name} float32"),
        (np.ones((1, 1, 2, 2), np.int64), f"{name} int64"),
        ([[[[1.0]]]], f"{name} must be an array, got list"),
    ):
        with pytest.raises(DtypeError, match=f"^attention_forward: .*{words}"):
            attention_forward(**{**given, name: wrong}, scale=1.0)
        with pytest.raises(DtypeError, match=f"^attention_backward: .*{words}"):
            attention_backward(
                **{"dy": given["v"], **given, "probabilities": given["v"], name: wrong}, scale=1.0
            )
