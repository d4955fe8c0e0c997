"""Cases that a checker gets wrong unless it was made for them, in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refkd.testing import Verdict, check_grad
from refkd.testing.references import widest_float


def relu(x: Any) -> Any:
    return np.where(x.real > 0, x, 0)


@pytest.mark.parametrize("method", ["auto", "ridders"])
def test_a_function_that_grows_fast_hides_no_error(method: str) -> None:
    for point, factor in (([100.0, 101.0], -3.0), ([20.0, 30.0], 2.0), ([20.0, 30.0], 1.001)):
        x = np.array(point)
        report = check_grad(
            lambda x: np.exp(x).sum(),
            {"x": x},
            lambda x, by=factor: {"x": by * np.exp(x)},
            method=method,
        )
        assert report.verdict is Verdict.WRONG_GRADIENT, str(report)
        assert check_grad(
            lambda x: np.exp(x).sum(), {"x": x}, lambda x: {"x": np.exp(x)}, method=method
        ).ok


def test_a_large_constant_lets_no_wrong_gradient_pass() -> None:
    report = check_grad(
        lambda x: 1e6 + 1e-9 * x.sum(), {"x": np.ones(3)}, lambda x: {"x": np.full(3, 5e-9)}
    )
    assert not report.ok


def test_what_passes_is_within_tolerance_or_error_bar_in_every_entry() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = rng.standard_normal(4) * 10.0 ** rng.uniform(-3, 2)
        factor = 1 + 10.0 ** rng.uniform(-15, -2)
        report = check_grad(
            lambda x: np.sin(x).sum(), {"x": x}, lambda x, by=factor: {"x": by * np.cos(x)}
        )
        (parameter,) = report.parameters
        assert parameter.errors is not None
        assert not report.ok or parameter.errors.max() <= 1e-6


@pytest.mark.parametrize("weight", [1e-4, 1e-5])
def test_a_forgotten_penalty_that_the_complex_step_does_not_see_is_found(weight: float) -> None:
    rng = np.random.default_rng(0)
    w, target = rng.standard_normal((2, 3000))
    report = check_grad(
        lambda w: ((w - target) ** 2).mean() + weight * np.abs(w).mean(),
        {"w": w},
        lambda w: {"w": 2 * (w - target) / w.size},
    )
    assert not report.ok, str(report)


@pytest.mark.parametrize("slope", [0.0, 0.01])
@pytest.mark.parametrize("size", [1, 20, 100, 300])
def test_any_number_of_units_at_zero_are_accepted(size: int, slope: float) -> None:
    for seed in range(5):
        report = check_grad(
            lambda x: np.where(x.real > 0, x, slope * x).sum(),
            {"x": np.zeros(size)},
            lambda x: {"x": np.full(size, slope)},
            rng=seed,
        )
        assert report.verdict is Verdict.KINK, str(report)


def test_a_layer_of_zeros_behind_a_relu_is_accepted() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (8, 10))

    def f(weight: Any, bias: Any) -> Any:
        return relu(images @ weight.T + bias).mean()

    zeros = {"weight": np.zeros((6, 10)), "bias": np.zeros(6)}
    report = check_grad(f, zeros, lambda **p: {k: np.zeros_like(v) for k, v in p.items()})
    assert report.verdict is Verdict.KINK, str(report)


@pytest.mark.parametrize("method", ["auto", "longdouble", "ridders"])
def test_a_modulus_at_zero_alone_is_a_kink(method: str) -> None:
    for size in (1, 3):
        params = {"x": np.zeros(size)}
        report = check_grad(
            lambda x: np.abs(x).sum(), params, lambda x: {"x": np.sign(x)}, method=method
        )
        assert report.verdict is Verdict.KINK, str(report)


def test_a_function_that_refuses_points_outside_its_domain_is_checked_inside() -> None:
    def entropy(p: Any) -> Any:
        if not ((p.real > 0) & (p.real < 1)).all():
            raise ValueError("probabilities must lie between 0 and 1")
        return -(p * np.log(p)).sum()

    def grad(p: Any, by: float = 1.0) -> dict[str, Any]:
        entropy(p)
        return {"p": -by * (np.log(p) + 1)}

    for p in ([0.01, 0.5, 0.99], [0.3, 0.4, 0.3]):
        params = {"p": np.array(p)}
        assert check_grad(entropy, params, grad).ok
        report = check_grad(entropy, params, lambda p: grad(p, 1.01))
        assert report.verdict is Verdict.WRONG_GRADIENT, str(report)


def test_a_penalty_unseen_where_the_domain_leaves_no_room_does_not_pass() -> None:
    p = np.array([1e-9, 0.9, 0.1])
    report = check_grad(
        lambda p: (p * np.log(p)).sum() + 0.1 * np.abs(p).sum(),
        {"p": p},
        lambda p: {"p": np.log(p) + 1},
    )
    assert not report.ok, str(report)


def test_nothing_warns_at_points_that_the_reader_never_gave() -> None:
    # Warnings are errors in this suite.
    report = check_grad(
        lambda x: np.sqrt(x).sum(), {"x": np.array([1e-9, 1.0])}, lambda x: {"x": 0.5 / np.sqrt(x)}
    )
    assert report.verdict is not Verdict.WRONG_GRADIENT


def test_an_error_of_the_float32_branch_that_varies_fast_does_not_pass() -> None:
    def grad(x: Any) -> dict[str, Any]:
        extra = np.sin(1e4 * x) if x.dtype == np.float32 else 0
        return {"x": (np.exp(x) + extra).astype(x.dtype)}

    for seed in range(10):
        x = np.random.default_rng(seed).standard_normal(5).astype(np.float32)
        assert not check_grad(lambda x: np.exp(x).sum(), {"x": x}, grad).ok


def test_many_doubtful_entries_cost_no_more_than_a_few() -> None:
    report = check_grad(
        lambda x: 1e9 + (x * x).sum(),
        {"x": np.random.default_rng(0).standard_normal(2000)},
        lambda x: {"x": 2.0000001 * x},
    )
    assert report.calls < 20_000


def test_a_second_call_that_returns_nothing_is_named() -> None:
    values = iter([1.0, None])
    report = check_grad(lambda x: next(values), {"x": np.ones(2)}, lambda x: {"x": x * 0})
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "at its second call f must return a real scalar, got NoneType" in report.message


def test_gradients_that_overlap_behind_another_one_are_aliased() -> None:
    buffer = np.ones(8)

    def grad(a: Any, b: Any, c: Any) -> dict[str, Any]:
        fresh = buffer.copy()
        return {"a": fresh[::2], "b": fresh[1:2], "c": fresh[4:5]}

    params = {"a": np.ones(4), "b": np.ones(1), "c": np.ones(1)}
    report = check_grad(lambda a, b, c: a.sum() + b.sum() + c.sum(), params, grad)
    assert report.verdict is Verdict.ALIASED


@pytest.mark.parametrize("method", ["auto", "ridders"])
def test_a_gradient_that_is_zero_for_a_whole_parameter_passes(method: str) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((6, 4)), rng.standard_normal((6, 5))

    def f(weight: Any, bias: Any) -> Any:
        # The mean that batch norm takes away makes the bias before it irrelevant.
        h = x @ weight.T + bias
        centred = h - h.mean(axis=0)
        return (dy * centred * ((centred * centred).mean(axis=0) + 1e-5) ** -0.5).sum()

    def grad(weight: Any, bias: Any) -> dict[str, Any]:
        h = x @ weight.T + bias
        centred = h - h.mean(axis=0)
        rstd = ((centred * centred).mean(axis=0) + 1e-5) ** -0.5
        y = centred * rstd
        dh = rstd * (dy - dy.mean(axis=0) - y * (dy * y).mean(axis=0))
        return {"weight": dh.T @ x, "bias": dh.sum(axis=0)}

    params = {"weight": rng.standard_normal((5, 4)), "bias": rng.standard_normal(5)}
    report = check_grad(f, params, grad, method=method)
    assert report.verdict is Verdict.PASS, str(report)
    assert any("the gradient of bias is zero to within" in note for note in report.notes)
    wrong = check_grad(f, params, lambda **p: {**grad(**p), "bias": np.full(5, 1e-6)})
    assert wrong.verdict is Verdict.WRONG_GRADIENT


@pytest.mark.parametrize("power", [2, 3, 4, 5])
def test_a_power_passes_at_zero(power: int) -> None:
    for x in (np.zeros(3), np.array([0.0, -0.0, 1.0])):
        report = check_grad(
            lambda x: (x**power).sum(), {"x": x}, lambda x: {"x": power * x ** (power - 1)}
        )
        assert report.verdict is Verdict.PASS, str(report)


def test_subnormal_numbers_pass() -> None:
    x = np.array([-6e-309, 5e-324, 1e-310])
    assert check_grad(lambda x: (x * x).sum(), {"x": x}, lambda x: {"x": 2 * x}).ok


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("maximum", [lambda x: x.max(), lambda x: x[np.argmax(x.real)]])
def test_the_mask_of_all_tied_maxima_is_no_gradient(maximum: Any, size: int) -> None:
    for seed in range(5):
        report = check_grad(
            maximum, {"x": np.ones(size)}, lambda x: {"x": 1.0 * (x == x.max())}, rng=seed
        )
        assert report.verdict is Verdict.WRONG_GRADIENT, str(report)
        report = check_grad(
            maximum, {"x": np.ones(size)}, lambda x: {"x": (x == x.max()) / x.size}, rng=seed
        )
        assert report.verdict is Verdict.KINK, str(report)


def test_the_gradient_of_a_constant_is_noted_as_unchecked() -> None:
    report = check_grad(
        lambda x, scale: scale * x.sum(),
        {"x": np.ones(3), "scale": 2.0},
        lambda x, scale: {"x": np.full(3, scale), "scale": -1.0},
    )
    assert report.ok
    assert any("scale is a Python float, and so a constant" in note for note in report.notes)


def test_a_complex_step_that_real_differences_confirm_is_not_verified_twice() -> None:
    x = np.random.default_rng(0).standard_normal(1500)
    report = check_grad(lambda x: np.sin(x).sum(), {"x": x}, lambda x: {"x": np.cos(x)})
    assert report.method == "complex"
    assert report.calls < 1500 + 80


# --- entries of very different sizes ------------------------------------------------------


@pytest.mark.parametrize("small", [1e-6, 1e-8, 1e-10, 1e-20])
@pytest.mark.parametrize("method", ["auto", "ridders"])
def test_a_singularity_beside_a_small_entry_is_not_stepped_over(small: float, method: str) -> None:
    cases = [
        (lambda x: np.log(np.abs(x)).sum(), lambda x: 1 / x),
        (lambda x: np.sqrt(np.abs(x)).sum(), lambda x: np.sign(x) / np.sqrt(np.abs(x)) / 2),
    ]
    for f, derivative in cases:
        x = np.array([1.0, 0.5, small])
        report = check_grad(f, {"x": x}, lambda x, d=derivative: {"x": d(x)}, method=method)
        assert report.verdict in (Verdict.PASS, Verdict.NOISY_REFERENCE), str(report)
        for factor in (0, 1.1):
            wrong = np.array([1, 1, factor])
            report = check_grad(
                f, {"x": x}, lambda x, d=derivative, w=wrong: {"x": w * d(x)}, method=method
            )
            assert not report.ok, str(report)


def test_the_log_determinant_of_a_nearly_singular_matrix_is_not_called_wrong() -> None:
    hilbert = 1 / (np.arange(7)[:, None] + np.arange(7) + 1.0)

    def grad(x: Any) -> dict[str, Any]:
        return {"x": np.linalg.inv(x).T.copy()}

    report = check_grad(lambda x: np.linalg.slogdet(x)[1], {"x": hilbert}, grad)
    assert report.verdict in (Verdict.PASS, Verdict.NOISY_REFERENCE), str(report)
    report = check_grad(
        lambda x: np.linalg.slogdet(x)[1], {"x": hilbert}, lambda x: {"x": np.zeros_like(x)}
    )
    assert not report.ok


def test_steps_that_leave_the_domain_of_a_small_entry_are_no_complaint() -> None:
    def entropy(p: Any) -> Any:
        return float(np.sum(p * np.log(p)))  # a cast: differences judge

    for small in (1e-6, 1e-8):
        report = check_grad(
            entropy, {"p": np.array([0.7, 0.3, small])}, lambda p: {"p": np.log(p) + 1}
        )
        assert report.verdict in (Verdict.PASS, Verdict.NOISY_REFERENCE), str(report)


@pytest.mark.parametrize("near", [1e-5, 3e-6, 1e-7, 5e-9, 1e-9, 1e-12])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_kink_beside_the_point_excuses_no_gradient(near: float, sign: int) -> None:
    x = np.array([1.0, sign * near, -2.0])

    def f(x: Any) -> Any:
        return np.where(x.real > 0, x, 0.1 * x).sum()

    assert check_grad(f, {"x": x}, lambda x: {"x": np.where(x > 0, 1, 0.1)}).ok
    for at_it in (0.55, 0.1 if sign > 0 else 1.0):
        wrong = np.array([1.0, at_it, 0.1])
        report = check_grad(f, {"x": x}, lambda x, wrong=wrong: {"x": wrong.copy()})
        assert not report.ok, str(report)


def _log_softmax(x: Any) -> Any:
    shifted = x - x.real.max()
    return shifted - np.log(np.exp(shifted).sum())


C = np.random.default_rng(5).standard_normal(6)


def _normalised(x: Any) -> Any:
    rows = x.reshape(-1, 2)
    return (C.reshape(-1, 2) * rows / np.sqrt((rows * rows).sum(1, keepdims=True))).sum()


def _normalised_grad(x: Any) -> Any:
    rows, c = x.reshape(-1, 2), C.reshape(-1, 2)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    y = rows / norm
    return ((c - y * (c * y).sum(1, keepdims=True)) / norm).ravel()


def _softmax_grad(x: Any) -> Any:
    p = np.exp(_log_softmax(x))
    return p * (C - (p * C).sum())


SPREAD: dict[str, tuple[Any, Any]] = {
    "log": (lambda x: np.log(np.abs(x)).sum(), lambda x: 1 / x),
    "analytic log": (lambda x: np.log(x * x).sum(), lambda x: 2 / x),
    "root": (lambda x: np.sqrt(np.abs(x)).sum(), lambda x: np.sign(x) / np.sqrt(np.abs(x)) / 2),
    "norm": (np.linalg.norm, lambda x: x / np.linalg.norm(x)),
    "normalise": (_normalised, _normalised_grad),
    "normalise reals": (lambda x: _normalised(x.real), _normalised_grad),
    "softmax": (lambda x: (C * np.exp(_log_softmax(x))).sum(), _softmax_grad),
    "modulus": (lambda x: np.abs(x).sum(), np.sign),
    "relu": (lambda x: np.maximum(x, 0).sum(), lambda x: 1.0 * (x > 0)),
    "power": (lambda x: (np.abs(x) ** 1.5).sum(), lambda x: 1.5 * np.sign(x) * np.abs(x) ** 0.5),
    "slogdet": (
        lambda x: np.linalg.slogdet(x[:4].reshape(2, 2))[1],
        lambda x: np.append(np.linalg.inv(x[:4].reshape(2, 2)).T, [0.0, 0.0]),
    ),
}


@given(
    st.sampled_from(sorted(SPREAD)),
    st.sampled_from(["auto", "ridders", "longdouble"]),
    st.sampled_from(["full", "directional"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_entries_of_all_sizes_raise_no_alarm_and_hide_no_error(
    name: str, method: str, mode: str, seed: int
) -> None:
    f, derivative = SPREAD[name]
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.uniform(-12, 12, 2))
    x = rng.choice([-1, 1], 6) * 10 ** rng.uniform(low, high, 6)
    method = "ridders" if method == "longdouble" and widest_float() is None else method
    gradient = derivative(x)
    assume(np.isfinite(gradient).all())

    def checked(factors: Any) -> Any:
        return check_grad(
            f, {"x": x}, lambda x: {"x": factors * derivative(x)}, method=method, mode=mode
        )

    report = checked(1.0)
    assert report.verdict is not Verdict.WRONG_GRADIENT, str(report)
    # Slopes that f can hardly feel may pass as the zeros that they nearly are.
    assume(np.max(np.abs(gradient)) * np.max(np.abs(x)) > 1e-6 * abs(f(x)))
    factors = np.ones(6)
    factors[np.argmax(np.abs(gradient))] = 1.1
    assert checked(factors).verdict is not Verdict.PASS, str(report)


@pytest.mark.parametrize("scale", [1e6, 1e12, 1.7e18])
def test_where_the_point_is_large_a_value_is_no_slope(scale: float) -> None:
    x = np.linspace(0.5, 1, 5) * scale
    for factor, right in ((2, False), (1.001, False), (0, False), (1, True)):
        report = check_grad(lambda x: np.log(x).sum(), {"x": x}, lambda x, by=factor: {"x": by / x})
        assert report.ok is right, str(report)
        report = check_grad(lambda x: x.sum(), {"x": x}, lambda x, by=factor: {"x": by + 0 * x})
        assert report.ok is right, str(report)


def test_where_the_point_is_large_the_float32_gradient_is_judged_too() -> None:
    x = (np.linspace(0.5, 1, 5) * 1e12).astype(np.float32)
    for factor, verdict in ((2, Verdict.WRONG_GRADIENT), (1, Verdict.PASS)):

        def grad(x: Any, by: float = factor) -> dict[str, Any]:
            return {"x": ((by if x.dtype == np.float32 else 1) / x).astype(x.dtype)}

        assert check_grad(lambda x: np.log(x).sum(), {"x": x}, grad).verdict is verdict


@pytest.mark.parametrize("size", [1e-60, 1e-120, 1e-250])
def test_derivatives_of_any_size_are_compared(size: float) -> None:
    x = np.random.default_rng(0).standard_normal(5)
    for factor, right in ((2, False), (1.1, False), (-1, False), (0, False), (1, True)):
        report = check_grad(
            lambda x: size * np.sin(x).sum(),
            {"x": x},
            lambda x, by=factor: {"x": by * size * np.cos(x)},
        )
        assert report.ok is right, str(report)


def test_the_probability_of_many_independent_events_is_checked() -> None:
    x = np.random.default_rng(0).standard_normal(200)

    def f(x: Any) -> Any:
        return np.prod(1 / (1 + np.exp(-x)))

    assert check_grad(f, {"x": x}, lambda x: {"x": f(x) / (1 + np.exp(x))}).ok
    report = check_grad(f, {"x": x}, lambda x: {"x": 1.1 * f(x) / (1 + np.exp(x))})
    assert report.verdict is Verdict.WRONG_GRADIENT, str(report)


# --- what one direction does not show -----------------------------------------------------


def test_a_term_that_the_complex_step_loses_is_found_along_a_direction_or_noted() -> None:
    for size, found in ((3000, True), (200_000, False)):
        w = np.random.default_rng(0).standard_normal(size)
        report = check_grad(
            lambda w: (w * w).sum() + 1e-7 * np.abs(w).sum(), {"w": w}, lambda w: {"w": 2 * w}
        )
        assert report.mode == "directional"
        if found:
            assert report.method == "ridders", str(report)
        else:
            assert any("that the complex step loses" in note for note in report.notes), str(report)


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-10, 1e-14])
def test_an_error_of_a_parameter_with_a_small_share_of_the_slope_does_not_pass(size: float) -> None:
    rng = np.random.default_rng(0)
    w, k, b = rng.standard_normal(3000), size * rng.standard_normal(4), rng.standard_normal(3)

    def f(w: Any, k: Any, b: Any) -> Any:
        return (w * w).sum() + k.sum() * w.sum() + 1e-7 * np.sin(b).sum()

    def grad(w: Any, k: Any, b: Any, factor: float = 1) -> dict[str, Any]:
        return {"w": 2 * w + k.sum(), "k": np.full(4, factor * w.sum()), "b": 1e-7 * np.cos(b)}

    params = {"w": w, "k": k, "b": b}
    report = check_grad(f, params, grad)
    assert report.verdict is Verdict.PASS, str(report)
    report = check_grad(f, params, lambda **p: grad(**p, factor=-5))
    assert not report.ok, str(report)
    assert size < 1e-12 or (report.worst is not None and report.worst.name == "k")


def test_parameters_without_a_gradient_cost_a_few_calls_however_many_they_are() -> None:
    x = np.random.default_rng(0).standard_normal(200_000)
    biases = {f"b{k}": np.ones(3) for k in range(100)}

    def f(x: Any, **biases: Any) -> Any:
        return np.sin(x).sum() + sum((b - b.mean()).sum() for b in biases.values())

    report = check_grad(
        f, {"x": x, **biases}, lambda x, **b: {"x": np.cos(x), **{k: 0 * v for k, v in b.items()}}
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert report.calls < 40
