"""What a wrong gradient looks like: each error gets its name, and no error a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.testing import Verdict, check_grad
from refkd.testing.explain import explain

N, C, T = 6, 5, 4.0
MODES = ("full", "directional")
SEED = st.integers(0, 2**32 - 1)
Change = Callable[[Any], Any]


def point(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).uniform(0.2, 1, size=shape)


def explained(shape: tuple[int, ...], change: Change, mode: str = "full", **constants: Any) -> str:
    """Check f(x) = Σ c sin(x), its gradient changed, and return the guess."""
    c = point(*shape, seed=2)
    report = check_grad(
        lambda x, **_: (c * np.sin(x)).sum(),
        {"x": point(*shape), **constants},
        lambda x, **_: {"x": np.ascontiguousarray(change(c * np.cos(x)))},
        mode=mode,
    )
    assert report.verdict is Verdict.WRONG_GRADIENT
    return report.explanation


FACTORS: dict[str, tuple[float, str]] = {
    "T² forgotten": (1 / 16, "the derivative times 0.0625: 1/T² with T = 4?"),
    "T² too many": (16.0, "the derivative times 16: T² with T = 4?"),
    "mean for sum": (1 / N, "times 0.166667: 1/6 (the length of axis 0 of x)?"),
    "mean over the classes": (1 / C, "times 0.2: 1/5 (the length of axis 1 of x)?"),
    "sum for mean": (float(N), "times 6: 6 (the length of axis 0 of x)?"),
    "mean over all": (1 / (N * C), "times 0.0333333: 1/30 (the number of entries of x)?"),
    "sign": (-1.0, "the derivative with the wrong sign"),
    "sign and mean": (-1 / N, "times -0.166667: -1/6 (the length of axis 0 of x)?"),
    "no meaning": (1.234, "the derivative times 1.234"),
    "tiny": (1.0 / 1024, "the derivative times 0.000976562: 1/T² with T = 32?"),
    "huge": (1.2345e12, "the derivative times 1.2345e+12"),
    "nearly one": (1 + 1e-8, "the derivative times 1 + 1e-08"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_is_named(name: str, mode: str) -> None:
    factor, expected = FACTORS[name]
    found = explained((N, C), lambda g: factor * g, mode)
    assert found.endswith(expected)
    assert found.startswith("the derivative ")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("power", "name"),
    [(1, "temperature"), (-1, "1/temperature"), (2, "temperature²"), (-2, "1/temperature²")],
)
@pytest.mark.parametrize("value", [3.5, 7, np.int64(7), -3.5])
def test_a_scalar_among_the_parameters_names_its_powers(
    value: Any, power: int, name: str, mode: str
) -> None:
    factor = float(value) ** power
    found = explained((N, C), lambda g: factor * g, mode, temperature=value)
    assert f": {name}" in found


def test_a_zero_dimensional_parameter_is_a_scalar_too() -> None:
    x, t = point(N, C), np.array(3.7)
    report = check_grad(
        lambda x, t: (np.sin(x) / t).sum(),
        {"x": x, "t": t},
        lambda x, t: {"x": np.cos(x), "t": np.asarray(-np.sin(x).sum() / t**2)},
    )
    assert report.explanation == "the derivative times 3.7: t?"


@pytest.mark.parametrize(
    "constant", [1e200, 1e-200, -1e300, 5e-324, 10**400, np.inf, np.nan, 0, 0.0, 1, True, "a", None]
)
def test_no_constant_among_the_parameters_stands_in_the_way(constant: Any) -> None:
    for factor in (2.25, 1.7):
        found = explained((N, C), lambda g, factor=factor: factor * g, constant=constant)
        assert found.startswith(f"the derivative times {factor}")
        assert "constant" not in found


def test_a_large_factor_is_no_square_by_accident() -> None:
    rng = np.random.default_rng(0)
    for factor in 10 ** rng.uniform(5, 200, size=50):
        numeric = rng.normal(size=6)
        for wrong in (factor * numeric, numeric / factor):
            assert "T" not in explain(wrong, numeric, None, {})


REARRANGED: dict[str, tuple[tuple[int, ...], Change, str]] = {
    "square transposed": ((C, C), np.transpose, "the derivative, transposed"),
    "kernel transposed": ((2, 3, 3), lambda g: np.swapaxes(g, 1, 2), "the derivative, transposed"),
    "vector": ((N,), lambda g: g[::-1], "reversed along axis 0"),
    "rows": ((N, C), lambda g: g[::-1], "reversed along axis 0"),
    "columns": ((N, C), lambda g: g[:, ::-1], "reversed along axis 1"),
    "kernel": ((2, 3, 3), lambda g: g[:, ::-1, ::-1], "reversed along axes 1, 2"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REARRANGED)
def test_an_order_is_named(name: str, mode: str) -> None:
    shape, change, expected = REARRANGED[name]
    assert explained(shape, change, mode).endswith(expected)


REDUCED: dict[str, tuple[Change, str]] = {
    "sum": (lambda g: g.sum(axis=0, keepdims=True) + 0 * g, "sum over axis 0 in the place"),
    "mean": (lambda g: g.mean(axis=0, keepdims=True) + 0 * g, "mean over axis 0 in the place"),
    "sum over the last": (
        lambda g: g.sum(axis=1, keepdims=True) + 0 * g,
        "sum over axis 1 in the place",
    ),
    "mean detached": (
        lambda g: g - g.mean(axis=1, keepdims=True),
        "all errors along axis 1 are equal",
    ),
}


@pytest.mark.parametrize("name", REDUCED)
def test_a_sum_or_mean_too_many_is_named(name: str) -> None:
    change, expected = REDUCED[name]
    assert expected in explained((N, C), change)


@pytest.mark.parametrize("mode", MODES)
def test_what_grad_holds_constant_and_f_does_not_is_named(mode: str) -> None:
    assert explained((N, C), lambda g: 0 * g, mode).startswith("the gradient is zero")


@pytest.mark.parametrize("mode", MODES)
def test_what_f_holds_constant_and_grad_does_not_is_named(mode: str) -> None:
    teacher, student = point(N, C), point(N, C, seed=3)
    report = check_grad(
        lambda student, teacher: (np.sin(student) * 2).sum(),
        {"student": student, "teacher": teacher},
        lambda student, teacher: {"student": 2 * np.cos(student), "teacher": np.sin(student)},
        mode=mode,
    )
    assert report.worst is not None
    assert report.worst.name == "teacher"
    assert report.explanation.startswith("the derivative is zero")


def test_a_layer_norm_with_a_detached_mean_is_recognised() -> None:
    x, c = point(N, C), point(N, C, seed=2)

    def f(x: Any) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)
        return (c * centred / ((centred**2).mean(axis=-1, keepdims=True) + 1e-5) ** 0.5).sum()

    def grad(x: Any) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)
        rstd = ((centred**2).mean(axis=-1, keepdims=True) + 1e-5) ** -0.5
        normal = centred * rstd
        return {"x": rstd * (c - normal * (c * normal).mean(axis=-1, keepdims=True))}

    assert "all errors along axis 1 are equal" in check_grad(f, {"x": x}, grad).explanation


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        ([7], "the wrong entry is 2 times the derivative"),
        ([1, 7, 9], "the 3 wrong entries are 2 times the derivative"),
    ],
)
def test_a_few_entries_with_one_factor_are_counted(flat: list[int], expected: str) -> None:
    def change(g: Any) -> Any:
        g.flat[flat] *= 2
        return g

    assert explained((N, C), change) == expected


SHAPES: dict[str, tuple[tuple[int, ...], Change, str]] = {
    "batch not summed": ((C,), lambda x: np.ones((N, C)), "a sum over the first"),
    "scalar not summed": ((), lambda x: np.ones(C), "a sum over the first"),
    "transposed": ((N, C), lambda x: np.ones((C, N)), "a transpose is missing"),
    "permuted": ((2, 3, 4), lambda x: np.ones((3, 2, 4)), "the axes are permuted"),
    "summed": ((N, C), lambda x: np.ones(C), "a sum over the batch that should not be"),
    "keepdims": ((N, C), lambda x: np.ones((1, C)), "a sum with keepdims over an axis"),
    "axis too many": ((C,), lambda x: np.ones((1, C)), "axes of length 1 too many or too few"),
    "other": ((N, C), lambda x: np.ones((N, C + 1)), ""),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_shape_is_explained(name: str) -> None:
    shape, wrong, expected = SHAPES[name]
    report = check_grad(lambda x: (x * x).sum(), {"x": point(*shape)}, lambda x: {"x": wrong(x)})
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert expected in report.explanation
    assert bool(expected) == bool(report.explanation)


@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (2, 3)])
def test_a_wrong_dtype_is_not_explained_by_the_shape(shape: tuple[int, ...]) -> None:
    report = check_grad(
        lambda x: (x * x).sum(), {"x": point(*shape)}, lambda x: {"x": (2 * x).astype(np.float32)}
    )
    assert (report.verdict, report.explanation) == (Verdict.SHAPE_DTYPE, "")


@given(SEED)
@settings(max_examples=400)
def test_a_random_error_is_not_explained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, size=rng.integers(0, 4)))
    numeric = rng.normal(size=shape)
    size = 10.0 ** rng.uniform(-9, 5)
    wrong = numeric + size * rng.normal(size=shape)
    assert explain(wrong, numeric.ravel(), None, {"x": numeric, "temperature": 4.0}) == ""


@given(SEED)
@settings(max_examples=200)
def test_a_random_error_in_some_entries_is_not_explained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(4, 4))
    wrong = numeric.copy()
    places = rng.choice(16, size=rng.integers(2, 16), replace=False)
    wrong.flat[places] += rng.normal(size=places.size)
    assert explain(wrong, numeric.ravel(), None, {"x": numeric}) == ""


def test_one_number_is_no_multiple_of_another_without_a_reason() -> None:
    for wrong, expected in ((1.7, ""), (2.25, "T² with T = 1.5"), (-1.0, "wrong sign")):
        assert expected in explain(np.array(wrong), np.array([1.0]), None, {})
    # One number among zeros says no more.
    assert explain(np.array([0, 1.7, 0]), np.array([0, 1.0, 0]), None, {}) == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_explained(bad: float) -> None:
    assert explain(np.array([1.0, 2.0]), np.array([bad, 1.0]), None, {}) == ""


def test_equal_gradients_are_not_explained() -> None:
    x = point(C)
    assert explain(x, x.copy(), None, {}) == ""
    assert explain(0 * x, 0 * x, None, {}) == ""


@pytest.mark.parametrize("exponent", [-300, -200, 200, 300])
def test_explanations_do_not_depend_on_the_size_of_the_gradient(exponent: int) -> None:
    g = point(C, C) * 10.0**exponent
    assert "T² with T = 4" in explain(16 * g, g.ravel(), None, {})
    assert explain(g.T, g.ravel(), None, {}).endswith("transposed")


class TestSampled:
    """Where the derivative is known at some entries only, and along one direction."""

    table = np.zeros((1000, 8))
    table[[17, 400]] = point(2, 8)
    shifted = np.roll(table, 1, axis=0)
    places = np.union1d(np.linspace(0, 7999, 16).astype(np.intp), [18 * 8, 17 * 8])

    def explain(self, analytic: Any, numeric: Any, places: Any) -> str:
        u = np.random.default_rng(5).choice([-1.0, 1.0], size=analytic.shape)
        along = (u, float((u * numeric).sum()))
        return explain(analytic, numeric.ravel()[places], places, {}, along)

    def test_a_derivative_that_is_zero_at_the_samples_only_is_not_called_zero(self) -> None:
        assert self.explain(self.shifted, self.table, self.places[self.places != 17 * 8]) == ""

    def test_a_gradient_that_is_zero_at_the_samples_only_is_not_called_zero(self) -> None:
        assert self.explain(self.shifted, self.table, self.places[self.places != 18 * 8]) == ""

    def test_a_factor_that_holds_at_the_samples_only_is_not_claimed(self) -> None:
        numeric = point(4000, seed=9)
        analytic = 16 * numeric
        analytic[1] = numeric[1]
        places = np.linspace(0, 3999, 16).astype(np.intp)
        assert self.explain(16 * numeric, numeric, places).endswith("T² with T = 4?")
        assert self.explain(analytic, numeric, places) == ""

    def test_a_reversal_that_holds_at_the_samples_only_is_not_claimed(self) -> None:
        numeric = point(4000, seed=9)
        analytic = numeric[::-1].copy()
        places = np.linspace(0, 3999, 16).astype(np.intp)
        assert "reversed" in self.explain(analytic, numeric, places)
        analytic[1] *= 2
        assert self.explain(analytic, numeric, places) == ""

    def test_a_zero_gradient_and_a_zero_derivative_are_named(self) -> None:
        g = point(4000)
        places = np.linspace(0, 3999, 16).astype(np.intp)
        assert self.explain(0 * g, g, places).startswith("the gradient is zero")
        assert self.explain(g, 0 * g, places).startswith("the derivative is zero")

    def test_how_many_entries_are_wrong_is_said_of_those_compared(self) -> None:
        numeric = point(4000)
        analytic = numeric.copy()
        places = np.linspace(0, 3999, 16).astype(np.intp)
        analytic[places[[2, 5]]] *= 3
        assert self.explain(analytic, numeric, places) == (
            "the 2 wrong entries compared are 3 times the derivative"
        )
        analytic[places[5]] /= 3
        assert self.explain(analytic, numeric, places) == ""


@pytest.mark.parametrize("rows", [(17, 400), (0, 999)])
def test_an_embedding_gradient_in_the_wrong_rows_is_not_called_detached(
    rows: tuple[int, int],
) -> None:
    c = point(2, 8)

    def grad(table: Any) -> Any:
        gradient = np.zeros_like(table)
        gradient[np.add(rows, 1) % 1000] = c
        return {"table": gradient}

    report = check_grad(
        lambda table: (c * table[list(rows)]).sum(), {"table": point(1000, 8)}, grad
    )
    assert (report.verdict, report.mode) == (Verdict.WRONG_GRADIENT, "directional")
    assert report.explanation == ""
