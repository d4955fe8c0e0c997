"""The Numba backend's pointwise kernels, softmax, losses, updates and conversions, on drawn arrays.

All kernels of all backends are held against the reference on the cases of refkd.testing
elsewhere. Here are the values that make these kernels hard: of any size and sign, not
finite, in any layout; rows and batches about the lengths at which loops, blocks and
threads split; and all options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refkd.dispatch import (
    available_backends,
    get_backend,
    registered_kernels,
    use_backend,
)
from refkd.testing.layouts import LAYOUTS
from refkd.testing.strategies import VALUES
from refkd.testing.tolerances import tolerance
from tests.ops.pool_geometries import channels_last

if available_backends().get("numba"):
    pytest.skip(str(available_backends()["numba"]), allow_module_level=True)

Array = Any
KERNELS = registered_kernels()

SPECIAL = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-39, 1e4, -1e4, 3e38, np.inf, -np.inf, np.nan]
RELAID: dict[str, Callable[[Array], Array]] = {
    "C": np.copy,
    "channels last": lambda x: channels_last(x) if x.ndim == 4 else x,
    **{name: relay for name, relay in LAYOUTS.items() if name != "read-only"},  # see below
}
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = array_shapes(max_dims=4, max_side=5) | st.sampled_from([(), (1030,), (3, 700), (9, 3, 8)])
# Rows about the length of a vector, of what a sum adds in float32, and of a block.
LOGITS = st.sampled_from(
    [(5,), (4, 1), (3, 2), (32, 10), (300, 10), (3, 33), (2, 511), (2, 513), (2, 2049), (2, 3, 7)]
)
LAYOUT = st.sampled_from(sorted(RELAID))
VALUE = st.sampled_from([*VALUES, "special"])
LOGIT = st.sampled_from(
    ["normal", "ties", "equal", "zeros", "subnormal", "large", "far", "special"]
)
TEMPERATURE = st.sampled_from([1.0, 0.25, 4, 1e-3, np.float64(20), np.float32(3)])
REDUCTION = st.sampled_from(["batchmean", "mean", "sum", "none"])
examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw(shape: tuple[int, ...], values: str, layout: str, seed: int) -> Array:
    """Return a float32 array of one kind of values in one layout."""
    rng = np.random.default_rng(seed)
    if values == "special":
        x = rng.choice(SPECIAL, shape)
    elif values == "far":  # from 0, and near each other
        x = rng.choice([-1e4, 3e4]) + rng.standard_normal(shape)
    else:
        x = VALUES[values](rng, shape, np.dtype(np.float32))
    return RELAID[layout](np.asarray(x, np.float32))


def run(kernel: str, *arguments: Any, **options: Any) -> tuple[Any, Any, Any]:
    """Return what the backend, the reference and the reference in float64 make of a call."""
    wide = [a.astype(np.float64) if getattr(a, "dtype", 0) == np.float32 else a for a in arguments]
    with np.errstate(all="ignore"):
        with use_backend("numba", strict=True):
            own = KERNELS[kernel].call(*arguments, **options)
        rough = KERNELS[kernel].reference(*arguments, **options)
        exact = KERNELS[kernel].reference(*wide, **options)
    return own, rough, exact


def largest(*arrays: Any) -> float:
    """Return the largest finite magnitude."""
    return max(float(np.max(np.abs(a), where=np.isfinite(a), initial=0.0)) for a in arrays)


def error(x: Array, exact: Array) -> float:
    both = np.isfinite(x) & np.isfinite(exact)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.subtract(x, exact, dtype=np.float64))
    return float(np.max(gaps, where=both, initial=0.0))


def assert_as_accurate(own: Any, rough: Any, exact: Any, scale: float = 0.0) -> None:
    """Check shapes, dtypes, what is not finite, and errors of at most 4 times the reference's.

    ``scale`` is the size of what cancels: a few roundings of it are no error, however
    exact the reference happened to be.
    """
    results = zip(*(r if isinstance(r, tuple) else (r,) for r in (own, rough, exact)), strict=True)
    for a, r, e in results:
        assert (a is None) == (r is None)
        if a is None:
            continue
        assert (np.shape(a), a.dtype) == (np.shape(r), r.dtype)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(r))
        infinite = np.isinf(r)
        np.testing.assert_array_equal(np.isinf(a), infinite)
        np.testing.assert_array_equal(a[infinite], r[infinite])
        floor = tolerance("float32", "pointwise") * max(scale, largest(e)) + 2.0**-149
        assert error(a, e) <= 4 * error(r, e) + floor


FORWARDS = ["relu", "sigmoid", "tanh", "silu", "gelu"]
FORM = st.sampled_from(["none", "tanh"])


@pytest.mark.parametrize("name", FORWARDS)
@given(SHAPES, VALUE, LAYOUT, FORM, SEEDS)
@examples
def test_activations(
    name: str, shape: tuple[int, ...], values: str, layout: str, form: str, seed: int
) -> None:
    options = {"approximate": form} if name == "gelu" else {}
    x = draw(shape, values, layout, seed)
    assert_as_accurate(*run(f"{name}_forward", x, **options))


@pytest.mark.parametrize("name", FORWARDS)
@given(SHAPES, VALUE, LAYOUT, VALUE, LAYOUT, FORM, SEEDS)
@examples
def test_slopes_of_activations(
    name: str,
    shape: tuple[int, ...],
    values: str,
    layout: str,
    cotangents: str,
    other_layout: str,
    form: str,
    seed: int,
) -> None:
    options = {"approximate": form} if name == "gelu" else {}
    x, dy = draw(shape, values, layout, seed), draw(shape, cotangents, other_layout, seed + 1)
    if name in ("sigmoid", "tanh"):
        with np.errstate(all="ignore"):
            x = np.asarray(KERNELS[f"{name}_forward"].reference(x))
    assert_as_accurate(*run(f"{name}_backward", dy, x, **options), scale=largest(dy))


@pytest.mark.parametrize("name", FORWARDS)
def test_activations_of_all_pairs_of_special_numbers(name: str) -> None:
    x, dy = np.array(np.meshgrid(SPECIAL, SPECIAL), np.float32)
    for form in ("none", "tanh") if name == "gelu" else (None,):
        options = {"approximate": form} if form else {}
        own, rough, exact = run(f"{name}_forward", x, **options)
        assert_as_accurate(own, rough, exact)
        y = rough if name in ("sigmoid", "tanh") else x
        assert_as_accurate(*run(f"{name}_backward", dy, y, **options))


@given(SHAPES, VALUE, LAYOUT, LAYOUT, st.sampled_from([0, 0.3, 0.5, 1 - 1e-9, 1, 1.0]), SEEDS)
@examples
def test_dropout(
    shape: tuple[int, ...], values: str, layout: str, other_layout: str, p: float, seed: int
) -> None:
    x = draw(shape, values, layout, seed)
    mask = RELAID[other_layout](np.asarray(np.random.default_rng(seed).random(shape) >= 0.5))
    for kernel in ("dropout_forward", "dropout_backward"):
        own, rough, _ = run(kernel, x, mask, p=p)
        np.testing.assert_array_equal(own, rough)
        np.testing.assert_array_equal(np.signbit(own), np.signbit(rough))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(LOGITS, LOGIT, LAYOUT, LAYOUT, TEMPERATURE, st.data(), SEEDS)
@examples
def test_softmax(
    name: str,
    shape: tuple[int, ...],
    values: str,
    layout: str,
    other_layout: str,
    temperature: float,
    data: st.DataObject,
    seed: int,
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1), "axis")
    options = {"axis": axis, "temperature": temperature}
    x, dy = draw(shape, values, layout, seed), draw(shape, "normal", other_layout, seed + 1)
    own, rough, exact = run(f"{name}_forward", x, **options)
    assert_as_accurate(own, rough, exact, largest(x) / float(temperature) * (name != "softmax"))
    backward = run(f"{name}_backward", dy, rough, **options)
    assert_as_accurate(*backward, largest(dy) / float(temperature))


def labels_of(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).integers(shape[-1], size=shape[:-1])).astype(
        dtype if shape[-1] <= 127 else "int64"
    )


LABELS = st.sampled_from(["int8", "uint8", "int32", "int64", "uint64", ">i4"])
SMOOTHING = st.sampled_from([0, 0.0, 0.1, 1.0])


@given(
    LOGITS,
    LOGIT,
    LAYOUT,
    LABELS,
    st.sampled_from(["uniform", "others"]),
    SMOOTHING,
    st.sampled_from(["mean", "sum", "none"]),
    SEEDS,
)
@examples
def test_cross_entropy_of_labels(
    shape: tuple[int, ...],
    values: str,
    layout: str,
    dtype: str,
    smoothing: str,
    label_smoothing: float,
    reduction: str,
    seed: int,
) -> None:
    if shape[-1] == 1:
        label_smoothing = 0.0
    options = {
        "label_smoothing": label_smoothing,
        "smoothing": smoothing,
        "reduction": reduction,
    }
    x, labels = draw(shape, values, layout, seed), labels_of(shape, dtype, seed)
    check_cross_entropy(x, labels, options, seed)


@given(LOGITS, LOGIT, LAYOUT, LAYOUT, st.sampled_from(["mean", "sum", "none"]), SEEDS)
@examples
def test_cross_entropy_of_distributions(
    shape: tuple[int, ...], values: str, layout: str, other_layout: str, reduction: str, seed: int
) -> None:
    targets = np.abs(draw(shape, "normal", "C", seed + 2))
    targets /= targets.sum(axis=-1, keepdims=True)
    x = draw(shape, values, layout, seed)
    check_cross_entropy(x, RELAID[other_layout](targets), {"reduction": reduction}, seed)


def check_cross_entropy(x: Array, targets: Array, options: dict[str, Any], seed: int) -> None:
    own, rough, exact = run("softmax_cross_entropy_forward", x, targets, **options)
    assert_as_accurate(own, rough, exact, largest(x))
    dloss = cotangent(rough[0], options["reduction"], seed)
    backward = run("softmax_cross_entropy_backward", dloss, rough[1], targets, **options)
    assert_as_accurate(*backward, scale=largest(dloss))


def cotangent(loss: Any, reduction: str, seed: int) -> Any:
    """Draw a cotangent of a loss: an array where nothing is reduced, else any kind of number."""
    rng = np.random.default_rng(seed)
    if reduction == "none":
        return np.asarray(rng.standard_normal(np.shape(loss)), np.float32)
    kinds = (float, np.float32, np.float64, lambda x: np.asarray(x, np.float32))
    return kinds[seed % 4](rng.standard_normal())


@given(
    LOGITS.filter(lambda shape: len(shape) == 2),
    LOGIT,
    LOGIT,
    LAYOUT,
    LAYOUT,
    LABELS | st.none(),
    TEMPERATURE,
    st.sampled_from(["batchmean", "mean", "sum"]),
    st.sampled_from([0, 0.3, np.float64(0.5)]),
    SEEDS,
)
@examples
def test_distillation(
    shape: tuple[int, ...],
    values: str,
    teacher_values: str,
    layout: str,
    other_layout: str,
    dtype: str | None,
    temperature: float,
    reduction: str,
    hard_weight: float,
    seed: int,
) -> None:
    options = {
        "temperature": temperature,
        "hard_weight": 0.0 if dtype is None else hard_weight,
        "soft_weight": 0.7 * float(temperature) ** 2,
        "reduction": reduction,
    }
    z, v = draw(shape, values, layout, seed), draw(shape, teacher_values, other_layout, seed + 1)
    labels = None if dtype is None else labels_of(shape, dtype, seed)
    own, rough, exact = run("softmax_kd_forward", z, v, labels, **options)
    size = largest(z, v)
    # The loss is the sum of both terms with their weights, the soft one times its count.
    count = shape[0] if reduction == "sum" else 1
    assert_as_accurate(
        own[:3], rough[:3], exact[:3], size * count * max(1, 0.7 * float(temperature))
    )
    assert_as_accurate(own[3:], rough[3:], exact[3:])
    dloss = cotangent(rough[0], reduction, seed)
    backward = run("softmax_kd_backward", dloss, *rough[3:], labels, **options)
    assert_as_accurate(*backward, scale=largest(dloss) * max(0.3, 0.7 * float(temperature)))


@pytest.mark.parametrize("name", ["softmax_kl", "softmax_kl_without_log"])
@given(LOGITS, LOGIT, LOGIT, LAYOUT, LAYOUT, TEMPERATURE, REDUCTION, st.data(), SEEDS)
@examples
def test_divergences(
    name: str,
    shape: tuple[int, ...],
    values: str,
    other_values: str,
    layout: str,
    other_layout: str,
    temperature: float,
    reduction: str,
    data: st.DataObject,
    seed: int,
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "reduction": reduction}
    a, b = draw(shape, values, layout, seed), draw(shape, other_values, other_layout, seed + 1)
    own, rough, exact = run(f"{name}_forward", a, b, **options)
    size = largest(a, b) / float(temperature)
    assert_as_accurate(own, rough, exact, max(size, 1) * (shape[0] if reduction == "sum" else 1))
    dloss = cotangent(rough[0], reduction, seed)
    if name == "softmax_kl":
        needs = data.draw(st.tuples(st.booleans(), st.booleans()), "needs")
        options |= dict(zip(("need_dp", "need_dq"), needs, strict=True))
    backward = run(f"{name}_backward", dloss, *rough[1:], **options)
    assert_as_accurate(*backward, scale=largest(dloss) * max(size, 1) / float(temperature))


@pytest.mark.parametrize("values", ["far", "special"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_cross_entropy", "softmax_kl"])
def test_many_rows_that_are_far_from_0_or_hold_what_is_not_finite(name: str, values: str) -> None:
    x = draw((400, 12), values, "C", seed=0)
    if values == "special":
        x[np.random.default_rng(1).random(x.shape) < 0.7] = 0.5
    others = {"softmax_cross_entropy": [labels_of(x.shape, "int64", 0)], "softmax_kl": [x[::-1]]}
    options: dict[str, Any] = {"reduction": "none"} if name in others else {}
    if name != "softmax_cross_entropy":
        options["temperature"] = 3.0
    own, rough, exact = run(f"{name}_forward", x, *others.get(name, []), **options)
    scale = 0.0 if name == "softmax" or values == "special" else 10.0
    assert_as_accurate(own, rough, exact, scale)


@pytest.mark.parametrize("name", ["mse", "huber"])
@given(SHAPES, VALUE, LAYOUT, LAYOUT, st.sampled_from(["mean", "sum"]), SEEDS)
@examples
def test_differences(
    name: str,
    shape: tuple[int, ...],
    values: str,
    layout: str,
    other: str,
    reduction: str,
    seed: int,
) -> None:
    options: dict[str, Any] = {"reduction": reduction}
    if name == "huber":
        options["delta"] = (1.0, 0.3, 2, np.float32(1e4))[seed % 4]
    x, y = draw(shape, values, layout, seed), draw(shape, values, other, seed + 1)
    own, rough, exact = run(f"{name}_forward", x, y, **options)
    assert_as_accurate(own, rough, exact)
    dloss = cotangent(rough, reduction, seed)
    assert_as_accurate(*run(f"{name}_backward", dloss, x, y, **options))


@pytest.mark.parametrize("labels", [[0, 4], [-1, 3], [0, -3], [127, 0]])
def test_labels_that_are_no_class_come_to_what_they_come_to_in_the_reference(
    labels: list[int],
) -> None:
    x = draw((2, 3), "normal", "C", seed=0)
    given = np.array(labels, np.int8)
    with use_backend("numba"):
        for smoothing in ("uniform", "others"):
            options = {"label_smoothing": 0.1, "smoothing": smoothing, "reduction": "none"}
            for direction, arguments in (("forward", ()), ("backward", (x[:, 0].copy(),))):
                own, rough, exact = run(
                    f"softmax_cross_entropy_{direction}", *arguments, x, given, **options
                )
                assert_as_accurate(own, rough, exact, scale=1.0)
        call, reference = (
            KERNELS["softmax_kd_forward"].call,
            KERNELS["softmax_kd_forward"].reference,
        )
        weights = {"temperature": 2.0, "hard_weight": 1.0, "soft_weight": 1.0}
        try:
            expected = reference(x, x, given, **weights)
        except IndexError:
            with pytest.raises(IndexError):
                call(x, x, given, **weights)
        else:
            assert call(x, x, given, **weights)[0] == expected[0]


UPDATES: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "adam_update": (
        4,
        [
            {"step": 1, "weight_decay": 0.0, "decoupled": False},
            {"step": 7, "weight_decay": 0.1, "decoupled": False},
            {"step": 7, "weight_decay": 0.1, "decoupled": True},
            {"step": np.int64(10_000), "weight_decay": 0, "decoupled": True},
        ],
    ),
    "sgd_update": (
        3,
        [
            {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
            {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-2},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0},
            {"momentum": 0, "nesterov": False, "weight_decay": np.float64(0.1)},
        ],
    ),
    "ema_update": (2, [{"decay": 0.999}, {"decay": 0}, {"decay": 1}]),
}


def update_options(kernel: str, choice: int) -> dict[str, Any]:
    options = UPDATES[kernel][1]
    rates: dict[str, Any] = {} if kernel == "ema_update" else {"lr": 1e-2}
    if kernel == "adam_update":
        rates |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    return rates | options[choice % len(options)]


def update_arrays(
    kernel: str, shape: tuple[int, ...], values: str, layout: str, dtype: str, seed: int
) -> list[Array]:
    drawn = [draw(shape, values, "C", seed + i) for i in range(UPDATES[kernel][0])]
    if kernel == "adam_update":
        drawn[3] = np.asarray(np.abs(drawn[3]))  # the second moment
    return [RELAID[layout](x.astype(dtype)) for x in drawn]


@pytest.mark.parametrize("kernel", UPDATES)
@given(
    SHAPES,
    VALUE,
    st.sampled_from(["C", "channels last", "transposed"]),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 3),
    SEEDS,
)
@examples
def test_updates_write_what_the_reference_writes(
    kernel: str,
    shape: tuple[int, ...],
    values: str,
    layout: str,
    dtype: str,
    choice: int,
    seed: int,
) -> None:
    options = update_options(kernel, choice)
    own = update_arrays(kernel, shape, values, layout, dtype, seed)
    rough, before = [x.copy() for x in own], [x.copy() for x in own]
    exact = [x.astype(np.float64) for x in own]
    with np.errstate(all="ignore"):
        with use_backend("numba", strict=True):
            assert KERNELS[kernel].call(*own, **options) is None
        KERNELS[kernel].reference(*rough, **options)
        KERNELS[kernel].reference(*exact, **options)
    scale = largest(*before) * max(1.0, largest(before[1])) if values != "near-overflow" else 0.0
    if dtype == "float32":
        assert_as_accurate(tuple(own), tuple(rough), tuple(exact), scale)
    else:
        for a, e in zip(own, exact, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-14 * max(scale, largest(e)))
    np.testing.assert_array_equal(own[1], before[1])


@pytest.mark.parametrize("kernel", UPDATES)
@pytest.mark.parametrize("layout", ["reversed", "strided"])
def test_updates_of_arrays_with_gaps_are_in_place_too(kernel: str, layout: str) -> None:
    own = update_arrays(kernel, (6, 5), "normal", layout, "float32", seed=3)
    expected = [x.copy() for x in own]
    options = update_options(kernel, 1)
    with use_backend("numba"):
        KERNELS[kernel].call(*own, **options)
    KERNELS[kernel].reference(*expected, **options)
    for a, e in zip(own, expected, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("kernel", UPDATES)
def test_updates_of_parts_of_an_array_leave_the_rest(kernel: str) -> None:
    own = [np.pad(x, 5) for x in update_arrays(kernel, (200_003,), "normal", "C", "float32", 0)]
    before = [x.copy() for x in own]
    with use_backend("numba", strict=True):
        KERNELS[kernel].call(*(x[5:-5] for x in own), **update_options(kernel, 1))
    for a, b in zip(own, before, strict=True):
        np.testing.assert_array_equal(a[:5], b[:5])
        np.testing.assert_array_equal(a[-5:], b[-5:])
    assert (own[0][5:-5] != before[0][5:-5]).mean() > 0.9


@given(
    array_shapes(min_dims=1, max_dims=4, max_side=6)
    | st.sampled_from([(2, 3, 20, 15), (3, 700), (2, 5, 1), (70_000,)]),
    st.sampled_from(["uint8", "float32"]),
    LAYOUT,
    st.sampled_from([1 / 255, 1.0, 1e-40, 3e38]),
    st.data(),
    SEEDS,
)
@examples
def test_pixels_are_those_of_the_reference_bit_for_bit(
    shape: tuple[int, ...], stored: str, layout: str, scale: float, data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = shape[1] if len(shape) > 1 else 1
    count = st.sampled_from([1, channels])
    mean = tuple(rng.choice([0.0, 0.4, -3.0], data.draw(count, "means")).tolist())
    std = tuple(rng.choice([1.0, 0.25, -3.1], data.draw(count, "deviations")).tolist())
    if stored == "uint8":
        pixels = RELAID[layout](rng.integers(0, 256, shape).astype(np.uint8))
    else:
        pixels = draw(shape, "special", layout, seed)
    dtype = (np.float32, "float32", np.dtype(np.float32))[seed % 3]
    own, rough, _ = run("pixels_to_float", pixels, scale=scale, mean=mean, std=std, dtype=dtype)
    assert own.dtype == np.float32
    own, rough = np.ascontiguousarray(own), np.ascontiguousarray(rough)
    same = (own.view(np.uint32) == rough.view(np.uint32)) | (np.isnan(own) & np.isnan(rough))
    assert same.all()


def large_calls() -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return calls of all kernels that are worth several threads, whose parts are not equal."""
    x, y, z = (draw((7, 31_013), "normal", "C", seed) for seed in range(3))
    logits, teacher = draw((1009, 131), "large", "C", 3) / 100, draw((1009, 131), "normal", "C", 4)
    labels, mask = labels_of(logits.shape, "int64", 5) % 131, x > 0
    with np.errstate(all="ignore"):
        q, log_q = (KERNELS[f"{n}_forward"].reference(logits) for n in ("softmax", "log_softmax"))
        t = KERNELS["softmax_forward"].reference(teacher)
    kd = {"temperature": 4.0, "hard_weight": 0.5, "soft_weight": 8.0}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "softmax_cross_entropy_forward": ((logits, labels), {"label_smoothing": 0.1}),
        "softmax_cross_entropy_backward": ((1.0, log_q, labels), {"label_smoothing": 0.1}),
        "softmax_kd_forward": ((logits, teacher, labels), kd),
        "softmax_kd_backward": ((1.0, q, q, t, labels), kd),
        "softmax_kl_forward": ((logits, teacher), {}),
        "softmax_kl_backward": ((1.0, log_q, np.log(t)), {}),
        "softmax_kl_without_log_forward": ((logits, teacher), {}),
        "softmax_kl_without_log_backward": ((1.0, q, t), {}),
        "softmax_forward": ((logits,), {}),
        "softmax_backward": ((teacher, q), {}),
        "log_softmax_forward": ((logits,), {}),
        "log_softmax_backward": ((teacher, log_q), {}),
        "dropout_forward": ((x, mask), {"p": 0.5}),
        "dropout_backward": ((x, mask), {"p": 0.5}),
        "pixels_to_float": (
            ((x[:, :31_000] * 9).reshape(7, 31, 1000).astype(np.uint8),),
            {"scale": 0.1, "mean": (0.5,) * 31, "std": (2.0,), "dtype": np.float32},
        ),
    }
    for name in FORWARDS:
        calls[f"{name}_forward"], calls[f"{name}_backward"] = ((x,), {}), ((x, y), {})
    for name in ("mse", "huber"):
        calls[f"{name}_forward"], calls[f"{name}_backward"] = ((x, y), {}), ((1.0, x, y), {})
    for name, (count, _) in UPDATES.items():
        calls[name] = ((x, y, z, np.abs(z))[:count], update_options(name, 1))
    calls_by_words = {name: (name, *call) for name, call in calls.items()}
    for name in ("gelu_forward", "gelu_backward"):
        calls_by_words[f"{name}, tanh"] = (name, calls[name][0], {"approximate": "tanh"})
    return calls_by_words


