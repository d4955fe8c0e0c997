"""The Numba backend's linear map: a row is the same bits in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, use_backend
from refkd.distill import frozen_logits
from refkd.errors import BackendUnavailable
from refkd.models import create
from refkd.ops import linear_backward, linear_forward

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import linear, team
from refkd_numba.products import STEPS


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba", strict=True):
        yield


def drawn(rows: int, inputs: int, outputs: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((rows, inputs)), rng.standard_normal((outputs, inputs))
    return tuple(a.astype(np.float32) for a in (x, weight, rng.standard_normal(outputs)))


@settings(max_examples=40)
@given(
    inputs=st.integers(1, 2 * int(STEPS) + 9),
    outputs=st.integers(1, 70),
    rows=st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
def test_a_row_does_not_depend_on_its_neighbours_nor_on_which_matrix_is_packed(
    inputs: int, outputs: int, rows: int, seed: int
) -> None:
    x, weight, bias = drawn(400, inputs, outputs)
    together = linear_forward(x, weight, bias)
    some = np.random.default_rng(seed).permutation(400)[:rows]
    np.testing.assert_array_equal(linear_forward(x[some], weight, bias), together[some])


@pytest.mark.parametrize(("rows", "few"), [(40, True), (900, False)])
def test_the_bits_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, rows: int, few: bool
) -> None:
    x, weight, bias = drawn(rows, 530, 310)
    assert linear._are_few(rows, 530, 310) is few
    results = []
    for threads in (1, 2, 5):
        for module in (linear, team):
            monkeypatch.setattr(module, "worker_threads", lambda threads=threads: threads)
        y = linear_forward(x, weight, bias)
        dx, dweight, dbias = linear_backward(y, x, weight)
        # The sum over many examples is BLAS's, in an order that depends on the shape.
        results.append((y, dx, dweight, dbias) if few else (y, dx, dbias))
    for other in results[1:]:
        np.testing.assert_equal(other, results[0])


@settings(max_examples=20)
@given(rows=st.integers(1, 150), block=st.integers(1, 130), seed=st.integers(0, 2**32))
def test_frozen_logits_are_those_of_a_plain_evaluation(rows: int, block: int, seed: int) -> None:
    network = create("mlp", in_features=37, hidden=(90, 20), num_classes=5, dropout=0.3)
    params, state = network.init(np.random.default_rng(seed))
    images = np.random.default_rng(seed).standard_normal((rows, 37)).astype(np.float32)
    frozen = frozen_logits(network, params, state, images, block=block)
    np.testing.assert_array_equal(frozen, network.infer(params, state, images))
