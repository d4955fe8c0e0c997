"""Adapters without PyTorch: right gradients pass, wrong ones are named, errors say why."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import models
from refkd.errors import ConfigError, DtypeError, MissingExtra
from refkd.nn import Dropout, Layer, Linear, Sequential, Tanh
from refkd.testing import Verdict, check_grad
from refkd.testing.adapters import Subject, adapt
from refkd.testing.adapters import cupy as cupy_adapter
from refkd.testing.adapters import torch as torch_adapter
from refkd.testing.adapters.layer import from_layer
from refkd.testing.adapters.pair import by_name, from_pair
from refkd.testing.adapters.value_and_grad import from_value_and_grad
from tests.arch import fake_device
from tests.nn.contract_layers import WHOLE_CONTRACT

SEED = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_wrong(subject: Subject, name: str, index: tuple[int, ...] | None = None) -> None:
    report = check_grad(*subject)
    assert report.verdict is Verdict.WRONG_GRADIENT, report
    assert report.worst is not None
    assert report.worst.name == name
    assert index is None or report.worst.index == index


# --- pairs ---------------------------------------------------------------------------------


def affine_forward(x: Any, weight: Any, bias: Any = None, *, scale: float) -> Any:
    return scale * x @ weight.T + (0 if bias is None else bias)


def affine_backward(dy: Any, x: Any, weight: Any, bias: Any = None, *, scale: float) -> Any:
    dbias = None if bias is None else dy.sum(axis=0)
    return scale * dy @ weight, scale * dy.T @ x, dbias


def affine(backward: Callable[..., Any] = affine_backward, **changes: Any) -> Subject:
    params = {"x": normal(4, 3), "weight": normal(3, 3, seed=1), "bias": normal(3, seed=2)}
    gradients = ("x", "weight", "bias")
    return from_pair(
        affine_forward,
        backward,
        {**params, **changes},
        gradients=gradients,
        options={"scale": 0.5},
    )


def test_a_right_pair_passes_with_and_without_an_optional_input() -> None:
    assert check_grad(*affine()).entries == 4 * 3 + 3 * 3 + 3
    for subject in (affine(), affine(bias=None)):
        assert check_grad(*subject).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", lambda dx, dw, db: (dx / 0.5, dw, db)),
        ("x", lambda dx, dw, db: (-dx, dw, db)),
        ("weight", lambda dx, dw, db: (dx, dw.T, db)),
        ("bias", lambda dx, dw, db: (dx, dw, db / 4)),
    ],
)
def test_a_wrong_backward_of_a_pair_is_found_in_its_input(name: str, wrong: Any) -> None:
    def backward(dy: Any, x: Any, weight: Any, bias: Any, *, scale: float) -> Any:
        return wrong(*affine_backward(dy, x, weight, bias, scale=scale))

    assert_wrong(affine(backward), name)


@given(SEED, st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=20)
def test_one_wrong_entry_of_a_pair_is_located(seed: int, row: int, column: int) -> None:
    def backward(dy: Any, x: Any, weight: Any, bias: Any, *, scale: float) -> Any:
        dx, dweight, dbias = affine_backward(dy, x, weight, bias, scale=scale)
        dx[row, column] *= 1.01
        return dx, dweight, dbias

    assert_wrong(affine(backward, x=normal(4, 3, seed=seed)), "x", (row, column))


def test_the_cotangent_of_a_pair_is_random() -> None:
    # Right for any cotangent that is the same everywhere, such as ones.
    def backward(dy: Any, x: Any, weight: Any, bias: Any, *, scale: float) -> Any:
        return affine_backward(np.full_like(dy, dy.mean()), x, weight, bias, scale=scale)

    assert check_grad(*affine(backward)).verdict is Verdict.WRONG_GRADIENT
    params = {"x": normal(3)}
    values = [
        from_pair(lambda x: x, lambda dy: dy, params, gradients=("x",), rng=seed).f(**params)
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_a_seed_draws_another_cotangent_than_inputs_of_the_same_seed() -> None:
    x = np.random.default_rng(0).standard_normal((4, 4))
    pair = from_pair(lambda x: x, lambda dy: dy, {"x": x}, gradients=("x",), rng=0)
    layer = from_layer(Linear(4, 4, bias=False), {"weight": np.eye(4)}, {}, x, train=True, rng=0)
    for dx in (pair.grad(x=x)["x"], layer.grad(x=x, weight=np.eye(4))["x"]):
        assert abs(np.corrcoef(dx.ravel(), x.ravel())[0, 1]) < 0.9


def test_what_a_forward_saves_reaches_its_backward_and_has_no_cotangent() -> None:
    def forward(x: Any, labels: Any) -> Any:
        e = np.exp(x - x.real.max(axis=1, keepdims=True))
        q = e / e.sum(axis=1, keepdims=True)
        return -np.log(q[np.arange(len(q)), labels]).mean(), q

    def backward(dloss: Any, q: Any, labels: Any) -> Any:
        dx = q.copy()
        dx[np.arange(len(q)), labels] -= 1
        return dloss * dx / len(q), None

    params = {"x": normal(5, 4), "labels": np.array([0, 3, 1, 1, 2])}
    subject = from_pair(
        forward, backward, params, gradients=("x", None), outputs=("loss", "q"), rng=3
    )
    report = check_grad(*subject)
    assert (report.verdict, report.entries) == (Verdict.PASS, 20)


def test_every_output_whose_cotangent_the_backward_takes_has_one() -> None:
    def forward(x: Any, c: Any) -> Any:
        return np.sin(x) * c, c * c

    def backward(dh: Any, dc_next: Any, x: Any, c: Any) -> Any:
        return dh * np.cos(x) * c, dh * np.sin(x) + 2 * c * dc_next

    def forgetful(dh: Any, dc_next: Any, x: Any, c: Any) -> Any:
        return dh * np.cos(x) * c, dh * np.sin(x)

    def subject(backward: Any) -> Subject:
        params = {"x": normal(3), "c": normal(3, seed=1)}
        return from_pair(forward, backward, params, gradients=("x", "c"), outputs=("h", "c_next"))

    assert check_grad(*subject(backward)).verdict is Verdict.PASS
    assert_wrong(subject(forgetful), "c")


def test_a_floating_input_without_gradient_is_a_constant_in_the_precision_of_the_others() -> None:
    def forward(x: Any, target: Any) -> Any:
        if {x.dtype, target.dtype} not in ({x.dtype}, {np.dtype("c16"), np.dtype("f8")}):
            raise TypeError(f"{x.dtype} meets {target.dtype}")
        return (x - target) ** 2

    def backward(dy: Any, x: Any, target: Any) -> Any:
        assert dy.dtype == x.dtype == target.dtype
        return 2 * dy * (x - target)

    for dtype in (np.float64, np.float32):
        params = {"x": normal(4).astype(dtype), "target": normal(4, seed=1).astype(dtype)}
        subject = from_pair(forward, backward, params, gradients=("x",))
        report = check_grad(*subject)
        assert (report.verdict, report.entries, report.method) == (Verdict.PASS, 4, "complex")


def test_a_generator_among_the_inputs_of_a_pair_draws_the_same_in_every_call() -> None:
    def forward(x: Any, rng: np.random.Generator) -> Any:
        mask = rng.random(x.shape) < 0.5
        return x * mask, mask

    params = {"x": normal(40), "rng": np.random.default_rng(0)}
    subject = from_pair(
        forward, lambda dy, mask: dy * mask, params, gradients=("x",), outputs=("y", "mask")
    )
    assert check_grad(*subject).verdict is Verdict.PASS


def test_options_reach_both_functions_and_what_is_for_the_backward_alone_only_that() -> None:
    def forward(x: Any, *, power: int) -> Any:
        return x**power

    def backward(dy: Any, x: Any, *, power: int, factor: float) -> Any:
        return factor * dy * power * x ** (power - 1)

    def subject(factor: float) -> Subject:
        return from_pair(
            forward,
            backward,
            {"x": normal(3)},
            gradients=("x",),
            options={"power": 3},
            backward_only={"factor": factor},
        )

    assert check_grad(*subject(1.0)).verdict is Verdict.PASS
    assert_wrong(subject(2.0), "x")


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("gradients must be one of 'x', 'c'.*did you mean 'x'", {"gradients": ("xx",)}),
        ("forward returns 1 outputs, expected 2: y, mean", {"outputs": ("y", "mean")}),
        ("backward returns 1 gradients, expected 2: x, None", {"gradients": ("x", None)}),
        ("backward takes no dloss", {"outputs": ("loss",)}),
        ("forward: the case gives no c, only x", {"params": {"x": np.ones(2)}}),
    ],
)
def test_a_pair_that_does_not_fit_its_names_is_a_config_error(
    message: str, changes: dict[str, Any]
) -> None:
    def forward(x: Any, c: Any) -> Any:
        return c * x

    def backward(dy: Any, c: Any) -> Any:
        return dy * c

    arguments = {"params": {"x": np.ones(2), "c": 3}, "gradients": ("x",), **changes}
    with pytest.raises(ConfigError, match=message):
        check_grad(*from_pair(forward, backward, arguments.pop("params"), **arguments))


def test_an_output_that_is_not_floating_has_no_cotangent() -> None:
    with pytest.raises(DtypeError, match="y must be a floating array, got int64"):
        from_pair(lambda x: x.argmax(), lambda dy: dy, {"x": np.ones(3)}, gradients=("x",))


def named(a: Any, /, b: Any, c: Any = "c", *, d: Any, e: Any = "e") -> tuple[Any, ...]:
    return a, b, c, d, e


@given(st.sets(st.sampled_from("abcdef")))
def test_arguments_found_by_name_arrive_where_they_are_called_for(given_names: set[str]) -> None:
    available = {name: f"given {name}" for name in given_names}
    if given_names >= {"a", "b", "d"}:
        expected = tuple(available.get(name, name) for name in "abcde")
        assert by_name(named)(available) == expected
    else:
        with pytest.raises(ConfigError, match=r"named: the case gives no [abd]"):
            by_name(named)(available)


def test_a_function_of_any_keyword_gets_all_and_positions_are_used_where_there_are_any() -> None:
    def record(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    def some(x: Any, **rest: Any) -> tuple[Any, Any]:
        return x, rest

    assert by_name(record)({"x": 1, "y": 2}) == ((), {"x": 1, "y": 2})
    assert by_name(some)({"x": 1, "y": 2}) == (1, {"y": 2})

    record.__signature__ = inspect.signature(named)  # type: ignore[attr-defined]
    assert by_name(record)({"d": 4, "b": 2, "a": 1}) == ((1, 2), {"d": 4})


def test_a_function_without_signature_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="has no signature"):
        by_name(max)


# --- layers --------------------------------------------------------------------------------


def drawn(layer: Layer, dtype: Any = np.float64) -> tuple[Any, Any]:
    return layer.init(np.random.default_rng(1), dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Broken(Layer):
    """A layer whose gradients pass through ``change``."""

    layer: Layer
    change: Callable[[Any, Any], Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        return self.change(*self.layer.backward(*args, **kwargs))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("train", [True, False])
def test_a_model_passes_in_either_precision(dtype: Any, train: bool) -> None:
    network = models.create("mlp", in_features=6, hidden=(5, 4), num_classes=3, dropout=0.4)
    params, state = drawn(network, dtype)
    x = normal(7, 6).astype(dtype)
    subject = from_layer(network, params, state, x, train=train)
    report = check_grad(*subject)
    assert report.verdict is Verdict.PASS
    assert report.entries == x.size + sum(p.size for p in params.values())


def test_a_layer_of_tuples_and_integers_with_running_statistics_passes() -> None:
    for dtype in (np.float64, np.float32):
        params, state = drawn(WHOLE_CONTRACT, dtype)
        ids, values = np.array([4, 0, 2, 2, 1]), normal(5, 3).astype(dtype)
        before = {name: array.copy() for name, array in state.items()}
        for train in (True, False):
            subject = from_layer(WHOLE_CONTRACT, params, state, (ids, values), train=train)
            report = check_grad(*subject)
            assert report.verdict is Verdict.PASS
            assert report.entries == values.size + sum(p.size for p in params.values())
        np.testing.assert_equal(state, before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda dx, grads: (2 * dx, grads)),
        ("0.weight", lambda dx, grads: (dx, {**grads, "0.weight": grads["0.weight"].T.copy()})),
        ("2.bias", lambda dx, grads: (dx, {**grads, "2.bias": -grads["2.bias"]})),
    ],
)
def test_a_wrong_backward_of_a_layer_is_found_where_it_is(name: str, change: Any) -> None:
    layer = Sequential.numbered(Linear(4, 4), Tanh(), Linear(4, 2))
    params, state = drawn(layer)
    subject = from_layer(Broken(layer, change), params, state, normal(3, 4), train=True)
    assert_wrong(subject, name)


def test_the_second_of_several_outputs_has_a_cotangent_too() -> None:
    params, state = drawn(WHOLE_CONTRACT)
    gate = list(params)[-1]
    x = (np.array([0, 1, 2]), normal(3, 3))

    def change(dx: Any, grads: Any) -> Any:
        return dx, {**grads, gate: 0 * grads[gate]}

    assert_wrong(from_layer(Broken(WHOLE_CONTRACT, change), params, state, x, train=True), gate)


def test_dropout_drops_the_same_entries_in_every_call_and_others_for_another_seed() -> None:
    x = np.ones(200)
    first, again, other = (
        from_layer(Dropout(0.5), {}, {}, x, train=True, rng=seed) for seed in (0, 0, 1)
    )
    assert first.f(x=x) == first.f(x=x) == again.f(x=x) != other.f(x=x)
    dropped = [np.flatnonzero(s.grad(x=x)["x"] == 0) for s in (first, first, other)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.array_equal(dropped[0], dropped[2])


def test_evaluation_drops_nothing_and_every_call_has_the_state_in_the_precision_of_x() -> None:
    x = np.ones(50)
    assert np.all(from_layer(Dropout(0.5), {}, {}, x, train=False).grad(x=x)["x"] != 0)

    @dataclasses.dataclass(frozen=True)
    class Shift(Layer):
        def forward(self, params: Any, state: Any, x: Any, **options: Any) -> Any:
            assert state["shift"].dtype == x.real.dtype
            assert state["count"].dtype == np.int64
            return x + state["shift"], None

        def backward(self, params: Any, cache: Any, dy: Any, **options: Any) -> Any:
            return dy.copy(), {}

    for dtype in (np.float32, np.float64):
        state = {"shift": np.ones(50, dtype), "count": np.zeros((), np.int64)}
        subject = from_layer(Shift(), {}, state, x.astype(dtype), train=False)
        report = check_grad(*subject)
        assert (report.verdict, report.method) == (Verdict.PASS, "complex")


def test_a_parameter_called_like_the_input_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Linear has a parameter called x"):
        from_layer(Linear(2, 2), {"x": np.ones(2)}, {}, np.ones((1, 2)), train=True)


# --- value and gradient together -----------------------------------------------------------


def rosenbrock(x: Any) -> tuple[Any, Any]:
    a, b = 1 - x[:-1], x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -2 * a - 400 * x[:-1] * b
    gradient[1:] += 200 * b
    return (a**2 + 100 * b**2).sum(), gradient


def test_value_and_gradient_of_one_array_pass_and_a_wrong_entry_is_located() -> None:
    def slightly_off(x: Any) -> tuple[Any, Any]:
        value, gradient = rosenbrock(x)
        gradient[2] *= 1.01
        return value, gradient

    x = normal(5)
    assert check_grad(*from_value_and_grad(rosenbrock, x)).verdict is Verdict.PASS
    assert_wrong(from_value_and_grad(slightly_off, x), "x", (2,))


def test_value_and_gradients_by_name_pass_and_a_wrong_one_is_named() -> None:
    def fun(a: Any, b: Any, factor: float = 1.0) -> tuple[Any, dict[str, Any]]:
        return (a * np.exp(b)).sum(), {"a": np.exp(b), "b": factor * a * np.exp(b)}

    params = {"a": normal(3), "b": normal(3, seed=1)}
    assert check_grad(*from_value_and_grad(fun, params)).verdict is Verdict.PASS
    assert_wrong(from_value_and_grad(lambda **p: fun(**p, factor=-1), params), "b")


def test_parameters_that_are_no_arrays_are_a_dtype_error() -> None:
    with pytest.raises(DtypeError, match="an array or a mapping of names to arrays, got list"):
        from_value_and_grad(rosenbrock, [1.0, 2.0])


@pytest.mark.parametrize("returned", [1.0, (1.0,), (1.0, np.ones(2), None), np.ones(2)])
def test_what_returns_no_pair_is_a_config_error(returned: Any) -> None:
    subject = from_value_and_grad(lambda x: returned, np.ones(2))
    for call in (subject.f, subject.grad):
        with pytest.raises(ConfigError, match=r"fun must return \(value, gradient\)"):
            call(x=np.ones(2))


# --- CuPy ----------------------------------------------------------------------------------


class ndarray(fake_device.DeviceArray):
    """Named like CuPy's array, by which it is recognised."""


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand the fake device in for CuPy; its arrays refuse to become NumPy's by themselves."""
    module: Any = ModuleType("cupy")
    module.ndarray = fake_device.DeviceArray
    module.asarray = lambda array: ndarray(np.array(array))
    module.asnumpy = fake_device.to_host
    monkeypatch.setattr(ndarray, "__module__", "cupy")
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def device_sines(weights: Any, labels: Any, scale: float) -> Any:
    xp = weights[0].__array_namespace__()
    return scale * (xp.sin(weights[0]) * weights[1]).sum() + 0 * labels.sum()


