"""The CuPy backend's norms on the host: rows of every length, channels of every number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import cuda_host as host
from tests.backends.calls import Call, reference
from tests.backends.host_checks import check_pair, results, serving
from tests.backends.judge import error

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

BACKEND = host.host_backend("layer_norm", "batch_norm", "group_norm")
channel_norm, group_norm, layer_norm = host.launchers(
    "channel_norm", "group_norm", "layer_norm"
).values()


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with serving(BACKEND):
        yield


def drawn(seed: int, shape: tuple[int, ...], features: int, mean: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    arguments = {
        "x": mean + 2 * rng.standard_normal(shape),
        "weight": rng.uniform(0.5, 2, features),
        "bias": rng.standard_normal(features),
    }
    cotangent = {"dy": rng.standard_normal(shape)}
    return ({k: v.astype("f") for k, v in d.items()} for d in (arguments, cotangent))


@pytest.mark.parametrize("width", [3, 64, 128, 130, 384, 515, 700, 1024, 1025, 2052])
def test_layer_norm_of_rows_of_any_length(width: int) -> None:
    rows = (3, 7) if width < 1024 else (2, 3)
    for layout in ("C", "odd address") if width in (130, 384, 1025, 2052) else ("C",):
        check_pair(
            BACKEND,
            "layer_norm",
            lambda seed: drawn(seed, (*rows, width), width, 0.5),
            ("y", "mean", "rstd"),
            layout,
        )


@pytest.mark.parametrize(("rows", "width"), [(1, 200), (450, 5), (300, 300), (70, 1100)])
def test_layer_norm_of_any_number_of_rows(rows: int, width: int) -> None:
    check_pair(
        BACKEND,
        "layer_norm",
        lambda seed: drawn(seed, (rows, width), width, 50.0),
        ("y", "mean", "rstd"),
    )


def test_layer_norm_of_rows_longer_than_a_grid_is_left_to_the_reference() -> None:
    row = np.broadcast_to(np.float32(1), (1, layer_norm._WIDEST + 1))
    statistics = np.ones(1, "f")
    assert layer_norm._WIDEST // layer_norm._TILE == 65535
    assert layer_norm.layer_norm_forward(row, row[0], row[0]) is NotImplemented
    backward = layer_norm.layer_norm_backward(row, row, row[0], statistics, statistics)
    assert backward is NotImplemented


SHAPES = [
    (2, 1, 30, 31),
    (3, 8, 30, 31),
    (3, 5, 21, 20),
    (2, 60, 9, 9),
    (2, 1024, 2, 3),
    (2, 1300, 2, 2),
    (3, 259, 4),
    (40, 2051),
]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (shape, layout)
        for shape in SHAPES
        for layout in ("C", "channels last", "odd address")
        if len(shape) > 2 or layout == "C"
    ],
    ids=str,
)
def test_batch_norm_of_any_number_of_channels(shape: tuple[int, ...], layout: str) -> None:
    check_pair(
        BACKEND,
        "batch_norm",
        lambda seed: batch(seed, shape),
        ("y", "mean", "var", "rstd"),
        layout,
    )


def batch(seed: int, shape: tuple[int, ...]) -> tuple[Any, Any]:
    arguments, cotangent = drawn(seed, shape, shape[1], 3.0)
    arguments |= {"running_mean": None, "running_var": None}
    return arguments, cotangent | {"batch_statistics": True}


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_batch_norm_with_given_statistics(shape: tuple[int, ...]) -> None:
    def given_statistics(seed: int) -> tuple[Any, Any]:
        arguments, cotangent = drawn(seed, shape, shape[1], 3.0)
        rng = np.random.default_rng(seed)
        arguments["running_mean"] = rng.standard_normal(shape[1]).astype("f")
        arguments["running_var"] = rng.uniform(0.5, 2, shape[1]).astype("f")
        return arguments, cotangent | {"batch_statistics": False}

    check_pair(BACKEND, "batch_norm", given_statistics, ("y", "mean", "var", "rstd"))


@pytest.mark.parametrize("layout", ["C", "odd address"])
@pytest.mark.parametrize("in_a_block", [True, False])
@pytest.mark.parametrize("group", [1, 5, 8, 20, 40, 120])
def test_group_norm_of_groups_of_any_size(
    group: int, in_a_block: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_norm, "_LEAST", 1 if in_a_block else 10**9)
    monkeypatch.setattr(group_norm.device, "multiprocessors", lambda: 1)
    channels = {1: 66, 5: 60, 8: 64, 20: 60, 40: 120, 120: 120}[group]  # blocks of some groups
    for shape in ((3, channels, 5, 7), (2, channels)):
        if group * math.prod(shape[2:]) > 2:
            check_pair(
                BACKEND,
                "group_norm",
                lambda seed, shape=shape: drawn(seed, shape, channels, 0.5),
                ("y", "mean", "rstd"),
                layout,
                num_groups=channels // group,
            )


def test_a_block_does_groups_where_that_pays() -> None:
    def groups(shape: tuple[int, ...], num_groups: int, arrays: int = 1) -> int:
        blocks = group_norm._blocks(host.empty(shape), num_groups, arrays)
        return 0 if blocks is None else int(blocks.sizes[-1])

    assert groups((8, 64, 16, 16), 16) == 8, "a line of memory"
    assert groups((4, 64, 28, 28), 8) == 2, "shared memory holds four such blocks"
    assert groups((4, 64, 28, 28), 8, arrays=2) == 1
    assert groups((8, 96, 16, 16), 12) == 4, "a divisor of their number"
    assert groups((2, 64, 16, 16), 16) == 8, "as many blocks as multiprocessors"
    assert groups((1, 64, 16, 16), 16) == 4
    assert not groups((4, 64, 3, 3), 8), "a group is small"
    assert not groups((4, 64, 80, 80), 8), "shared memory does not hold two of them"
    assert not groups((3, 64, 16, 16), 1), "there are fewer than multiprocessors"
    assert not groups((4, 2048, 2, 2), 1), "a row of a group is longer than a block"


@pytest.mark.parametrize("far", [1e2, 1e4])
def test_statistics_do_not_hang_on_the_first_value(far: float) -> None:
    arguments, _ = batch(0, (4, 8, 16, 17))
    call = Call("batch_norm_forward", "first value far away", arguments)
    spoiled = call.arrays["x"].copy()
    spoiled[0, :, 0, 0] = far
    call = call.replaced({"x": spoiled})
    exact, rough = reference(call.astype("float64")), reference(call)
    actual = results(BACKEND, call)
    for a, e, r in zip(actual, exact, rough, strict=True):
        if a is not actual[1]:
            assert error(a, e) <= 4 * error(r, e) + 1e-7 * np.abs(e).max()
    deviation = np.sqrt(exact[2])
    np.testing.assert_array_less(np.abs(actual[1] - exact[1]), 1e-7 * deviation + 1e-6)


def test_statistics_of_a_channel_with_infinity_are_not_finite() -> None:
    arguments, _ = batch(0, (4, 8, 3, 5))
    arguments["x"][1, 2, 1, 1] = np.inf
    y, mean, var, rstd = results(BACKEND, Call("batch_norm_forward", "infinity", arguments))
    for array in (mean, var, rstd):
        np.testing.assert_array_equal(np.isfinite(array), np.arange(8) != 2)
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(np.delete(y, 2, axis=1)).all()


@settings(max_examples=200, derandomize=True, database=None)
@given(
    batch=st.integers(1, 300),
    channels=st.integers(1, 5000),
    pixels=st.integers(1, 300),
    by_example=st.booleans(),
)
def test_blocks_have_a_place_for_every_row_and_channel(
    batch: int, channels: int, pixels: int, by_example: bool
) -> None:
    of = channel_norm.rows_of((batch, channels, pixels), batch if by_example else 1)
    assert of.examples * of.rows * of.channels == batch * channels * pixels
    assert of.tile * of.tiles * of.vector >= channels > (of.tiles - 1) * of.tile * of.vector
    assert of.tile <= of.block <= 256
    assert of.block % of.tile == 0
    assert 1 <= of.chunks <= of.rows
    assert 1 <= of.pieces <= of.rows


def test_arrays_too_large_for_32_bits_are_left_to_the_reference() -> None:
    assert channel_norm.rows_of((2**16, 2**15), 1) is None
