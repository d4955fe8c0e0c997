"""The gradients that errors are planted in are right, and every planted error differs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.subjects import Subject, one_entry_off, random_entry
from bench.subjects.drawn import draw
from bench.subjects.large import OF_SIZE, mlp_loss
from bench.subjects.layers import conv2d
from bench.subjects.planted import LITERATURE
from bench.subjects.pooling import max_pool

# At a tie or a cast the complex step is not the derivative.
SMOOTH = [make for make in LITERATURE if make is not max_pool]
LONGDOUBLE_IS_WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def complex_step_gap(subject: Subject) -> float:
    """Return the largest error of the gradient, in units of its largest entry."""
    right = subject.grad(**subject.params)
    gap = 0.0
    for name, value in subject.params.items():
        numeric = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = {k: v.astype(complex) for k, v in subject.params.items()}
            moved[name][index] += 1e-30j
            numeric[index] = np.imag(subject.f(**moved)) / 1e-30
        gap = max(gap, np.max(np.abs(numeric - right[name])) / np.max(np.abs(numeric)))
    return gap


@pytest.mark.parametrize("make", SMOOTH, ids=lambda make: make.__name__)
def test_the_gradient_is_the_derivative(make: Callable[..., Subject]) -> None:
    assert complex_step_gap(make(rng())) < 1e-13


@pytest.mark.parametrize("make", OF_SIZE, ids=lambda make: make.__name__)
def test_the_gradient_of_many_entries_is_the_derivative(make: Callable[..., Subject]) -> None:
    assert complex_step_gap(make(rng(), 20)) < 1e-13


def test_the_gradient_of_a_perceptron_is_the_derivative() -> None:
    assert complex_step_gap(mlp_loss(rng(), (4, 5, 3, 3), batch=6)) < 1e-13


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, 0, 5), (1, 1, 5), (2, 1, 7), (3, 2, 8)]
)
def test_the_convolution_is_right_at_any_stride(stride: int, padding: int, size: int) -> None:
    subject = conv2d(rng(), size=size, stride=stride, padding=padding)
    assert complex_step_gap(subject) < 1e-13


@pytest.mark.parametrize("make", LITERATURE, ids=lambda make: make.__name__)
def test_every_planted_error_differs_from_the_gradient(make: Callable[..., Subject]) -> None:
    subject = make(rng())
    right = subject.grad(**subject.params)
    assert subject.errors
    for error, grad in subject.errors.items():
        wrong = grad(**subject.params)
        assert wrong.keys() == right.keys(), error
        assert any(not np.allclose(wrong[n], right[n], rtol=1e-9) for n in right), error


def test_a_pooling_gradient_of_any_convention_gives_each_window_its_slope_once() -> None:
    subject = max_pool(rng())
    total = subject.grad(**subject.params)["x"].sum(axis=-1)
    for grad in subject.conventions.values():
        np.testing.assert_allclose(grad(**subject.params)["x"].sum(axis=-1), total, rtol=1e-14)
    for error in ("every tied maximum gets all", "no tied maximum gets anything"):
        other = subject.errors[error](**subject.params)["x"].sum(axis=-1)
        assert np.all(np.abs(other - total) > 0.5 * np.abs(total))


def test_one_entry_off_changes_one_entry() -> None:
    gradients = {"a": np.array([0.0, 2.0]), "b": np.zeros(3)}
    entry = random_entry(gradients, rng())
    assert entry is not None
    assert (entry.name, entry.index) == ("a", (1,))
    changed = one_entry_off(lambda **_: gradients, entry)()
    np.testing.assert_array_equal(changed["a"], [0.0, 2.02])
    assert random_entry({"b": np.zeros(3)}, rng()) is None
    assert gradients["a"][1] == 2.0


@pytest.mark.skipif(not LONGDOUBLE_IS_WIDER, reason="longdouble is no wider than float64 here")
def test_drawn_gradients_are_right_to_rounding_where_nothing_cancels() -> None:
    errors = []
    for seed in range(300):
        subject = draw(np.random.default_rng(seed)).subject
        wide = {n: v.astype(np.longdouble) for n, v in subject.params.items()}
        single = any(v.dtype == np.float32 for v in subject.params.values())
        if single or "cast" in subject.name:
            continue
        exact, given = subject.grad(**wide), subject.grad(**subject.params)
        for name, right in exact.items():
            scale = np.max(np.abs(right))
            errors.append(float(np.max(np.abs(given[name] - right)) / scale) if scale else 0.0)
    assert len(errors) > 300
    assert np.quantile(errors, 0.95) < 1e-14


def test_drawn_functions_differ_in_scale_dtype_and_kinks() -> None:
    drawn = [draw(np.random.default_rng(seed)) for seed in range(300)]
    values = [abs(float(d.subject.f(**d.subject.params))) for d in drawn]
    assert max(values) > 1e6
    assert min(values) < 1e-3
    dtypes = {v.dtype.name for d in drawn for v in d.subject.params.values()}
    assert dtypes == {"float64", "float32"}
    assert 10 < sum(d.on_kink for d in drawn) < 60


def test_a_drawn_gradient_on_a_kink_lies_between_the_one_sided_slopes() -> None:
    tried = 0
    for seed in range(400):
        drawn = draw(np.random.default_rng(seed))
        subject = drawn.subject
        if not drawn.on_kink or "cast" in subject.name:
            continue
        tried += 1
        x = subject.params["x"]
        given = subject.grad(**subject.params)["x"]
        scale = np.max(np.abs(given)) + abs(float(subject.f(**subject.params)))
        for index in np.ndindex(x.shape):
            slopes = [one_sided(subject, index, side) for side in (-1, 1)]
            slack = 1e-3 * scale + 1e-3 * max(map(abs, slopes))
            assert min(slopes) - slack <= given[index] <= max(slopes) + slack, f"seed {seed}"
    assert tried > 20


def one_sided(subject: Subject, index: tuple[int, ...], side: int) -> float:
    step = side * 1e-6 * max(1e-3, float(np.max(np.abs(subject.params["x"]))))
    moved: dict[str, Any] = {n: v.astype(np.longdouble) for n, v in subject.params.items()}
    before = subject.f(**moved)
    moved["x"][index] += step
    return float((subject.f(**moved) - before) / step)


def test_every_maker_is_documented() -> None:
    assert all(inspect.getdoc(make) for make in (*LITERATURE, *OF_SIZE))