def device_cosines(weights: Any, labels: Any, scale: float) -> Any:
    xp = weights[0].__array_namespace__()
    return {
        "weights": (scale * xp.cos(weights[0]) * weights[1], scale * xp.sin(weights[0])),
        "labels": None,
    }


def device_params(cupy: Any, dtype: Any = np.float64) -> dict[str, Any]:
    arrays = (normal(2, 3).astype(dtype), normal(2, 3, seed=1).astype(dtype))
    labels = cupy.asarray(np.arange(3))
    return {"weights": tuple(map(cupy.asarray, arrays)), "labels": labels, "scale": 2.0}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nested_device_arrays_pass_and_stay_on_the_device(cupy: Any, dtype: Any) -> None:
    subject = adapt(device_sines, device_params(cupy, dtype), device_cosines)
    assert subject is not None
    report = check_grad(*subject)
    assert (report.verdict, report.method, report.entries) == (Verdict.PASS, "complex", 12)


def test_a_wrong_gradient_on_the_device_is_located(cupy: Any) -> None:
    def wrong(**given: Any) -> Any:
        gradients = device_cosines(**given)
        gradients["weights"][1][1, 2] *= 1.01
        return gradients

    params = device_params(cupy)
    assert_wrong(cupy_adapter.from_function(device_sines, params, wrong), "weights[1]", (1, 2))


