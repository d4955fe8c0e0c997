"""The gradient checker: right gradients pass, wrong ones are found where they are wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError
from refkd.testing import GradCheckError, Verdict, check_grad
from refkd.testing.derivatives import complex_step
from refkd.testing.differences import ridders
from refkd.testing.references import widest_float

SEED = st.integers(0, 2**32 - 1)


def sum_of_sines(x: Any) -> Any:
    return np.sin(x).sum()


def cosines(x: Any) -> dict[str, Any]:
    return {"x": np.cos(x)}


def point(*shape: int, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).uniform(0.2, 1, size=shape)}


def drawn_functions() -> Any:
    # The tests are no package: a helper beside them is loaded by its path.
    spec = importlib.util.spec_from_file_location(
        "drawn_functions", Path(__file__).with_name("drawn_functions.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(1000), marks=pytest.mark.slow)])
def test_hundreds_of_correct_gradients_raise_no_alarm(seeds: range) -> None:
    draw_function = drawn_functions().draw_function
    passed = 0
    for seed in seeds:
        drawn = draw_function(np.random.default_rng(seed))
        report = check_grad(drawn.f, drawn.params, drawn.grad, rng=seed)
        assert report.verdict in (Verdict.PASS, Verdict.NOISY_REFERENCE), f"{seed}: {report}"
        assert report.method == "complex"
        passed += report.ok
    assert passed >= 0.995 * len(seeds)


@given(SEED, st.integers(-8, -2))
@settings(max_examples=100, deadline=None)
def test_one_entry_slightly_off_is_found(seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 6, size=rng.integers(1, 4)))
    index = tuple(int(rng.integers(n)) for n in shape)

    def grad(x: Any) -> dict[str, Any]:
        gradient = np.cos(x)
        gradient[index] *= 1 + 10.0**exponent
        return {"x": gradient}

    report = check_grad(sum_of_sines, point(*shape, seed=seed), grad)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert (report.worst.name, report.worst.index) == ("x", index)
    assert report.worst.analytic - report.worst.numeric == pytest.approx(
        10.0**exponent * report.worst.numeric, rel=1e-6
    )


@pytest.mark.parametrize("seed", [5843, 24291])
def test_a_gradient_of_nothing_but_cancelled_digits_is_not_called_wrong(seed: int) -> None:
    # A saturated softmax behind large weights: 1e-17 is left of terms of order one.
    drawn = drawn_functions().draw_function(np.random.default_rng(seed))
    report = check_grad(drawn.f, drawn.params, drawn.grad, rng=seed)
    assert report.verdict is Verdict.NOISY_REFERENCE
    assert "cannot tell" in report.message


def test_a_wrong_entry_is_found_beside_one_that_is_all_rounding_error() -> None:
    # The phase 1e3 x has lost three digits, and differently in both functions.
    def f(x: Any) -> Any:
        return np.sin(1e3 * x[0]) + np.sin(x[1])

    def grad(x: Any, factor: float = 1.0) -> dict[str, Any]:
        phase = 1e4 * (0.1 * x[0])
        return {"x": np.array([1e3 * np.cos(phase), factor * np.cos(x[1])])}

    params = {"x": np.array([0.7, 0.3])}
    noisy = check_grad(f, params, grad, tolerance=1e-15)
    assert noisy.verdict is not Verdict.WRONG_GRADIENT
    assert noisy.worst is not None
    gap = abs(noisy.worst.analytic - noisy.worst.numeric)
    assert (noisy.worst.index, gap > 1e-11) == ((0,), True)
    report = check_grad(f, params, lambda x: grad(x, 1 - 0.9 * gap), tolerance=1e-15)
    assert report.verdict is not Verdict.PASS
    assert report.worst is not None
    assert report.worst.index == (1,)


def test_a_term_too_small_for_the_verification_is_confirmed_before_it_is_called_wrong() -> None:
    def f(x: Any, y: Any) -> Any:
        return 1e6 * np.sin(300 * x).sum() + 0.1 * np.abs(y).sum()

    def grad(x: Any, y: Any) -> dict[str, Any]:
        return {"x": 3e8 * np.cos(300 * x), "y": np.full_like(y, 0.1)}

    for seed in range(5):
        params = {**point(3, seed=seed), "y": np.ones(3)}
        report = check_grad(f, params, grad, method="complex", mode="directional", rng=seed)
        assert report.verdict is Verdict.NOISY_REFERENCE
        assert "f is not analytic" in report.message
        report = check_grad(f, params, grad, rng=seed)
        assert report.ok, str(report)
        assert report.method == "longdouble"


@pytest.mark.parametrize("size", [2001, 100_000])
def test_one_entry_off_by_one_percent_is_found_among_very_many(size: int) -> None:
    index = size // 3
    params = {"y": np.ones(5), **point(size)}

    def f(x: Any, y: Any) -> Any:
        return sum_of_sines(x) * y.sum()

    def grad(x: Any, y: Any) -> dict[str, Any]:
        gradient = np.cos(x) * y.sum()
        gradient[index] *= 1.01
        return {"x": gradient, "y": np.full(5, sum_of_sines(x))}

    report = check_grad(f, params, grad)
    assert (report.verdict, report.mode) == ("WRONG_GRADIENT", "directional")
    assert report.worst is not None
    assert (report.worst.name, report.worst.index) == ("x", (index,))
    assert report.worst.scaled_error == pytest.approx(0.01)


def test_a_correct_gradient_of_very_many_entries_passes() -> None:
    report = check_grad(sum_of_sines, point(100_000), cosines)
    assert report.ok
    assert (report.mode, report.entries) == ("directional", 100_000)


@pytest.mark.parametrize("mode", ["full", "directional"])
def test_both_modes_agree(mode: str) -> None:
    assert check_grad(sum_of_sines, point(3, 4), cosines, mode=mode).ok
    report = check_grad(sum_of_sines, point(3, 4), lambda x: {"x": -np.cos(x)}, mode=mode)
    assert (report.verdict, report.mode) == ("WRONG_GRADIENT", mode)


def test_two_thousand_entries_are_compared_one_by_one() -> None:
    report = check_grad(sum_of_sines, point(2000), cosines)
    assert (report.ok, report.mode, report.entries) == (True, "full", 2000)


NOT_ANALYTIC: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "abs": (lambda x: np.exp(np.abs(x)).sum(), np.exp),
    "conj": (lambda x: np.sin(x * np.conj(x)).sum(), lambda x: 2 * x * np.cos(x * x)),
    "real": (lambda x: np.exp(x * x.real).sum(), lambda x: 2 * x * np.exp(x * x)),
    "cast": (lambda x: np.exp(x.astype(np.float64)).sum(), np.exp),
    "float": (lambda x: float(np.exp(x).sum()), np.exp),
    "norm": (lambda x: np.linalg.norm(x) ** 3, lambda x: 3 * x * np.linalg.norm(x)),
    "var": (lambda x: np.exp(np.var(x)), lambda x: np.exp(np.var(x)) * 2 * (x - x.mean()) / 6),
}
FLOAT64_ONLY = ("cast", "float")


@pytest.mark.parametrize("name", NOT_ANALYTIC)
def test_the_complex_step_alone_passes_no_function_that_is_not_analytic(name: str) -> None:
    f, slope = NOT_ANALYTIC[name]
    report = check_grad(f, point(6), lambda x: {"x": slope(x)}, method="complex")
    assert report.verdict is Verdict.NOISY_REFERENCE
    assert "not analytic" in report.message or "does not take complex" in report.message


@pytest.mark.parametrize("name", NOT_ANALYTIC)
def test_real_differences_judge_a_function_that_is_not_analytic(name: str) -> None:
    f, slope = NOT_ANALYTIC[name]
    report = check_grad(f, point(6), lambda x: {"x": slope(x)}, method="auto")
    method = "ridders" if name in FLOAT64_ONLY or widest_float() is None else "longdouble"
    assert (report.verdict, report.method) == ("PASS", method)
    assert f"judged by {method} differences" in report.notes[0]
    report = check_grad(f, point(6), lambda x: {"x": (1 + 1e-6) * slope(x)})
    assert (report.verdict, report.method) == ("WRONG_GRADIENT", method)


@pytest.mark.skipif(widest_float() is None, reason="longdouble is float64 on this machine")
@pytest.mark.parametrize("name", sorted(NOT_ANALYTIC.keys() - FLOAT64_ONLY))
def test_longdouble_differences_find_an_error_of_one_part_in_1e9(name: str) -> None:
    f, slope = NOT_ANALYTIC[name]
    report = check_grad(f, point(6), lambda x: {"x": (1 + 1e-9) * slope(x)})
    assert (report.verdict, report.method) == ("WRONG_GRADIENT", "longdouble")


def test_a_gradient_that_misses_what_the_complex_step_misses_is_not_passed() -> None:
    report = check_grad(
        lambda x: np.exp(x * x.real).sum(), point(6), lambda x: {"x": x * np.exp(x * x)}
    )
    assert report.verdict is Verdict.WRONG_GRADIENT


def test_a_gradient_that_cancels_passes_as_the_zero_it_is() -> None:
    def sum_of_softmax(x: Any) -> Any:
        e = np.exp(x - x.real.max())
        return (e / e.sum()).sum()

    for seed in range(50):
        x = point(9, seed=seed)
        assert check_grad(sum_of_softmax, x, lambda x: {"x": np.zeros_like(x)}).ok


def test_rounding_noise_of_the_function_raises_no_alarm() -> None:
    # A sum that cancels 1e8 leaves real differences with few digits, and the bar says so.
    def f(x: Any) -> Any:
        return ((np.abs(x) + 1e8) - 1e8).sum()

    for seed in range(20):
        report = check_grad(
            f, point(4, seed=seed), lambda x: {"x": np.ones_like(x)}, tolerance=1e-12
        )
        assert report.verdict is Verdict.NOISY_REFERENCE
        assert report.worst is not None
        assert report.worst.error_bar > 1e-10


def test_float32_parameters_are_judged_in_float64() -> None:
    params = {"x": point(3, 4)["x"].astype(np.float32)}
    report = check_grad(sum_of_sines, params, cosines)
    assert report.ok
    assert report.worst is not None
    assert report.worst.scaled_error < 1e-15
    wrong = check_grad(sum_of_sines, params, lambda x: {"x": np.cos(x) * (1 + 1e-9)})
    assert wrong.verdict is Verdict.WRONG_GRADIENT


def test_a_float32_gradient_must_be_float32() -> None:
    params = {"x": np.ones(3, dtype=np.float32)}
    report = check_grad(sum_of_sines, params, lambda x: {"x": np.cos(x).astype(np.float64)})
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "gradient of x must be float32" in report.message


def test_what_is_no_floating_array_reaches_both_functions_unchanged() -> None:
    labels = np.array([2, 0])
    params = {"x": point(2, 3)["x"], "labels": labels, "weight": None, "scale": 2.0}

    def f(x: Any, labels: Any, weight: Any, scale: Any) -> Any:
        assert labels is params["labels"]
        assert weight is None
        return scale * np.exp(x[np.arange(2), labels]).sum()

    def grad(x: Any, labels: Any, weight: Any, scale: Any) -> dict[str, Any]:
        dx = np.zeros_like(x)
        dx[np.arange(2), labels] = scale * np.exp(x[np.arange(2), labels])
        return {"x": dx}

    report = check_grad(f, params, grad)
    assert (report.ok, report.entries) == (True, 6)


def test_empty_and_zero_dimensional_parameters_are_checked() -> None:
    params = {"x": np.zeros((0, 3)), "y": np.array(0.5)}

    def f(x: Any, y: Any) -> Any:
        return x.sum() + y * y * y

    report = check_grad(f, params, lambda x, y: {"x": np.ones_like(x), "y": 3 * y * y})
    assert (report.ok, report.entries) == (True, 1)
    report = check_grad(f, params, lambda x, y: {"x": np.ones_like(x), "y": 2 * y * y})
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert (report.worst.name, report.worst.index) == ("y", ())
    assert check_grad(lambda x: x.sum(), {"x": np.zeros((0, 3))}, lambda x: {"x": x}).ok


SHAPE_DTYPE: dict[str, tuple[Any, Any, str]] = {
    "vector": (lambda x: np.sin(x), cosines, r"real scalar, got float64 of shape \(3,\)"),
    "string": (lambda x: "loss", cosines, "real scalar, got str"),
    "none": (lambda x: None, cosines, "real scalar, got NoneType"),
    "complex": (lambda x: sum_of_sines(x) + 1j, cosines, "real scalar, got complex128"),
    "no mapping": (
        sum_of_sines,
        lambda x: np.cos(x),
        "mapping of parameter names to arrays, such as {'x': dx}, got ndarray",
    ),
    "missing": (sum_of_sines, lambda x: {}, "for each of x, got none"),
    "wrong key": (sum_of_sines, lambda x: {"X": x}, "for each of x, got X"),
    "shape": (sum_of_sines, lambda x: {"x": x[:2]}, r"shape \(3,\) like .* got .* \(2,\)"),
    "dtype": (sum_of_sines, lambda x: {"x": x.astype("f4")}, "must be float64 .* got float32"),
    "list": (sum_of_sines, lambda x: {"x": list(x)}, "must be float64 .* got list"),
}


@pytest.mark.parametrize("name", SHAPE_DTYPE)
def test_a_wrong_shape_or_dtype_says_what_was_expected(name: str) -> None:
    f, grad, message = SHAPE_DTYPE[name]
    report = check_grad(f, point(3), grad)
    assert report.verdict is Verdict.SHAPE_DTYPE
    with pytest.raises(GradCheckError, match=message):
        report.raise_if_failed()


def test_what_is_not_finite_is_named() -> None:
    params = {"x": np.array([0.0, 1.0])}
    report = check_grad(lambda x: np.log(x + np.nan).sum(), params, cosines)
    assert report.verdict is Verdict.NONFINITE
    report = check_grad(sum_of_sines, params, lambda x: {"x": np.array([1.0, np.inf])})
    assert report.verdict is Verdict.NONFINITE
    assert "gradient of x (float64) is inf at [1]" in report.message
    with np.errstate(all="ignore"):
        report = check_grad(lambda x: np.sqrt(x).sum(), params, lambda x: {"x": x + 0.5})
    assert not report.ok
    assert report.verdict is not Verdict.WRONG_GRADIENT


def test_arguments_of_the_checker_itself_raise() -> None:
    with pytest.raises(ConfigError, match="did you mean 'complex'"):
        check_grad(sum_of_sines, point(3), cosines, method="compex")
    with pytest.raises(ConfigError, match="mode"):
        check_grad(sum_of_sines, point(3), cosines, mode="every")
    with pytest.raises(ConfigError, match="tolerance"):
        check_grad(sum_of_sines, point(3), cosines, tolerance=0)
    with pytest.raises(ConfigError, match="nothing to differentiate"):
        check_grad(sum_of_sines, {"x": np.arange(3)}, cosines)
    with pytest.raises(DtypeError, match="params must be a mapping"):
        check_grad(sum_of_sines, np.ones(3), cosines)  # type: ignore[arg-type]
    for dtype in (np.complex128, np.float16):
        with pytest.raises(DtypeError, match="must be float64 or float32"):
            check_grad(sum_of_sines, {"x": np.ones(3, dtype=dtype)}, cosines)


def test_an_error_of_the_function_itself_passes_through() -> None:
    def f(x: Any) -> Any:
        raise ZeroDivisionError("of the reader's own")

    with pytest.raises(ZeroDivisionError, match="own"):
        check_grad(f, point(3), cosines)


def test_the_report_reads_and_serialises() -> None:
    report = check_grad(sum_of_sines, point(2, 3), lambda x: {"x": np.cos(x) + (x == x.max())})
    assert report.worst is not None
    assert report.worst.index is not None
    assert str(report).startswith(f"WRONG_GRADIENT: the gradient of x{list(report.worst.index)}")
    assert "6 entries, complex step, full" in str(report)
    found = json.loads(report.to_json())
    assert found["ok"] is False
    assert found["worst"]["index"] == list(report.worst.index)
    assert found["worst"]["numeric"] == report.worst.numeric
    right = check_grad(sum_of_sines, point(2, 3), cosines)
    assert right.raise_if_failed() is right
    assert json.loads(right.to_json())["verdict"] == "PASS"


@given(SEED, st.floats(-3, 3))
@settings(max_examples=100, deadline=None)
def test_the_error_bar_of_real_differences_covers_their_error(seed: int, log_scale: float) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0**log_scale
    x, u = {"x": scale * rng.standard_normal(5)}, {"x": rng.standard_normal(5)}
    offset = rng.choice([0.0, 1e3, 1e8])

    def f(p: Any) -> Any:
        return np.sin(3 * p["x"] / scale).sum() + np.exp(-((p["x"] / scale) ** 2)).sum() + offset

    real = ridders(f, x, u)
    # The complex step is the truth to rounding, and does not see the offset.
    truth = complex_step(f, x, u)
    assert abs(real.value - truth) <= real.error_bar
    assert real.error_bar <= 1e-6 * (1 + offset) * np.abs(u["x"]).sum() / scale


def test_real_differences_of_a_smooth_function_have_eleven_digits() -> None:
    for seed in range(20):
        real = ridders(lambda p: sum_of_sines(p["x"]), point(1, seed=seed), {"x": np.ones(1)})
        assert real.value == pytest.approx(np.cos(point(1, seed=seed)["x"][0]), rel=3e-12)
        assert real.error_bar <= 1e-11
