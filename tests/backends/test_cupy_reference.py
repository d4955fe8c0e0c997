"""The reference kernels on CuPy arrays, unchanged: on a machine with a GPU, else skipped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refkd import models
from refkd.dispatch import registered_kernels
from refkd.losses import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from refkd.ops import conv2d_backward, conv2d_forward
from refkd.testing import check_grad
from refkd.testing.pairs import PairCase, all_cases, backward, forward
from refkd.testing.tolerances import tolerance
from tests.arch.test_device import CONVERSIONS, UNPAIRED
from tests.backends.networks import NETWORKS

cupy = pytest.importorskip("cupy", reason="the device part needs CuPy")


@pytest.fixture(scope="module", autouse=True)
def device() -> None:
    try:
        cupy.arange(3).sum().get()
    except Exception as error:  # whatever a missing driver raises
        pytest.skip(f"the device part needs a GPU ({type(error).__name__}: {error})")


def to_device(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_device, value))
    if isinstance(value, Mapping):
        return {name: to_device(v) for name, v in value.items()}
    return value


def cast(value: Any, dtype: str) -> Any:
    floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if floating else value


def assert_near(actual: Any, expected: Any, dtype: str, scale: float = 0.0) -> None:
    """Check one array; errors are relative to its largest entry, or ``scale`` if that is larger."""
    if expected is None:
        assert actual is None
        return
    assert isinstance(actual, cupy.ndarray)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(cupy.asnumpy(actual), expected)
        return
    scale = max(scale, np.abs(expected).max(initial=0))
    error = np.abs(cupy.asnumpy(actual) - expected).max(initial=0)
    assert error <= tolerance(dtype, "product") * scale


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_a_pair_gives_on_the_device_what_it_gives_on_the_host(case: PairCase, dtype: str) -> None:
    rng = case.generator(0)
    inputs = {name: cast(value, dtype) for name, value in case.inputs(rng).items()}
    outputs = forward(case, inputs)
    cotangent = cast(np.asarray(rng.standard_normal(np.shape(outputs[0]))), dtype)
    gradients = backward(case, cotangent, inputs, outputs)
    on_device = to_device(inputs)
    device_outputs = forward(case, on_device)
    for actual, expected in zip(device_outputs, outputs, strict=True):
        assert_near(actual, np.asarray(expected), dtype)
    device_gradients = backward(case, cupy.asarray(cotangent), on_device, device_outputs)
    for actual, expected in zip(device_gradients, gradients, strict=True):
        assert_near(actual, expected, dtype)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in UNPAIRED for options in UNPAIRED[name]]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_update_writes_on_the_device(name: str, options: dict[str, Any], dtype: str) -> None:
    kernel = registered_kernels()[name]
    parameters = inspect.signature(kernel.reference).parameters.values()
    count = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    before = np.random.default_rng(0).uniform(0.1, 1, size=(count, 300, 100)).astype(dtype)
    arrays = list(before.copy())
    on_device = [cupy.asarray(array) for array in before]
    kernel.call(*arrays, **options)
    kernel.call(*on_device, **options)
    assert not np.array_equal(arrays[0], before[0])
    for actual, expected in zip(on_device, arrays, strict=True):
        assert_near(actual, expected, dtype)


@pytest.mark.parametrize("options", CONVERSIONS)
@pytest.mark.parametrize("stored", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_stored_images_become_inputs_on_the_device(
    options: dict[str, Any], stored: str, dtype: str
) -> None:
    convert = registered_kernels()["pixels_to_float"].call
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(stored)
    expected = convert(pixels, **options, dtype=dtype)
    assert_near(convert(cupy.asarray(pixels), **options, dtype=dtype), expected, dtype)


def test_check_grad_takes_cupy_arrays() -> None:
    rng = np.random.default_rng(0)
    x, weight = (cupy.asarray(rng.standard_normal(s)) for s in ((2, 3, 5, 5), (4, 3, 3, 3)))
    dy = cupy.asarray(rng.standard_normal((2, 4, 5, 5)))

    def loss(x: Any, weight: Any) -> Any:
        return (dy * conv2d_forward(x, weight, None, padding=1)).sum()

    def gradient(x: Any, weight: Any) -> dict[str, Any]:
        dx, dweight, _ = conv2d_backward(dy, x, weight, padding=1)
        return {"x": dx, "weight": dweight}

    check_grad(loss, {"x": x, "weight": weight}, grad=gradient).raise_if_failed()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_on_the_device_what_it_gives_on_the_host(name: str, train: bool) -> None:
    hyperparameters, shape = NETWORKS[name]
    network = models.create(name, **hyperparameters)
    rng = np.random.default_rng(0)
    params, state = network.init(rng, dtype=np.float64)
    x, labels = rng.standard_normal((4, *shape)), rng.integers(5, size=4)

    def step(params: Any, state: Any, x: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
        logits, cache = network.forward(params, state, x, train=train)
        _, log_q = softmax_cross_entropy_forward(logits, labels)
        dlogits = softmax_cross_entropy_backward(1.0, log_q, labels)
        dx, grads = network.backward(params, cache, dlogits)
        return logits, dx, grads, network.next_state(state, cache)

    expected = step(params, state, x, labels)
    actual = step(*map(to_device, (params, state, x, labels)))
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert_near(a, e, "float64")
    for group, wanted in zip(actual[2:], expected[2:], strict=True):
        assert group.keys() == wanted.keys()
        # Before batch norm the gradient of a bias is 0, and what is computed is rounding.
        scale = max(np.abs(array).max() for array in wanted.values()) if wanted else 0.0
        for key, array in wanted.items():
            assert_near(group[key], array, "float64", scale)
