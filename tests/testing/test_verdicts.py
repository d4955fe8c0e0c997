"""Every verdict of the checker, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, NamedTuple

import numpy as np
import pytest

from refkd.errors import ConfigError, DtypeError
from refkd.testing import GradReport, Verdict, check_grad


def square(x: Any) -> Any:
    return (x * x).sum()


def twice(x: Any) -> dict[str, Any]:
    return {"x": 2 * x}


def point(*shape: int, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).uniform(0.2, 1, size=shape)}


# --- KINK -------------------------------------------------------------------------------


def curved_slope(x: Any) -> Any:
    return np.exp(x) * (np.sign(x) + np.abs(x))


KINKED: dict[str, tuple[Any, Any, tuple[float, float]]] = {
    "relu": (lambda x: np.where(x.real > 0, x, 0).sum(), lambda x: (x > 0) * 1.0, (0, 1)),
    "maximum": (lambda x: np.maximum(x, 0).sum(), lambda x: (x > 0) * 1.0, (0, 1)),
    "abs": (lambda x: np.abs(x).sum(), np.sign, (-1, 1)),
    "curved": (lambda x: (np.abs(x) * np.exp(x)).sum(), curved_slope, (-1, 1)),
}


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.parametrize("mode", ["full", "directional"])
def test_any_slope_between_the_one_sided_ones_is_accepted_and_said(name: str, mode: str) -> None:
    f, slope, (low, high) = KINKED[name]
    params = {"x": np.array([0.7, 0.0, -0.4])}
    for part in (0.0, 0.3, 1.0):
        at_zero = low + part * (high - low)

        def grad(x: Any, at_zero: float = at_zero) -> dict[str, Any]:
            return {"x": np.where(x == 0, at_zero, slope(x))}

        report = check_grad(f, params, grad, mode=mode)
        assert report.verdict is Verdict.KINK, str(report)
        assert report.ok
        assert report.raise_if_failed() is report
        assert any("the slope jumps from" in note for note in report.notes)


@pytest.mark.parametrize("name", KINKED)
def test_a_slope_outside_the_one_sided_ones_is_wrong(name: str) -> None:
    f, slope, (low, high) = KINKED[name]
    params = {"x": np.array([0.7, 0.0, -0.4])}
    for at_zero in (low - 1e-4, high + 1e-4, 7.0):
        report = check_grad(f, params, lambda x, a=at_zero: {"x": np.where(x == 0, a, slope(x))})
        assert report.verdict is Verdict.WRONG_GRADIENT, str(report)
        assert report.worst is not None
        assert report.worst.index == (1,)


def test_an_error_elsewhere_does_not_hide_between_two_slopes() -> None:
    # Along a random direction |x_0| alone lets the gradient be anything within ± |u_0|.
    def f(x: Any) -> Any:
        return np.abs(x).sum()

    def grad(x: Any) -> dict[str, Any]:
        gradient = np.where(x == 0, 0.7, np.sign(x))
        gradient[4] *= 1.01
        return {"x": gradient}

    x = np.random.default_rng(0).uniform(0.2, 1, size=50)
    x[0] = 0
    report = check_grad(f, {"x": x}, grad, mode="directional")
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.index == (4,)
    assert any("where f has no kink" in note for note in report.notes)


def test_ties_of_a_maximum_are_kinks() -> None:
    def f(x: Any) -> Any:
        return x[np.argmax(x.real)]

    def grad(x: Any, first: bool = True) -> dict[str, Any]:
        gradient = np.zeros_like(x)
        places = np.flatnonzero(x == x.max())
        gradient[places[0 if first else -1]] = 1
        return {"x": gradient}

    params = {"x": np.array([0.3, 0.9, 0.9, 0.1])}
    for first in (True, False):
        report = check_grad(f, params, lambda x, first=first: grad(x, first))
        assert report.verdict is Verdict.KINK, str(report)
    shared = {"x": np.array([0.0, 0.5, 0.5, 0.0])}
    assert check_grad(f, params, lambda x: shared).verdict is Verdict.KINK


@pytest.mark.parametrize("method", ["auto", "ridders"])
@pytest.mark.parametrize("each", [0.0, 1.0])
def test_tied_maxima_that_all_or_none_get_the_gradient_are_wrong(each: float, method: str) -> None:
    # Each entry alone is a slope between 0 and 1; together they are 0 or 3 and must be 1.
    params = {"x": np.array([0.3, 0.9, 0.9, 0.9, 0.1])}
    for seed in range(10):
        report = check_grad(
            lambda x: x[np.argmax(x.real)],
            params,
            lambda x: {"x": np.where(x == 0.9, each, 0.0)},
            rng=seed,
            method=method,
        )
        assert report.verdict is Verdict.WRONG_GRADIENT, str(report)
        assert any("of tied values" in note for note in report.notes)


def test_many_units_at_zero_may_all_have_slope_zero() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        dy = rng.standard_normal(30)
        report = check_grad(
            lambda x, dy=dy: (np.where(x.real > 0, x, 0) * dy).sum(),
            {"x": np.zeros(30)},
            lambda x: {"x": np.zeros(30)},
            rng=seed,
        )
        assert report.verdict is Verdict.KINK, str(report)


# --- NONDETERMINISTIC and replayed seeds ------------------------------------------------


def test_a_function_with_its_own_generator_is_nondeterministic() -> None:
    own = np.random.default_rng(0)
    report = check_grad(lambda x: (x * own.random(x.shape)).sum(), point(3), twice)
    assert report.verdict is Verdict.NONDETERMINISTIC
    assert "f gives" in report.message
    assert "rng=numpy.random.default_rng(0)" in report.message


def test_a_gradient_with_its_own_generator_is_nondeterministic() -> None:
    own = np.random.default_rng(0)
    report = check_grad(square, point(3), lambda x: {"x": 2 * x * own.random(x.shape)})
    assert report.verdict is Verdict.NONDETERMINISTIC
    assert "two calls of grad" in report.message


def test_a_generator_among_the_params_is_replayed_and_left_as_it_was() -> None:
    rng = np.random.default_rng(7)
    state = rng.bit_generator.state

    def mask(x: Any, rng: Any) -> Any:
        return (rng.random(x.shape) > 0.5) / 0.5

    report = check_grad(
        lambda x, rng: (x * x * mask(x, rng)).sum(),
        {**point(20), "rng": rng},
        lambda x, rng: {"x": 2 * x * mask(x, rng)},
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), random.random])  # noqa: NPY002
def test_global_generators_are_replayed_and_left_as_they_were(draw: Any) -> None:
    before = (random.getstate(), np.random.get_state()[1].tobytes())  # noqa: NPY002
    report = check_grad(
        lambda x: square(x) * (1 + draw()), point(5), lambda x: {"x": 2 * x * (1 + draw())}
    )
    assert report.verdict is Verdict.PASS, str(report)
    assert any("same seed was replayed" in note for note in report.notes)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002


def test_a_gradient_that_relies_on_the_last_call_of_f_is_told_apart() -> None:
    stored = {}

    def f(x: Any) -> Any:
        stored["x"] = x.real.copy()
        return square(x)

    report = check_grad(f, point(3), lambda x: {"x": 2 * stored["x"]})
    assert report.verdict is Verdict.NONDETERMINISTIC
    assert "what the last call of f stored" in report.message


# --- NONFINITE --------------------------------------------------------------------------


def test_an_infinite_parameter_has_no_derivative() -> None:
    mask = np.array([0.0, -np.inf, 0.0])
    report = check_grad(lambda x, mask: square(x), {**point(3), "mask": mask}, twice)
    assert report.verdict is Verdict.NONFINITE
    assert "parameter mask is -inf at [1]" in report.message
    assert "constant" in report.message


# --- ALIASED ----------------------------------------------------------------------------


def product(a: Any, b: Any) -> Any:
    return (a + b).sum()


def test_two_gradients_in_one_memory_are_aliased() -> None:
    params = {"a": np.ones(3), "b": np.ones(3)}

    def grad(a: Any, b: Any) -> dict[str, Any]:
        d = np.ones_like(a)
        return {"a": d, "b": d}

    report = check_grad(product, params, grad)
    assert report.verdict is Verdict.ALIASED
    assert not report.ok
    assert "the gradient of b shares memory with the gradient of a" in report.message
    assert "the values of the gradient are right" in report.message


def test_a_gradient_that_is_the_argument_itself_is_aliased() -> None:
    report = check_grad(lambda x: square(x) / 2, point(3), lambda x: {"x": x})
    assert report.verdict is Verdict.ALIASED
    assert "shares memory with the argument x" in report.message


@pytest.mark.parametrize("view", [False, True])
def test_a_buffer_that_the_next_call_overwrites_is_aliased(view: bool) -> None:
    buffer = np.empty(3)

    def grad(x: Any) -> dict[str, Any]:
        np.multiply(x, 2, out=buffer)
        return {"x": buffer[:] if view else buffer}

    report = check_grad(square, point(3), grad)
    assert report.verdict is Verdict.ALIASED
    assert "what grad returned before for x" in report.message


def test_views_of_one_fresh_buffer_and_gradients_known_beforehand_are_fine() -> None:
    def flat(a: Any, b: Any) -> dict[str, Any]:
        buffer = np.ones(6)
        return {"a": buffer[::2], "b": buffer[1::2]}

    assert check_grad(product, {"a": np.ones(3), "b": np.ones(3)}, flat).verdict is Verdict.PASS
    params = point(3)
    known = twice(params["x"])
    assert check_grad(square, params, lambda x: known).verdict is Verdict.PASS


def test_a_wrong_gradient_is_called_wrong_whatever_memory_it_shares() -> None:
    report = check_grad(square, point(3), lambda x: {"x": x})
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert any("shares memory" in note for note in report.notes)


def test_tied_parameters_are_differentiated_one_by_one() -> None:
    w = np.random.default_rng(0).standard_normal((3, 3))
    report = check_grad(
        lambda first, second: (first @ second).sum(),
        {"first": w, "second": w},
        lambda first, second: {
            "first": np.ones((3, 3)) @ second.T,
            "second": first.T @ np.ones((3, 3)),
        },
    )
    assert report.verdict is Verdict.PASS, str(report)


# --- MUTATED_INPUT ----------------------------------------------------------------------


def test_a_function_that_writes_into_its_arguments_is_named_and_does_no_harm() -> None:
    params = point(4)
    before = params["x"].copy()

    def f(x: Any) -> Any:
        x *= x
        return x.sum()

    report = check_grad(f, params, twice)
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "f writes into x" in report.message
    assert "the values of the gradient are right" in report.message
    np.testing.assert_array_equal(params["x"], before)


def test_a_gradient_that_writes_into_a_constant_is_named_and_does_no_harm() -> None:
    labels = np.array([2, 0])
    params = {**point(2, 3), "labels": labels}

    def f(x: Any, labels: Any) -> Any:
        return np.exp(x[np.arange(2), labels]).sum()

    def grad(x: Any, labels: Any) -> dict[str, Any]:
        dx = np.zeros_like(x)
        dx[np.arange(2), labels] = np.exp(x[np.arange(2), labels])
        labels += 1
        return {"x": dx}

    report = check_grad(f, params, grad)
    assert report.verdict is Verdict.MUTATED_INPUT
    assert "grad writes into labels" in report.message
    np.testing.assert_array_equal(labels, [2, 0])


# --- SHAPE_DTYPE and bad input -----------------------------------------------------------


def test_an_unknown_key_gets_a_suggestion() -> None:
    report = check_grad(
        lambda weight: square(weight), {"weight": np.ones(3)}, lambda weight: {"wieght": weight}
    )
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "did you mean 'weight'" in report.message


def test_a_vector_as_output_is_sent_to_check_vjp() -> None:
    report = check_grad(lambda x: x * x, point(3), twice)
    assert report.verdict is Verdict.SHAPE_DTYPE
    assert "check_vjp" in report.message


@pytest.mark.parametrize("who", ["f", "grad"])
def test_an_error_passes_through_with_what_it_was_called_with(who: str) -> None:
    def raising(x: Any) -> Any:
        raise ZeroDivisionError("of the reader's own")

    f, grad = (raising, twice) if who == "f" else (square, raising)
    with pytest.raises(ZeroDivisionError, match="own") as caught:
        check_grad(f, point(3, 2), grad)
    assert caught.value.__notes__ == [
        f"raised by {who}(**params) at the given point, with x: float64 (3, 2)"
    ]


def test_a_function_that_prints_is_silenced_after_the_first_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def f(x: Any) -> Any:
        print("loss")
        return square(x)

    report = check_grad(f, point(40), twice)
    assert report.verdict is Verdict.PASS
    assert "f or grad prints; it was silenced after the first calls" in report.notes
    assert 1 <= capsys.readouterr().out.count("loss") <= 4


def test_a_python_float_is_a_constant_and_the_message_says_so() -> None:
    with pytest.raises(ConfigError, match=r"scale is a Python float.*numpy.array\(scale\)"):
        check_grad(lambda scale: scale**2, {"scale": 2.0}, lambda scale: {"scale": 2 * scale})


def test_arguments_that_are_no_functions_or_lack_the_gradient_raise() -> None:
    with pytest.raises(ConfigError, match="f must be a function of the parameters, got ndarray"):
        check_grad(np.ones(3), point(3), twice)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grad must be a function of the parameters, got dict"):
        check_grad(square, point(3), {"x": np.ones(3)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grad is missing"):
        check_grad(square, point(3))
    with pytest.raises(DtypeError, match="masked array"):
        check_grad(square, {"x": np.ma.masked_array(np.ones(3), [0, 1, 0])}, twice)


# --- structured parameters ----------------------------------------------------------------


class Pair(NamedTuple):
    weight: Any
    bias: Any


@dataclasses.dataclass(frozen=True)
class Network:
    layers: tuple[Pair, ...]
    scale: Any
    name: str = "mlp"


def network() -> Network:
    rng = np.random.default_rng(0)
    layers = tuple(Pair(rng.standard_normal((3, 3)), rng.standard_normal(3)) for _ in range(2))
    return Network(layers, np.array(1.5))


def network_loss(net: Network, x: Any) -> Any:
    for layer in net.layers:
        x = np.tanh(x @ layer.weight.T + layer.bias)
    return net.scale * x.sum()


def network_gradient(net: Network, x: Any) -> Any:
    inputs = [x]
    for layer in net.layers:
        inputs.append(np.tanh(inputs[-1] @ layer.weight.T + layer.bias))
    d, layers = np.full_like(inputs[-1], net.scale), []
    for layer, before, after in zip(net.layers[::-1], inputs[-2::-1], inputs[::-1], strict=False):
        d = d * (1 - after * after)
        layers.append(Pair(d.T @ before, d.sum(axis=0)))
        d = d @ layer.weight
    return {"net": Network(tuple(layers[::-1]), np.asarray(inputs[-1].sum())), "x": d}


def test_nested_parameters_are_checked_and_located_by_their_path() -> None:
    params = {"net": network(), "x": np.random.default_rng(1).standard_normal((4, 3))}
    report = check_grad(network_loss, params, network_gradient)
    assert report.verdict is Verdict.PASS, str(report)
    assert [p.name for p in report.parameters] == [
        *("net.layers[0].weight", "net.layers[0].bias"),
        *("net.layers[1].weight", "net.layers[1].bias"),
        *("net.scale", "x"),
    ]
    assert report.entries == 9 + 3 + 9 + 3 + 1 + 12

    def wrong(net: Network, x: Any) -> Any:
        found = network_gradient(net, x)
        found["net"].layers[1].weight[2, 0] *= 1.01
        return found

    report = check_grad(network_loss, params, wrong)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.place == "net.layers[1].weight[2, 0]"
    assert report.explanation == "the wrong entry is 1.01 times the derivative"


# --- the cost -----------------------------------------------------------------------------


def test_a_large_model_takes_two_gradients_and_six_values() -> None:
    calls = {"f": 0, "grad": 0, "complex": 0}

    def f(x: Any) -> Any:
        calls["complex" if np.iscomplexobj(x) else "f"] += 1
        return np.sin(x).sum()

    def grad(x: Any) -> dict[str, Any]:
        calls["grad"] += 1
        return {"x": np.cos(x)}

    report: GradReport = check_grad(f, point(100_000), grad)
    assert report.verdict is Verdict.PASS
    assert calls == {"f": 5, "grad": 2, "complex": 1}
    assert report.calls == 8


def test_every_entry_is_counted_and_measured_in_full_mode() -> None:
    def wrong(x: Any) -> dict[str, Any]:
        gradient = 2 * x
        gradient[1] *= -1
        return {"x": gradient}

    report = check_grad(square, point(3, 4), wrong)
    (parameter,) = report.parameters
    assert (parameter.verdict, parameter.wrong) == ("WRONG_GRADIENT", 4)
    assert parameter.errors is not None
    assert parameter.errors.shape == (3, 4)
    assert (parameter.errors[1] > 0.1).all()
    assert (np.delete(parameter.errors, 1, axis=0) <= 1e-12).all()
    assert "4 of its 12 entries are wrong" in report.message
