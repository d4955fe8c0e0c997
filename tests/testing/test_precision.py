"""float32 and strided arguments: a kernel wrong only there is found, and rounding is no error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.testing import Verdict, check_grad
from refkd.testing.problem import copy_in_layout

Layout = Callable[[Any], Any]


def drawn(*shape: int, seed: int = 1, dtype: str = "float64") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def gapped(x: Any) -> Any:
    spread = np.full([2 * n for n in x.shape], np.nan, x.dtype)
    view = spread[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def packed(x: Any) -> Any:
    records = np.zeros(x.shape, dtype=[("tag", "u1"), ("x", x.dtype)])
    records["x"] = x
    return records["x"]


LAYOUTS: dict[str, Layout] = {
    "Fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "gapped": gapped,
    "gapped and reversed": lambda x: gapped(x[::-1])[::-1],
    "unaligned": packed,
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "permuted": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
}


def f(x: Any) -> Any:
    return np.sin(x).sum()


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gradient_that_is_right_for_any_strides_passes(name: str, dtype: str, mode: str) -> None:
    x = LAYOUTS[name](drawn(3, 4, dtype=dtype))

    def grad(x: Any) -> dict[str, Any]:
        return {"x": np.cos(x).astype(x.dtype.newbyteorder("="))}

    report = check_grad(f, {"x": x}, grad, mode=mode)
    assert report.verdict is Verdict.PASS, str(report)
    assert report.notes == ()


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("error", [1.0, 0.01])
def test_a_gradient_that_is_wrong_for_these_strides_only_is_found(
    name: str, dtype: str, mode: str, error: float
) -> None:
    x = LAYOUTS[name](drawn(3, 4, dtype=dtype))

    def grad(x: Any) -> dict[str, Any]:
        gradient = np.cos(x, order="C").astype(x.dtype.newbyteorder("="))
        plain = x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative
        if not plain:
            gradient[1, 2] += error
        return {"x": gradient}

    report = check_grad(f, {"x": x}, grad, mode=mode)
    assert report.verdict is Verdict.WRONG_GRADIENT, str(report)
    assert report.worst is not None
    assert report.worst.place == "x[1, 2]"
    assert "contiguous float64 copies is right" in report.message


@pytest.mark.parametrize("name", LAYOUTS)
def test_arguments_arrive_with_the_strides_and_byte_order_given(name: str) -> None:
    x, seen = LAYOUTS[name](drawn(3, 4)), []

    def grad(x: Any) -> dict[str, Any]:
        seen.append((x.strides, x.dtype, x.flags.aligned))
        return {"x": np.cos(x).astype(float)}

    assert check_grad(f, {"x": x}, grad).ok
    as_given = (x.strides, x.dtype, x.flags.aligned)
    # Once in the first calls, once as given, and at four points nearby where there is a gap.
    assert seen.count(as_given) >= 2
    assert (np.zeros((3, 4)).strides, np.dtype(float), True) in seen


def test_a_gradient_that_reads_between_the_entries_is_found() -> None:
    def grad(x: Any) -> dict[str, Any]:
        # The bug of C kernels that ignore strides: entries one after the other in memory.
        dense = np.lib.stride_tricks.as_strided(x, x.shape, (8 * x.shape[1], 8))
        return {"x": np.cos(dense)}

    report = check_grad(f, {"x": gapped(drawn(3, 4))}, grad)
    assert report.verdict is Verdict.NONFINITE
    assert "the gradient of x (float64) is nan" in report.message


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_in_the_same_layout_is_equal_and_apart(name: str) -> None:
    x = LAYOUTS[name](drawn(3, 4))
    y = copy_in_layout(x)
    assert (y.strides, y.dtype, y.flags.writeable) == (x.strides, x.dtype, True)
    assert np.array_equal(x, y)
    assert not np.shares_memory(x, y)
    y[...] = 0
    assert np.array_equal(x, drawn(3, 4))


def softmax_cross_entropy(logits: Any) -> Any:
    z = logits - logits.real.max(axis=1, keepdims=True)
    return (np.log(np.exp(z).sum(axis=1)) - z[:, 0]).mean()


def softmax_cross_entropy_grad(logits: Any) -> dict[str, Any]:
    z = np.exp(logits - logits.max(axis=1, keepdims=True))
    q = z / z.sum(axis=1, keepdims=True)
    q[:, 0] -= 1
    return {"logits": q / logits.dtype.type(len(q))}


@pytest.mark.parametrize("scale", [1, 10, 100, 1000])
def test_a_saturated_softmax_in_float32_raises_no_alarm(scale: float) -> None:
    for seed in range(100):
        logits = scale * drawn(3, 4, seed=seed)
        report = check_grad(
            softmax_cross_entropy,
            {"logits": logits.astype(np.float32)},
            softmax_cross_entropy_grad,
            rng=seed,
        )
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report}"


@pytest.mark.parametrize("shift", [-50, -100, -104, -200, -600])
def test_a_gradient_that_underflows_in_float32_raises_no_alarm(shift: float) -> None:
    for seed in range(20):
        x = (drawn(4, seed=seed) + shift).astype(np.float32)
        report = check_grad(lambda x: np.exp(x).sum(), {"x": x}, lambda x: {"x": np.exp(x)})
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report}"


def test_float32_gradients_that_merely_round_raise_no_alarm() -> None:
    for seed in range(400):
        rng = np.random.default_rng(seed)
        n, k, m = (int(size) for size in rng.integers(1, 12, size=3))
        scale = 10 ** rng.uniform(-3, 0.5)
        x = (scale * rng.standard_normal((n, k))).astype(np.float32)
        w = rng.standard_normal((m, k)).astype(np.float32)
        c = rng.standard_normal((n, m)).astype(np.float32)

        def value(x: Any, w: Any, c: Any = c) -> Any:
            return (c * np.tanh(x @ w.T)).sum()

        def grad(x: Any, w: Any, c: Any = c) -> dict[str, Any]:
            t = np.tanh(x @ w.T)
            du = c.astype(x.dtype) * (1 - t) * (1 + t)
            return {"x": du @ w, "w": du.T @ x}

        report = check_grad(value, {"x": x, "w": w}, grad, rng=seed)
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report}"


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("error", [1e-2, 0.1, -2.0])
def test_a_bug_in_the_float32_branch_of_a_kernel_is_found(error: float, mode: str) -> None:
    for seed in range(20):

        def grad(x: Any) -> dict[str, Any]:
            gradient = np.cos(x)
            if x.dtype == np.float32:
                gradient[2] *= 1 + error
            return {"x": gradient}

        x = np.random.default_rng(seed).uniform(-1, 1, 6).astype(np.float32)
        report = check_grad(f, {"x": x}, grad, mode=mode, rng=seed)
        assert report.verdict is Verdict.WRONG_GRADIENT, f"seed {seed}: {report}"
        assert report.worst is not None
        assert report.worst.place == "x[2]"
        assert "float32" in report.message


def test_what_rounding_does_to_a_cancelled_gradient_is_no_alarm() -> None:
    def grad(x: Any) -> dict[str, Any]:
        if x.dtype == np.float64:
            return {"x": np.exp(x) * math.expm1(1e-5)}
        # Two digits are left.
        return {"x": np.exp(x + x.dtype.type(1e-5)) - np.exp(x)}

    for seed in range(50):
        x = drawn(6, seed=seed, dtype="float32")
        report = check_grad(lambda x: (np.exp(x) * math.expm1(1e-5)).sum(), {"x": x}, grad)
        assert report.verdict in (Verdict.PASS, Verdict.NOISY_REFERENCE), f"{seed}: {report}"
        assert "rounding" in (report.notes[-1] if report.ok else report.message)


def test_a_probability_that_float32_rounds_to_one_raises_no_alarm() -> None:
    # The gradient is 1e-8 of what it is elsewhere, and zero in float32.
    for seed in range(50):
        logits = drawn(3, 4, seed=seed)
        logits[:, 0] += 18
        report = check_grad(
            softmax_cross_entropy,
            {"logits": logits.astype(np.float32)},
            softmax_cross_entropy_grad,
            tolerance=1e-9,
            rng=seed,
        )
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report}"


def test_a_float32_bug_beside_a_huge_f_is_not_shown_either_way() -> None:
    def grad(x: Any) -> dict[str, Any]:
        return {"x": np.cos(x) * x.dtype.type(1.1 if x.dtype == np.float32 else 1.0)}

    x = drawn(6, dtype="float32")
    report = check_grad(lambda x: np.sin(x).sum() + 1e6, {"x": x}, grad)
    assert report.verdict is Verdict.NOISY_REFERENCE, str(report)
    assert check_grad(lambda x: np.sin(x).sum(), {"x": x}, grad).verdict is Verdict.WRONG_GRADIENT


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_function_and_gradient_wrong_alike_for_these_strides_do_not_pass(dtype: str) -> None:
    def factor(x: Any) -> float:
        return 1.0 if x.flags.c_contiguous else 1.25

    x = np.asfortranarray(drawn(3, 4, dtype=dtype))
    report = check_grad(
        lambda x: factor(x) * np.sin(x).sum(),
        {"x": x},
        lambda x: {"x": (factor(x) * np.cos(x)).astype(x.dtype)},
    )
    assert not report.ok, str(report)


def test_parameters_without_entries_pass_in_float32() -> None:
    params = {"x": drawn(3, dtype="float32"), "empty": np.zeros((0, 2), np.float32)}
    report = check_grad(
        lambda x, empty: np.sin(x).sum() + empty.sum(),
        params,
        lambda x, empty: {"x": np.cos(x), "empty": np.zeros_like(empty)},
    )
    assert report.verdict is Verdict.PASS