def test_every_kernel_of_these_modules_has_a_large_call() -> None:
    own = {
        name
        for name, function in get_backend("numba").kernels.items()
        if function.__module__.rpartition(".")[2]
        in ("activation", "cross_entropy", "dropout", "kd", "kl", "pixels", "regression",
            "softmax", "update")
    }  # fmt: skip
    assert own == {name for name, _, _ in large_calls().values()}


@pytest.mark.parametrize("words", large_calls())
def test_however_many_threads_give_the_same_bits(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, arguments, options = large_calls()[words]
    bits = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("refkd_numba.team.worker_threads", lambda threads=threads: threads)
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        with use_backend("numba", strict=True):
            results = KERNELS[kernel].call(*copies, **options)
        results = copies if results is None else results
        results = results if isinstance(results, (tuple, list)) else [results]
        bits.append([None if r is None else np.asarray(r).tobytes() for r in results])
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.parametrize("words", large_calls())
def test_large_calls_are_as_accurate(words: str) -> None:
    kernel, arguments, options = large_calls()[words]
    if kernel == "pixels_to_float":
        own, rough, _ = run(kernel, *arguments, **options)
        np.testing.assert_array_equal(own, rough)
        return
    if kernel in UPDATES:
        triple = [[a.copy() for a in arguments] for _ in range(2)]
        triple.append([a.astype(np.float64) for a in arguments])
        with use_backend("numba", strict=True):
            KERNELS[kernel].call(*triple[0], **options)
        for arrays in triple[1:]:
            KERNELS[kernel].reference(*arrays, **options)
        assert_as_accurate(*map(tuple, triple))
        return
    assert_as_accurate(*run(kernel, *arguments, **options))


@pytest.fixture
def counts() -> Iterator[Callable[[], tuple[int, int]]]:
    """What tells how many pieces of memory and arrays in it Numba holds at a time."""
    memory = importlib.import_module("numba.core.runtime._nrt_python")
    memory.memsys_enable_stats()

    def held() -> tuple[int, int]:
        stats = importlib.import_module("numba.core.runtime").rtsys.get_allocation_stats()
        return stats.alloc - stats.free, stats.mi_alloc - stats.mi_free

    yield held
    memory.memsys_disable_stats()


@pytest.mark.parametrize("words", large_calls())
def test_references_to_memory_are_given_back_once(
    words: str, counts: Callable[[], tuple[int, int]]
) -> None:
    kernel, arguments, options = large_calls()[words]
    with use_backend("numba", strict=True):
        KERNELS[kernel].call(*arguments, **options)
        before = counts(), [sys.getrefcount(argument) for argument in arguments]
        for _ in range(3):
            KERNELS[kernel].call(*arguments, **options)
        after = counts(), [sys.getrefcount(argument) for argument in arguments]
    assert after == before


@pytest.mark.parametrize("kernel", ["relu_forward", "softmax_forward", "log_softmax_forward"])
def test_arrays_at_any_address(kernel: str) -> None:
    memory = np.zeros(4 * 60 + 1, np.uint8)
    x = memory[1:].view(np.float32).reshape(6, 10)
    x[...] = draw((6, 10), "normal", "C", seed=0)
    assert not x.flags.aligned
    with use_backend("numba", strict=True):
        np.testing.assert_array_equal(KERNELS[kernel].call(x), KERNELS[kernel].call(x.copy()))


@pytest.mark.parametrize("dtype", ["complex128", "float64", "float16", ">f4"])
@pytest.mark.parametrize("kernel", ["relu_forward", "softmax_forward", "log_softmax_forward"])
def test_other_dtypes_are_left_to_the_reference(kernel: str, dtype: str) -> None:
    override = get_backend("numba").kernels[kernel]
    assert override(np.ones((2, 3), dtype)) is NotImplemented


@pytest.mark.parametrize("kind", [float, int, np.float16, np.float64, np.longdouble, np.int8])
def test_a_temperature_is_any_real_number(kind: Any) -> None:
    x, labels = draw((3, 4), "normal", "C", seed=0), np.array([0, 1, 3])
    options = {"hard_weight": 0.5, "soft_weight": 0.5}
    for name, arguments, more in (
        ("softmax_forward", (x,), {}),
        ("softmax_kl_forward", (x, x[::-1].copy()), {}),
        ("softmax_kd_forward", (x, x[::-1].copy(), labels), options),
    ):
        call = KERNELS[name].call
        with use_backend("numba", strict=True):
            actual = call(*arguments, temperature=kind(2), **more)
        expected = call(*arguments, temperature=2.0, **more)
        for a, e in zip(
            *((r if isinstance(r, tuple) else (r,)) for r in (actual, expected)), strict=True
        ):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
