"""Vector-Jacobian and Hessian-vector products, adjoints: right ones pass, wrong ones are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError
from refkd.testing import GradReport, Verdict, check_adjoint, check_hvp, check_vjp

SEED = st.integers(0, 2**32 - 1)
FLOATS = ("float32", "float64")


def drawn(*shape: int, seed: int = 1, dtype: str = "float64") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def matmul(x: Any, w: Any) -> Any:
    return x @ w


def matmul_vjp(dy: Any, x: Any, w: Any) -> dict[str, Any]:
    return {"x": dy @ w.T, "w": x.T @ dy}


def place(report: GradReport) -> str:
    assert report.worst is not None
    return report.worst.name


@given(SEED, st.sampled_from(FLOATS))
@settings(max_examples=40)
def test_a_right_vjp_passes_in_both_precisions(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    n, k, m = (int(size) for size in rng.integers(1, 5, size=3))
    params = {"x": drawn(n, k, seed=seed, dtype=dtype), "w": drawn(k, m, dtype=dtype)}
    report = check_vjp(matmul, params, matmul_vjp, rng=seed)
    assert report.verdict is Verdict.PASS, str(report)
    assert report.method == "complex"


@given(SEED, st.sampled_from(FLOATS), st.sampled_from(["x", "w"]))
@settings(max_examples=40)
def test_one_wrong_entry_of_a_vjp_is_located(seed: int, dtype: str, name: str) -> None:
    params = {"x": drawn(3, 4, seed=seed, dtype=dtype), "w": drawn(4, 2, dtype=dtype)}

    def wrong(dy: Any, x: Any, w: Any) -> dict[str, Any]:
        gradients = matmul_vjp(dy, x, w)
        gradients[name][2, 1] *= 1.001
        return gradients

    report = check_vjp(matmul, params, wrong, rng=seed)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.place == f"{name}[2, 1]"


@pytest.mark.parametrize("rng", range(4))
def test_an_input_from_the_same_seed_does_not_hide_a_transposed_product(rng: int) -> None:
    # With dy equal to x, the wrong dy.T @ x would be the right x.T @ dy.
    x, w = np.random.default_rng(rng).standard_normal((2, 4, 4))
    report = check_vjp(
        matmul, {"x": x, "w": w}, lambda dy, x, w: {"x": dy @ w.T, "w": dy.T @ x}, rng=rng
    )
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert place(report) == "w"


class Pooled(NamedTuple):
    largest: Any
    indices: Any


@dataclass(frozen=True)
class Statistics:
    mean: Any
    square: Any


def pooled(x: Any) -> Pooled:
    indices = np.argmax(x.real, axis=1)
    return Pooled(np.take_along_axis(x, indices[:, None], axis=1)[:, 0], indices)


def pooled_vjp(cotangent: Any, x: Any) -> dict[str, Any]:
    assert type(cotangent) is Pooled
    assert cotangent.indices is None
    dx = np.zeros_like(x)
    np.put_along_axis(dx, np.argmax(x, axis=1)[:, None], cotangent.largest[:, None], axis=1)
    return {"x": dx}


def test_integer_outputs_have_no_cotangent() -> None:
    assert check_vjp(pooled, {"x": drawn(4, 5)}, pooled_vjp).verdict is Verdict.PASS


SEVERAL: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Any, Any]], tuple[str, str]]] = {
    "tuple": (lambda a, b: (a, b), lambda dy: dy, ("[0]", "[1]")),
    "list": (lambda a, b: [a, b], lambda dy: (dy[0], dy[1]), ("[0]", "[1]")),
    "dict": (lambda a, b: {"m": a, "s": b}, lambda dy: (dy["m"], dy["s"]), ("m", "s")),
    "dataclass": (Statistics, lambda dy: (dy.mean, dy.square), ("mean", "square")),
    "nested": (lambda a, b: (a, {"s": b}), lambda dy: (dy[0], dy[1]["s"]), ("[0]", "[1].s")),
}


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_wrong_through_one_output_is_traced_to_it(kind: str, dtype: str) -> None:
    wrap, unwrap, names = SEVERAL[kind]

    def f(x: Any) -> Any:
        return wrap(x.mean(axis=1), (x * x).sum(axis=0))

    def vjp(dy: Any, x: Any, by_mean: float = 1.0, by_square: float = 1.0) -> dict[str, Any]:
        dmean, dsquare = unwrap(dy)
        assert (dmean.dtype, dsquare.dtype) == (x.dtype, x.dtype)
        return {"x": by_mean * dmean[:, None] / x.shape[1] + by_square * 2 * x * dsquare}

    params = {"x": drawn(3, 4, dtype=dtype)}
    assert check_vjp(f, params, vjp).verdict is Verdict.PASS
    first, second = names
    for factors, expected in (
        ((1.1, 1.0), f"wrong through the output {first} of f"),
        ((1.0, 1.1), f"wrong through the output {second} of f"),
        ((1.1, 1.1), f"wrong through the outputs {first}, {second} of f"),
    ):
        report = check_vjp(f, params, lambda dy, x, factors=factors: vjp(dy, x, *factors))
        assert report.verdict is Verdict.WRONG_GRADIENT
        assert expected in report.notes


def test_a_single_output_is_not_pointed_at() -> None:
    report = check_vjp(lambda x: (x * x,), {"x": drawn(3)}, lambda dy, x: {"x": x * dy[0]})
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert not any("output" in note for note in report.notes)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (None, "NoneType"),
        ("text", "str"),
        ((), "nothing"),
        (np.arange(3), "an array of int64"),
        (("a", np.array([True])), "str, an array of bool"),
        (1 + 2j * np.ones(2), "an array of complex128"),
    ],
)
def test_an_output_without_a_floating_array_is_a_verdict(value: Any, given: str) -> None:
    report = check_vjp(lambda x: value, {"x": drawn(3)}, lambda dy, x: {"x": x})
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert report.message.endswith(f"got {given}")


def test_functions_that_write_into_their_arguments_leave_the_callers_arrays_alone() -> None:
    params = {"x": drawn(3), "table": {"rows": [drawn(2, 3)]}, "counts": np.arange(3)}
    before = {"x": params["x"].copy(), "rows": params["table"]["rows"][0].copy()}

    def f(x: Any, table: Any, counts: Any) -> Any:
        y = x * table["rows"][0]
        x *= 2
        table["rows"][0] += 1
        counts += 1
        return y

    def vjp(dy: Any, x: Any, table: Any, counts: Any) -> dict[str, Any]:
        rows = table["rows"][0]
        found = {"x": (dy * rows).sum(axis=0), "table": {"rows": [dy * x]}}
        x[...] = 0
        counts[...] = 0
        return found

    report = check_vjp(f, params, vjp)
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "f writes into" in report.message
    assert np.array_equal(params["x"], before["x"])
    assert np.array_equal(params["table"]["rows"][0], before["rows"])
    assert np.array_equal(params["counts"], np.arange(3))


def test_a_vjp_that_writes_into_its_cotangent_is_told_so_whether_right_or_wrong() -> None:
    def vjp(dy: Any, x: Any, factor: float = 2.0) -> dict[str, Any]:
        dy *= factor * x
        return {"x": dy}

    params = {"x": drawn(3, 4)}
    report = check_vjp(lambda x: x * x, params, vjp)
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "vjp writes into the cotangent" in report.message
    report = check_vjp(lambda x: x * x, params, lambda dy, x: vjp(dy, x, 3.0))
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.explanation.startswith("the derivative times 1.5")
    assert "vjp writes into the cotangent" in report.notes


def test_the_identity_may_return_its_cotangent() -> None:
    assert check_vjp(lambda x: x.copy(), {"x": drawn(3)}, lambda dy, x: {"x": dy}).ok


def test_a_cotangent_keeps_the_dtype_of_its_output_where_precisions_are_mixed() -> None:
    def f(x: Any, t: Any) -> tuple[Any, Any]:
        return x * 2, t * t

    def vjp(dy: Any, x: Any, t: Any) -> dict[str, Any]:
        assert [d.dtype for d in dy] == [x.dtype, t.dtype]
        return {"x": dy[0] * 2, "t": 2 * t * dy[1]}

    params = {"x": drawn(3, dtype="float32"), "t": drawn(2)}
    report = check_vjp(f, params, vjp)
    assert report.verdict is Verdict.PASS, str(report)


def test_the_calls_of_all_outputs_are_counted() -> None:
    calls = 0

    def f(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return x, x * x

    def vjp(dy: Any, x: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"x": dy[0] + x * dy[1]}

    report = check_vjp(f, {"x": drawn(3)}, vjp)
    assert report.verdict is Verdict.WRONG_GRADIENT
    # The first call shows the structure of the output.
    assert calls - report.calls == 1


def bilinear_grad(x: Any, w: Any) -> dict[str, Any]:
    """Of Σ sin(x_i) w_i² + x_0 w_1."""
    dx, dw = np.cos(x) * w**2, 2 * np.sin(x) * w
    dx[0] += w[1]
    dw[1] += x[0]
    return {"x": dx, "w": dw}


def bilinear_hvp(v: Any, x: Any, w: Any, cross: float = 1.0) -> dict[str, Any]:
    vx, vw = v["x"], v["w"]
    hx = -np.sin(x) * w**2 * vx + 2 * np.cos(x) * w * vw
    hw = 2 * np.sin(x) * vw + 2 * np.cos(x) * w * vx
    hx[0] += cross * vw[1]
    hw[1] += vx[0]
    return {"x": hx, "w": hw}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["full", "directional"])
def test_a_hessian_vector_product_of_several_parameters(dtype: str, mode: str) -> None:
    params = {"x": drawn(4, dtype=dtype), "w": drawn(4, seed=2, dtype=dtype)}
    report = check_hvp(bilinear_grad, params, bilinear_hvp, mode=mode)
    assert report.verdict is Verdict.PASS, str(report)
    report = check_hvp(
        bilinear_grad, params, lambda v, x, w: bilinear_hvp(v, x, w, cross=0.0), mode=mode
    )
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.place == "x[0]"


def test_an_input_from_the_same_seed_does_not_hide_a_wrong_hessian() -> None:
    # grad = (x·x) x: H v = (x·x) v + 2 (x·v) x, which is 3 (x·x) v only for v = x.
    x = np.random.default_rng(0).standard_normal(4)
    report = check_hvp(
        lambda x: {"x": (x * x).sum() * x}, {"x": x}, lambda v, x: {"x": 3 * (x @ x) * v["x"]}
    )
    assert report.verdict is Verdict.WRONG_GRADIENT


def test_the_vector_mirrors_nested_parameters_with_none_where_nothing_is_differentiated() -> None:
    def grad(layer: Any, steps: int) -> dict[str, Any]:
        return {"layer": {"w": (np.sin(layer["w"][0]),), "name": None}}

    def hvp(v: Any, layer: Any, steps: int) -> dict[str, Any]:
        assert (v["steps"], v["layer"]["name"], steps) == (None, None, 3)
        return {"layer": {"w": (np.cos(layer["w"][0]) * v["layer"]["w"][0],)}}

    params = {"layer": {"w": (drawn(3),), "name": "dense"}, "steps": 3}
    assert check_hvp(grad, params, hvp).verdict is Verdict.PASS


def test_a_gradient_with_wrong_keys_is_a_verdict() -> None:
    for wrong in ({"y": drawn(3)}, {}, None, {"x": drawn(2)}):
        report = check_hvp(lambda x, wrong=wrong: wrong, {"x": drawn(3)}, lambda v, x: v)
        assert report.verdict is Verdict.SHAPE_DTYPE
        assert report.calls == 1


def test_an_hvp_that_writes_into_the_vector_is_told_so() -> None:
    def hvp(v: Any, x: Any) -> dict[str, Any]:
        v["x"] *= np.cos(x)
        return {"x": v["x"]}

    report = check_hvp(lambda x: {"x": np.sin(x)}, {"x": drawn(3)}, hvp)
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "hvp writes into the vector" in report.message


KERNEL = drawn(3, seed=7)


def convolve(x: Any) -> Any:
    y = np.zeros(x.size - 2, x.dtype)
    for i in range(y.size):
        for k in range(3):
            y[i] += x[i + k] * KERNEL[k].astype(x.real.dtype)
    return y


def convolve_transposed(dy: Any, shift: int = 0) -> Any:
    dx = np.zeros(dy.size + 2, dy.dtype)
    for i in range(dy.size):
        for k in range(3):
            dx[i + k] += dy[i] * KERNEL[(k + shift) % 3].astype(dy.dtype)
    return dx


ROWS = np.array([2, 0, 2, 3])


def scattered(dy: Any) -> Any:
    dx = np.zeros((5, *dy.shape[1:]), dy.dtype)
    np.add.at(dx, ROWS, dy)
    return dx


def overwritten(dy: Any) -> Any:
    dx = np.zeros((5, *dy.shape[1:]), dy.dtype)
    dx[ROWS] = dy
    return dx


Map = Callable[[Any], Any]
LINEAR: dict[str, tuple[tuple[int, ...], Map, Map, Map]] = {
    "convolution": ((8,), convolve, convolve_transposed, lambda dy: convolve_transposed(dy, 1)),
    "padding": (
        (3, 2),
        lambda x: np.pad(x, ((1, 2), (0, 0))),
        lambda dy: dy[1:-2],
        lambda dy: dy[2:-1],
    ),
    "cumulative sum": (
        (6,),
        np.cumsum,
        lambda dy: np.cumsum(dy[::-1])[::-1],
        np.cumsum,
    ),
    "gather": ((5, 2), lambda x: x[ROWS], scattered, overwritten),
    "scatter": ((4, 2), scattered, lambda dy: dy[ROWS], lambda dy: dy[ROWS[::-1]]),
    "transposition": ((3, 4), np.transpose, np.transpose, lambda dy: dy.reshape(3, 4)),
    "mean": (
        (3, 4),
        lambda x: x.mean(axis=0),
        lambda dy: np.broadcast_to(dy / 3, (3, 4)),
        lambda dy: np.broadcast_to(dy, (3, 4)),
    ),
    "two outputs": (
        (4,),
        lambda x: (x[:2], {"rest": 2 * x[2:]}),
        lambda dy: np.concatenate([dy[0], 2 * dy[1]["rest"]]),
        lambda dy: np.concatenate([dy[0], dy[1]["rest"]]),
    ),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", LINEAR)
def test_a_transpose_passes_by_the_identity_alone_and_a_wrong_one_is_located(
    name: str, dtype: str
) -> None:
    shape, forward, adjoint, wrong = LINEAR[name]
    for seed in range(5):
        report = check_adjoint(forward, adjoint, np.zeros(shape, dtype), rng=seed)
        assert (report.verdict, report.method) == (Verdict.PASS, "adjoint"), str(report)
        report = check_adjoint(forward, wrong, np.zeros(shape, dtype), rng=seed)
        assert report.verdict is Verdict.WRONG_GRADIENT
        assert report.worst is not None
        assert report.worst.index is not None


def test_an_adjoint_wrong_for_one_column_is_located_there() -> None:
    matrix = drawn(4, 6)
    wrong = matrix.copy()
    wrong[2, 3] *= 1.01
    report = check_adjoint(lambda x: matrix @ x, lambda dy: wrong.T @ dy, np.zeros(6))
    assert report.worst is not None
    assert report.worst.place == "x[3]"


@pytest.mark.parametrize(
    "forward",
    [np.tanh, lambda x: np.maximum(x, 0), lambda x: x + 1, lambda x: x * x, np.sort, np.abs],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_linear_is_refused(forward: Any, dtype: str) -> None:
    for seed in range(5):
        with pytest.raises(ConfigError, match="forward is not linear"):
            check_adjoint(forward, lambda dy: dy, np.zeros(6, dtype), rng=seed)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_long_accumulation_is_linear(dtype: str) -> None:
    n = 20_000
    report = check_adjoint(np.cumsum, lambda dy: np.cumsum(dy[::-1])[::-1], np.zeros(n, dtype))
    assert report.verdict is Verdict.PASS, str(report)


def test_maps_that_write_into_their_arguments_do_not_pass() -> None:
    def forward(x: Any) -> Any:
        x *= 3
        return x.copy()

    def adjoint(dy: Any) -> Any:
        dy *= 3
        return dy

    report = check_adjoint(forward, lambda dy: 3 * dy, np.zeros(4))
    assert report.verdict is Verdict.MUTATED_INPUT
    report = check_adjoint(lambda x: 3 * x, adjoint, np.zeros(4))
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "adjoint writes into dy" in report.message


def test_a_map_that_writes_its_output_into_one_buffer_is_linear() -> None:
    buffer = np.zeros(4)

    def forward(x: Any) -> Any:
        buffer[...] = 2 * x
        return buffer

    assert check_adjoint(forward, lambda dy: 2 * dy, np.zeros(4)).method == "adjoint"


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_argument_without_entries_passes(shape: tuple[int, ...]) -> None:
    assert check_adjoint(lambda x: 2 * x, lambda dy: 2 * dy, np.zeros(shape)).ok


def test_the_argument_arrives_with_the_strides_given() -> None:
    seen = []

    def forward(x: Any) -> Any:
        seen.append(x.strides)
        return x + 0

    template = np.zeros((6, 8))[::-2, ::2]
    assert check_adjoint(forward, lambda dy: dy, template).ok
    assert seen[0] == template.strides


def test_an_adjoint_of_the_wrong_shape_or_dtype_is_a_verdict() -> None:
    for adjoint in (
        lambda dy: dy[1:],
        lambda dy: dy[None],
        lambda dy: dy.astype(np.float32),
        lambda dy: None,
    ):
        report = check_adjoint(lambda x: 2 * x, adjoint, np.zeros(4))
        assert report.verdict is Verdict.SHAPE_DTYPE


def test_a_map_without_floating_outputs_is_a_verdict() -> None:
    report = check_adjoint(lambda x: np.arange(3), lambda dy: dy, np.zeros(4))
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert (
        report.message == "forward must return a floating array, or several, got an array of int64"
    )


def test_bad_arguments_of_the_checks_themselves() -> None:
    for tolerance in (-1.0, 0.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="check_adjoint: tolerance"):
            check_adjoint(np.cumsum, np.cumsum, np.zeros(3), tolerance=tolerance)
    with pytest.raises((ConfigError, DtypeError), match="check_adjoint: x must be"):
        check_adjoint(np.cumsum, np.cumsum, np.zeros(3, int))
    with pytest.raises(ConfigError, match="check_vjp: nothing to differentiate"):
        check_vjp(lambda x: x, {"x": 1}, lambda dy, x: {})
    with pytest.raises(ConfigError, match="check_hvp: mode"):
        check_hvp(bilinear_grad, {"x": drawn(4), "w": drawn(4)}, bilinear_hvp, mode="half")
