"""What every backend's kernels keep to, on all calls: the reference's results, errors and manners.

A backend is tested where it is installed and works. Its float32 kernels are held against
the reference in float64, and may be wrong by 4 times as much as the reference in float32
is, or by the factor that the backend states for an algorithm of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refkd import models
from refkd.dispatch import get_backend, namespace, registered_kernels, use_backend
from refkd.losses import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from refkd.testing import check_grad
from refkd.testing.adapters.pair import from_pair
from refkd.testing.pairs import PairCase, all_cases
from refkd.testing.tolerances import tolerance
from tests.backends.calls import LAYOUTS, Call, calls, reference
from tests.backends.checks import check_mistakes, check_near
from tests.backends.judge import check_accuracy, error, in_bits, judged_calls, size
from tests.backends.networks import NETWORKS
from tests.backends.override import BACKENDS, Override, overrides

each_override = pytest.mark.parametrize("override", list(overrides()), ids=str)
in_all_surroundings = pytest.mark.parametrize("override", list(overrides(everywhere=True)), ids=str)


@each_override
def test_an_override_runs_on_some_call(override: Override) -> None:
    assert any(override.runs_on(call) for call in calls(override.kernel)), "it serves no call"


@in_all_surroundings
def test_float32_is_nearly_as_accurate_as_the_reference(override: Override) -> None:
    for judged in judged_calls(override.kernel):
        for layout in LAYOUTS:
            check_accuracy(override, judged, layout)


@each_override
def test_float64_is_the_reference_s(override: Override) -> None:
    for call in calls(override.kernel, "float64"):
        expected = reference(call)
        for layout in LAYOUTS:
            check_near(call, override.results(call, layout), expected)


@in_all_surroundings
def test_the_same_call_gives_the_same_bits_whatever_is_called_between(override: Override) -> None:
    all_calls = calls(override.kernel)
    held = [override.make(override.moved(call)) for call in all_calls]
    first = [in_bits(list(map(override.to_numpy, results))) for results in held]
    for call, results, bits in zip(all_calls, held, first, strict=True):
        for layout in ("C", "odd address"):
            assert in_bits(override.results(call, layout)) == bits, (call, layout)
        assert in_bits(list(map(override.to_numpy, results))) == bits, call


@in_all_surroundings
def test_arguments_are_left_as_they_are_and_outputs_are_fresh(override: Override) -> None:
    for call in calls(override.kernel):
        for layout in LAYOUTS:
            moved = override.moved(call, layout)
            outputs = [
                o for o in override.make(moved) if isinstance(o, override.backend.array_type)
            ]
            if outputs and outputs[0] is next(iter(moved.arrays.values())):
                continue  # an update
            for name, array in moved.arrays.items():
                after = override.backend.to_numpy(array)
                np.testing.assert_array_equal(after, call.arguments[name], str(call))
            for i, output in enumerate(outputs):
                for other in (*moved.arrays.values(), *outputs[:i]):
                    assert not namespace(output).may_share_memory(output, other), (call, layout)
                assert getattr(output.flags, "writeable", True)  # CuPy knows no other


@in_all_surroundings
@pytest.mark.parametrize(
    "special", [np.nan, np.inf, pytest.param(-np.inf, marks=pytest.mark.slow)], ids=str
)
def test_nan_and_infinity_come_out_where_the_reference_has_them(
    override: Override, special: float
) -> None:
    rng = np.random.default_rng(0)
    for call in calls(override.kernel):
        for name in call.floating:
            if not call.arrays[name].size:
                continue
            place = rng.integers(call.arrays[name].size)
            planted = with_entry(call, name, place, special)
            with np.errstate(all="ignore"):
                expected, actual = reference(planted), override.results(planted)
                if override.kernel.startswith("conv2d"):
                    large = reference(with_entry(call, name, place, 1e15))
                    spreads = name == "weight" or override.error_factor > 4
                    check_convolved(planted, actual, expected, large, spreads)
                    continue
                exact = expected if np.isnan(special) else reference(planted.astype("float64"))
            for a, e, x in zip(actual, expected, exact, strict=True):
                if e is not None:
                    where = f"{planted}: {special} in {name}"
                    np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e), where)
                    # Which of them infinity becomes may hang on a rounding: ∞ − ∞, 0 · ∞.
                    agreed = np.isinf(a) & np.isinf(e) & (e == x)
                    np.testing.assert_array_equal(a[agreed], np.asarray(e)[agreed], where)


def with_entry(call: Call, name: str, place: int, value: float) -> Call:
    array = call.arrays[name].copy()
    array.reshape(-1)[place] = value
    return call.replaced({name: array})


def check_convolved(call: Call, actual: Any, expected: Any, large: Any, spreads: bool) -> None:
    """Check what a convolution makes of an entry that is not finite.

    ``large`` is what it makes of a large one: whatever depends on the entry. Nothing else
    should be touched, but zeros beyond the border are multiplied too by one algorithm or
    another, which makes NaN of an infinite weight, and Winograd's transforms have in all
    of a tile what is anywhere in it.
    """
    for a, e, dependent in zip(actual, expected, large, strict=True):
        if e is not None:
            assert not np.any(np.isfinite(a) & (np.abs(dependent) > 1e10)), call
            assert spreads or not np.any(np.isfinite(e) & ~np.isfinite(a)), call


@each_override
def test_complex_numbers_are_the_reference_s(override: Override) -> None:
    for call in calls(override.kernel, "float64", large=False):
        if call.kernel.endswith("_update") or "dtype" in call.arguments:
            continue  # what is written, or asked for, is real
        turned = call.map(lambda x: x * (1 + 1e-3j) if x.dtype.kind == "f" else x)
        for a, e in zip(override.results(turned), reference(turned), strict=True):
            assert (a is None) == (e is None)
            if e is not None and override.backend.array_type is np.ndarray:
                np.testing.assert_array_equal(a, e, str(call), strict=True)
            elif e is not None:  # the same reference, on a device that rounds its own way
                np.testing.assert_allclose(a, e, 1e-9, 1e-9, err_msg=str(call), strict=True)


def pair_cases() -> Iterator[tuple[str, PairCase]]:
    for name in BACKENDS:
        for case in all_cases():
            if {f"{case.pair}_forward", f"{case.pair}_backward"} & get_backend(name).kernels.keys():
                yield name, case


@pytest.mark.parametrize(("name", "case"), list(pair_cases()), ids=str)
def test_the_gradient_of_float32_is_right(name: str, case: PairCase) -> None:
    rng = case.generator(0)
    backend = get_backend(name)
    kernels = registered_kernels()
    inputs = Call(f"{case.pair}_forward", case.label, case.inputs(rng)).astype("float32")
    subject = from_pair(
        kernels[f"{case.pair}_forward"].call,
        kernels[f"{case.pair}_backward"].call,
        inputs.laid("C", backend.asarray).arguments,
        gradients=case.gradients,
        outputs=case.outputs,
        options=case.options,
        backward_only=case.backward_only,
        rng=rng,
    )
    with use_backend(name):
        check_grad(*subject, rng=rng).raise_if_failed()


@each_override
def test_a_mistake_comes_to_what_the_reference_makes_of_it(override: Override) -> None:
    check_mistakes(override, calls(override.kernel, large=False)[::4])


@pytest.mark.slow
@each_override
def test_any_mistake_comes_to_what_the_reference_makes_of_it(override: Override) -> None:
    check_mistakes(override, calls(override.kernel, large=False))


@each_override
def test_read_only_arrays_are_read_and_not_written(override: Override) -> None:
    if override.backend.array_type is not np.ndarray:
        pytest.skip("only arrays of NumPy can be read-only")
    for call in calls(override.kernel, large=False):
        moved = override.moved(call)
        for array in moved.arrays.values():
            array.flags.writeable = False
        if override.kernel.endswith("_update"):
            with pytest.raises(ValueError, match="read-only"):
                override.make(moved)
        else:
            expected = override.results(call)
            actual = list(map(override.to_numpy, override.make(moved)))
            assert in_bits(actual) == in_bits(expected), call


def step(name: str, backend: str, dtype: str, seed: int) -> dict[str, Any]:
    """Return what a training step of a network computes on a backend, as arrays of NumPy."""
    hyperparameters, shape = NETWORKS[name]
    network = models.create(name, **hyperparameters)
    rng = np.random.default_rng(seed)
    drawn = network.init(rng)
    x, labels = rng.standard_normal((6, *shape)).astype("float32"), rng.integers(5, size=6)
    chosen = get_backend(backend)
    params, state = (
        {key: chosen.asarray(value.astype(dtype) if value.dtype.kind == "f" else value)
         for key, value in group.items()}
        for group in drawn
    )  # fmt: skip
    x, labels = chosen.asarray(x.astype(dtype)), chosen.asarray(labels)
    with use_backend(backend):
        logits, cache = network.forward(params, state, x, train=True)
        _, log_q = softmax_cross_entropy_forward(logits, labels)
        dlogits = softmax_cross_entropy_backward(1.0, log_q, labels)
        dx, grads = network.backward(params, cache, dlogits)
        state = network.next_state(state, cache)
    found = {"logits": logits, "dx": dx, **grads, **state}
    return {key: np.asarray(chosen.to_numpy(value)) for key, value in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_is_nearly_as_accurate_as_on_the_reference(backend: str, name: str) -> None:
    factor = max([4.0, *get_backend(backend).error_factors.values()])
    wrong: dict[str, float] = {}
    for seed in (2, 1, 0):  # the exact values of the last are what is compared with
        exact, rough = (step(name, "numpy", dtype, seed) for dtype in ("float64", "float32"))
        for key, value in rough.items():
            wrong[key] = max(wrong.get(key, 0.0), error(value, exact[key]))
    actual = step(name, backend, "float32", 0)
    assert actual.keys() == exact.keys()
    largest = max(size(exact[key]) for key in exact)
    for key, value in actual.items():
        # Before batch norm the gradient of a bias is 0, and what is computed is rounding.
        floor = tolerance("float32", "pointwise") * largest
        assert error(value, exact[key]) <= factor * wrong[key] + floor, key
        assert (value.shape, value.dtype) == (rough[key].shape, rough[key].dtype), key
