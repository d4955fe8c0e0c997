"""The CuPy backend's attention on the host: heads of every size, in every place in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.backends import cuda_host as host
from tests.backends.calls import Call, reference
from tests.backends.host_checks import check_pair, results, serving
from tests.backends.judge import error
from tests.backends.ways import TF32_ROUNDING

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

BACKEND = host.host_backend("attention")
attention = host.launchers("attention")["attention"]


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with serving(BACKEND):
        yield


def drawn(seed: int, queries: int, keys: int, width: int, value_width: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"q": (queries, width), "k": (keys, width), "v": (keys, value_width)}
    q, k, v = (rng.standard_normal((1, 2, *size)).astype("f") for size in sizes.values())
    dy = rng.standard_normal((1, 2, queries, value_width)).astype("f")
    return {"q": q, "k": k, "v": v}, {"dy": dy}


def check(*sizes: int, layout: str = "C") -> None:
    check_pair(
        BACKEND,
        "attention",
        lambda seed: drawn(seed, *sizes),
        ("y", "probabilities"),
        layout,
        scale=1 / math.sqrt(sizes[2]),
    )


@pytest.mark.parametrize("layout", ["C", "odd address"])
@pytest.mark.parametrize(
    "widths", [(1, 1), (7, 33), (32, 32), (64, 36), (40, 128), (128, 65)], ids=str
)
def test_heads_of_any_width(widths: tuple[int, int], layout: str) -> None:
    check(19, 21, *widths, layout=layout)


@pytest.mark.parametrize("blocks", [1, 10**6])
@pytest.mark.parametrize("lengths", [(65, 64), (1, 130), (33, 63), (130, 3)], ids=str)
def test_sequences_of_any_length(lengths: tuple[int, int], blocks: int) -> None:
    with mock.patch.object(attention.device, "multiprocessors", return_value=blocks):
        check(*lengths, 12, 8)


@pytest.mark.parametrize("width", [17, 64, 100])
@pytest.mark.parametrize(("queries", "rows"), [(9, 1), (20, 2), (40, 4)])
def test_any_rows_and_columns_of_a_thread(queries: int, rows: int, width: int) -> None:
    with mock.patch.object(attention.device, "multiprocessors", return_value=1):
        arguments, _ = drawn(0, queries, 21, width, width)
        assert attention._plan(*map(host.asarray, arguments.values())).rows == rows
        check(queries, 21, width, width)


@pytest.mark.parametrize(("multiprocessors", "rows"), [(1, 4), (5, 2), (10, 1)])
def test_a_block_does_as_many_queries_as_leave_work_for_all(
    multiprocessors: int, rows: int
) -> None:
    (arguments, _) = drawn(0, 70, 40, 16, 16)
    with mock.patch.object(attention.device, "multiprocessors", return_value=multiprocessors):
        assert attention._plan(*map(host.asarray, arguments.values())).rows == rows


def test_a_block_does_fewer_queries_where_shared_memory_is_small() -> None:
    (arguments, _) = drawn(0, 197, 197, 64, 64)
    arrays = list(map(host.asarray, arguments.values()))
    assert attention._plan(*arrays).rows == 4
    with mock.patch.object(attention.device, "shared_limit", return_value=64 * 1024):
        assert attention._plan(*arrays).rows == 1
    with mock.patch.object(attention.device, "shared_limit", return_value=48 * 1024):
        assert BACKEND.kernels["attention_forward"](*arrays, scale=1.0) is NotImplemented


def test_heads_within_the_rows_are_read_and_written_where_they_lie() -> None:
    (arguments, others) = drawn(0, 6, 5, 8, 4)
    call = Call("attention_forward", "heads within rows", {**arguments, "scale": 0.5})
    expected = reference(call)
    inside = {
        name: host.asarray(x.swapaxes(1, 2).copy()).swapaxes(1, 2) for name, x in arguments.items()
    }
    with mock.patch.object(attention.device, "dense", side_effect=AssertionError("a copy")):
        y, probabilities = BACKEND.kernels["attention_forward"](**inside, scale=0.5)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-6)
    assert y.swapaxes(1, 2).flags.c_contiguous
    given = {**others, **arguments, "probabilities": expected[1], "scale": 0.5}
    exact = reference(Call("attention_backward", "", given))
    dy = host.asarray(others["dy"].swapaxes(1, 2).copy()).swapaxes(1, 2)
    gradients = BACKEND.kernels["attention_backward"](
        dy, **inside, probabilities=probabilities, scale=0.5
    )
    for a, e in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6)
        assert a.swapaxes(1, 2).flags.c_contiguous


def test_queries_are_scaled_before_their_products_overflow() -> None:
    q, k, v = (np.array(x, "f").reshape(1, 1, -1, 1) for x in ([1e20], [1e20, 2e20], [1, 2]))
    for tf32 in (False, True):
        with mock.patch.object(attention.settings, "tf32", tf32):
            call = Call("attention_forward", "", {"q": q, "k": k, "v": v, "scale": 1e-10})
            for actual, expected in zip(results(BACKEND, call), reference(call), strict=True):
                np.testing.assert_array_equal(actual, expected)


def test_heads_too_wide_are_left_to_the_reference() -> None:
    (arguments, _) = drawn(0, 3, 4, 129, 4)
    arrays = list(map(host.asarray, arguments.values()))
    assert BACKEND.kernels["attention_forward"](*arrays, scale=1.0) is NotImplemented


def test_a_query_without_a_number_spoils_its_own_row_only() -> None:
    (arguments, _) = drawn(0, 20, 70, 16, 16)
    arguments["q"][0, 1, 5, 3] = np.nan
    y, probabilities = results(BACKEND, Call("attention_forward", "", {**arguments, "scale": 0.3}))
    for array in (y, probabilities):
        spoiled = np.isnan(array).all(axis=-1)
        assert spoiled[0, 1, 5]
        assert np.isnan(array).any(axis=-1).sum() == spoiled.sum() == 1


@pytest.mark.parametrize("blocks", [1, 5, 10**6])
@pytest.mark.parametrize(
    "sizes",
    [
        (65, 64, 32, 32),
        (70, 130, 12, 8),
        (3, 5, 1, 1),
        (19, 203, 64, 36),
        (33, 21, 127, 128),
        (40, 21, 64, 50),
        (20, 21, 100, 90),
    ],
    ids=str,
)
def test_tensor_cores_round_what_they_multiply_where_they_may(
    sizes: tuple[int, int, int, int], blocks: int
) -> None:
    scale = 1 / math.sqrt(sizes[2])
    (arguments, others) = drawn(0, *sizes)
    forward = Call("attention_forward", "TF32", {**arguments, "scale": scale})
    probabilities = reference(forward)[1]
    given = {**others, **arguments, "probabilities": probabilities, "scale": scale}
    with (
        mock.patch.object(attention.settings, "tf32", True),
        mock.patch.object(attention.device, "multiprocessors", return_value=blocks),
    ):
        for call in (forward, Call("attention_backward", "TF32", given)):
            for layout in ("C", "odd address"):
                actual, exact = results(BACKEND, call, layout), reference(call.astype("float64"))
                for a, e in zip(actual, exact, strict=True):
                    assert 1e-7 < error(a, e) / np.abs(e).max() < 4 * TF32_ROUNDING or a.size < 99