def test_a_generator_beside_device_arrays_draws_the_same_in_every_call(cupy: Any) -> None:
    params = {"x": cupy.asarray(normal(3)), "rng": np.random.default_rng(0)}

    def f(x: Any, rng: np.random.Generator) -> Any:
        return x.sum() * float(rng.random())

    def grad(x: Any, rng: np.random.Generator) -> Any:
        return {"x": 0 * x + float(rng.random())}

    report = check_grad(*cupy_adapter.from_function(f, params, grad))
    assert report.verdict is Verdict.PASS


def test_longdouble_is_refused_where_the_device_has_none(cupy: Any) -> None:
    subject = cupy_adapter.from_function(
        lambda x: (x * x).sum(), {"x": cupy.asarray(normal(2))}, lambda x: {"x": 2 * x}
    )
    with pytest.raises(TypeError, match=r"CuPy has no .* arrays"):
        subject.f(x=np.ones(2, dtype=np.longdouble))


def test_a_gradient_that_is_no_mapping_is_left_to_the_checker(cupy: Any) -> None:
    params = {"x": cupy.asarray(normal(2))}
    report = check_grad(*cupy_adapter.from_function(lambda x: x.sum(), params, lambda x: x))
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "must return a mapping" in report.message


@pytest.mark.parametrize(("library", "extra"), [("cupy", "cuda12"), ("torch", "torch")])
def test_without_the_library_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    adapter = {"cupy": cupy_adapter, "torch": torch_adapter}[library]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'refkd\[{extra}\]'"):
        adapter.from_function(lambda x: x, {"x": 1.0}, lambda x: x)


