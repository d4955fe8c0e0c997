"""Every kernel's reference runs on a device array and never leaves the device on its way."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import registered_kernels
from refkd.ops.special import erf
from refkd.testing.pairs import PairCase, all_cases, backward, forward
from tests.arch.fake_device import CUPY_METHODS, DeviceArray, HostTransfer, to_device, to_host

# The options of the updates, which are no pairs; their positional arguments have one shape.
UNPAIRED: dict[str, list[dict[str, Any]]] = {
    "sgd_update": [
        {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
        for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    ],
    "adam_update": [
        {
            **{"step": 3, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8},
            **{"weight_decay": 0.01, "decoupled": decoupled},
        }
        for decoupled in (False, True)
    ],
    "ema_update": [{"decay": 0.9}],
}
# The options of what reads stored images.
CONVERSIONS: list[dict[str, Any]] = [
    {"scale": 1 / 255, "mean": mean, "std": std}
    for mean, std in (((0.0,), (1.0,)), ((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (0.4, 1.0, 0.6)))
]
# The options of what keeps a batch norm's statistics; its positional arguments have one shape.
STATISTICS: list[dict[str, Any]] = [{"momentum": 0.1, "count": 7}, {"momentum": 1.0, "count": 2}]
# Parts of a backward, which every case of it runs.
PARTS = {"conv2d_backward_input", "conv2d_backward_weight"}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_a_pair_runs_on_the_device(case: PairCase, dtype: str) -> None:
    rng = np.random.default_rng(0)
    inputs = {name: cast(value, dtype) for name, value in case.inputs(rng).items()}
    outputs = forward(case, inputs)
    cotangent = cast(rng.standard_normal(np.shape(outputs[0])), dtype)
    gradients = backward(case, cotangent, inputs, outputs)

    device_inputs = to_device(inputs)
    device_outputs = forward(case, device_inputs)
    device_gradients = backward(case, to_device(cotangent), device_inputs, device_outputs)

    assert_on_device_and_equal(device_outputs, outputs)
    assert_on_device_and_equal(device_gradients, gradients)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.transpose], ids=["flat", "strided"])
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in UNPAIRED for options in UNPAIRED[name]]
)
def test_an_update_writes_on_the_device(
    name: str, options: dict[str, Any], layout: Callable[[Any], Any]
) -> None:
    kernel = registered_kernels()[name]
    parameters = inspect.signature(kernel.reference).parameters.values()
    count = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    # More entries than an update takes in one piece.
    before = np.random.default_rng(0).uniform(0.1, 1, size=(count, 300, 100))
    arrays = [layout(array) for array in before.copy()]
    device_arrays = to_device(arrays)

    kernel.reference(*arrays, **options)
    kernel.reference(*device_arrays, **options)

    assert not np.array_equal(arrays[0], layout(before[0]))
    assert_on_device_and_equal(tuple(device_arrays), tuple(arrays))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("stored", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("options", CONVERSIONS)
def test_stored_images_become_inputs_on_the_device(
    options: dict[str, Any], stored: str, dtype: str
) -> None:
    convert = registered_kernels()["pixels_to_float"].reference
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(stored)
    expected = convert(pixels, **options, dtype=dtype)
    assert expected.dtype == dtype
    assert_on_device_and_equal((convert(to_device(pixels), **options, dtype=dtype),), (expected,))


@pytest.mark.parametrize("options", STATISTICS)
def test_running_statistics_are_kept_on_the_device(options: dict[str, Any]) -> None:
    kernel = registered_kernels()["running_statistics"].reference
    arrays = np.random.default_rng(0).uniform(0.1, 1, (4, 5))
    given = [to_device(array) for array in arrays]
    assert_on_device_and_equal(kernel(*given, **options), kernel(*arrays, **options))


def test_every_kernel_runs_on_the_device() -> None:
    ran = {f"{case.pair}_{way}" for case in all_cases() for way in ("forward", "backward")}
    kernels = registered_kernels().values()
    expected = {k.reference.__name__ for k in kernels if k.reference.__module__[:6] == "refkd."}
    assert ran | UNPAIRED.keys() | PARTS | {"pixels_to_float", "running_statistics"} == expected


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf_runs_on_the_device(dtype: str) -> None:
    x = np.linspace(-7, 7, 29).astype(dtype)
    assert_on_device_and_equal((erf(to_device(x)),), (erf(x),))


def cast(value: Any, dtype: str) -> Any:
    is_floating = getattr(getattr(value, "dtype", None), "kind", "") == "f"
    return np.asarray(value, dtype) if is_floating or isinstance(value, float) else value


def assert_on_device_and_equal(given: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert len(given) == len(expected)
    for device_array, array in zip(given, expected, strict=True):
        if array is None:
            assert device_array is None
        else:
            assert type(device_array) is DeviceArray
            np.testing.assert_array_equal(to_host(device_array), array, strict=True)


X = np.arange(1.0, 7.0).reshape(2, 3)


@pytest.mark.parametrize(
    "leave",
    [
        np.asarray,
        lambda x: np.ones(3) * x,
        lambda x: x + np.ones(3),
        lambda x: x[np.array([0])],
        lambda x: x.__array_namespace__().stack([x, np.ones((2, 3))]),
        lambda x: x.__array_namespace__().sqrt(2.0),
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: math.exp(x.mean()),
        lambda x: x.max().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: max(x.sum(), x.mean()),
        list,
        lambda x: 1.0 in x,
        lambda x: range(x.argmax()),
    ],
)
def test_a_silent_transfer_is_refused(leave: Callable[[Any], Any]) -> None:
    with pytest.raises(HostTransfer):
        leave(to_device(X))


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.__array_namespace__().errstate,
        lambda x: x.__array_namespace__().lib.array_utils,
        lambda x: x.var(),
        lambda x: x.conj(),
    ],
)
def test_what_kernels_may_not_use_is_not_there(use: Callable[[Any], Any]) -> None:
    with pytest.raises(AttributeError, match="see CUPY_"):
        use(to_device(X))


@pytest.mark.parametrize("options", [{"where": True}, {"initial": 0.0}])
def test_options_that_cupy_lacks_are_refused(options: dict[str, Any]) -> None:
    x = to_device(X)
    with pytest.raises(TypeError, match="CuPy takes no"):
        x.max(**options)
    with pytest.raises(TypeError, match="CuPy takes no"):
        x.__array_namespace__().max(x, **options)
    with pytest.raises(TypeError, match="__array_ufunc__"):
        np.exp(x)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, xp: np.float64(2) * x - 1 / x + (-x) ** 2 % 3 // 2,
        lambda x, xp: (x @ x.T).real[..., None, 1:].sum(axis=0, keepdims=True),
        lambda x, xp: xp.where((x > 2) & ~(x == 5), 0, x).astype(xp.float32),
        lambda x, xp: xp.concatenate([x, xp.zeros((1, 3))], axis=0).mean(),
        lambda x, xp: xp.lib.stride_tricks.as_strided(x, (2, 2), x.strides),
        lambda x, xp: x.reshape(-1)[xp.argsort(-x.reshape(-1))].cumsum(),
    ],
)
def test_a_device_array_computes_what_numpy_computes(compute: Callable[[Any, Any], Any]) -> None:
    device = to_device(X)
    result = compute(device, device.__array_namespace__())
    assert_on_device_and_equal((result,), (compute(X, np),))


def test_writing_in_place_reaches_a_view_and_not_the_original() -> None:
    host, device = X.copy(), to_device(X)
    for x, xp in ((host, np), (device, device.__array_namespace__())):
        view = x[1:]
        view += 1
        view[:, x[0] > 1.5] = 0.0
        xp.add.at(x, ([0, 0], [1, 1]), 1.0)
    assert_on_device_and_equal((device,), (host,))
    assert not np.array_equal(host, X)


@pytest.mark.parametrize("name", sorted(CUPY_METHODS))
def test_the_listed_methods_exist_in_numpy(name: str) -> None:
    assert callable(getattr(np.ndarray, name))