# --- which adapter -------------------------------------------------------------------------


def test_numpy_parameters_need_no_adapter_and_load_no_library() -> None:
    params = {"x": normal(2), "nested": ({"y": np.float32(1)}, None), "rng": 3}
    before = set(sys.modules)
    assert adapt(lambda **p: 0.0, params, lambda **p: {}) is None
    assert adapt(lambda **p: 0.0, params, None) is None
    assert set(sys.modules) == before


@pytest.mark.parametrize("beside", [normal(2), np.float64(1.0), np.float32(1.0)])
def test_floating_arrays_of_two_libraries_are_a_dtype_error(cupy: Any, beside: Any) -> None:
    params = {"x": cupy.asarray(normal(2)), "deep": [{"y": beside}]}
    with pytest.raises(DtypeError, match=r"x is a CuPy array, deep\[0\]\.y is a floating NumPy"):
        adapt(lambda **p: 0.0, params, lambda **p: {})


def test_integers_of_numpy_beside_device_arrays_are_constants(cupy: Any) -> None:
    params = {"x": cupy.asarray(normal(2)), "n": np.arange(3)}
    subject = adapt(lambda x, n: x.sum() * len(n), params, lambda x, n: {"x": 0 * x + len(n)})
    assert subject is not None
    assert check_grad(*subject).verdict is Verdict.PASS


def test_cupy_arrays_without_a_gradient_are_a_config_error(cupy: Any) -> None:
    with pytest.raises(ConfigError, match=r"grad is missing; x\[0\] is a CuPy array"):
        adapt(lambda x: x[0].sum(), {"x": (cupy.asarray(normal(2)),)}, None)


def test_what_an_adapter_returned_is_all_that_check_grad_needs() -> None:
    subject = from_value_and_grad(lambda x: ((x * x).sum(), 2 * x), np.ones(3))
    assert check_grad(subject).ok
    with pytest.raises(ConfigError, match="params is missing"):
        check_grad(lambda x: x.sum())
