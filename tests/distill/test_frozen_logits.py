"""A frozen teacher's logits are bit for bit the same, stored or live, in any company.

What these tests compare is the work of one BLAS on one machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import dispatch
from refkd.data.dataset import Normalization, Split, to_batch
from refkd.dispatch import Backend, use_backend
from refkd.distill import LogitDistillation, Stage, frozen, frozen_logits
from refkd.losses import KDSpec
from refkd.models import create
from refkd.nn.layer import add_prefix
from refkd.threads import limit_blas_threads
from refkd.train.loop import begin, train
from refkd.train.optim import Adam
from refkd.train.schedule import Constant

NORMALIZATION = Normalization(1 / 255)


def network(features: int, *hidden: int, classes: int = 10, dropout: float = 0.0) -> Any:
    return create("mlp", in_features=features, hidden=hidden, num_classes=classes, dropout=dropout)


NETWORKS = {
    "digits": network(64, 256, 256, dropout=0.3),
    "mnist": network(784, 300, 100),
    "odd": network(37, 53, 11, classes=3),
    "linear": network(5, classes=2),
}


def drawn(teacher: Any, rows: int, *, dtype: Any = np.float32) -> tuple[Any, Any, np.ndarray]:
    rng = np.random.default_rng(rows)
    params, state = teacher.init(rng, dtype=dtype)
    features = teacher.shapes()[0]["fc1.weight"][1]
    return params, state, rng.standard_normal((rows, features)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15)
@given(
    rows=st.integers(1, 150),
    block=st.integers(1, 130),
    seed=st.integers(0, 2**32),
)
def test_a_row_does_not_depend_on_its_neighbours(
    name: str, dtype: Any, rows: int, block: int, seed: int
) -> None:
    params, state, images = drawn(NETWORKS[name], rows, dtype=dtype)
    stored = frozen_logits(NETWORKS[name], params, state, images, block=block)
    rng = np.random.default_rng(seed)
    some = rng.permutation(rows)[: rng.integers(1, rows + 1)]
    live = frozen_logits(NETWORKS[name], params, state, images[some], block=block)
    np.testing.assert_array_equal(live, stored[some])


def test_each_backend_has_rows_of_its_own_in_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"every": 2}

    def linear_forward(x: Any, weight: Any, bias: Any) -> Any:
        y = x @ weight.T + bias
        # It sums some rows in another order, so to speak.
        y[1 :: chosen["every"]] += np.float32(0.01)
        return y

    odd = Backend(
        "odd",
        np.ndarray,
        np.asarray,
        np.asarray,
        lambda: None,
        kernels={"linear_forward": linear_forward},
        choices=lambda: tuple(chosen.values()),
    )
    monkeypatch.setitem(dispatch._loaded, "odd", odd)
    params, state, images = drawn(NETWORKS["digits"], 40)
    # None takes what was found out about another.
    for backend, every in (("numpy", 2), ("odd", 2), ("odd", 3), ("numpy", 3), ("odd", 2)):
        chosen["every"] = every
        with use_backend(backend):
            stored = frozen_logits(NETWORKS["digits"], params, state, images, block=32)
            shifted = frozen_logits(NETWORKS["digits"], params, state, images[1:], block=32)
            np.testing.assert_array_equal(shifted, stored[1:])


@pytest.mark.parametrize("alike", [32, 20])
def test_where_the_first_rows_are_alike_no_index_is_moved(
    alike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = NETWORKS["digits"]
    params, state, images = drawn(teacher, 50, dtype=np.float64)
    expected, _ = teacher.forward(params, state, images, train=False)
    backend = dataclasses.replace(dispatch.get_backend("numpy"), asarray=None)
    monkeypatch.setattr(frozen, "_rows_like_the_first", lambda *_: np.arange(alike))
    monkeypatch.setattr(frozen, "backend_of", lambda x: backend)
    logits = frozen_logits(teacher, params, state, images, block=32)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("block", [1, 32, 50, 1000])
def test_they_are_the_logits_of_the_network_in_evaluation(rows: int, block: int) -> None:
    teacher = NETWORKS["digits"]
    params, state, images = drawn(teacher, rows, dtype=np.float64)
    logits = frozen_logits(teacher, params, state, images, block=block)
    expected, _ = teacher.forward(params, state, images, train=False)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


def test_images_keep_their_shape_on_the_way_to_the_network() -> None:
    teacher = NETWORKS["digits"]
    params, state, images = drawn(teacher, 40)
    flat = frozen_logits(teacher, params, state, images, block=32)
    square = frozen_logits(teacher, params, state, images.reshape(40, 1, 8, 8), block=32)
    np.testing.assert_array_equal(square, flat)


@pytest.mark.parametrize("rows", [32, 64])
def test_a_batch_that_fills_the_block_gives_a_fresh_result(rows: int) -> None:
    params, state, images = drawn(NETWORKS["digits"], rows)
    before = images.copy()
    for same in (images, np.asfortranarray(images), images[::-1][::-1]):
        logits = frozen_logits(NETWORKS["digits"], params, state, same, block=32)
        single = [
            frozen_logits(NETWORKS["digits"], params, state, same[i : i + 1], block=32)
            for i in range(rows)
        ]
        np.testing.assert_array_equal(logits, np.concatenate(single))
        logits[...] = 0
        np.testing.assert_array_equal(same, before)


def test_no_image_has_no_logits() -> None:
    params, state, images = drawn(NETWORKS["digits"], 1)
    logits = frozen_logits(NETWORKS["digits"], params, state, images[:0], block=32)
    assert logits.shape == (0, 10)


@pytest.mark.parametrize("batch_size", [32, 20, 7])
def test_training_with_stored_and_with_live_logits_is_the_same_bit_for_bit(
    batch_size: int,
) -> None:
    rng = np.random.default_rng(0)
    teacher, student = NETWORKS["digits"], network(64, 16, dropout=0.2)
    teacher_params, teacher_state = teacher.init(rng)
    split = Split(rng.integers(256, size=(90, 8, 8)).astype(np.uint8), rng.integers(10, size=90))
    images = to_batch(split.images, NORMALIZATION, np.float32)
    logits = frozen_logits(teacher, teacher_params, teacher_state, images, block=batch_size)
    spec = KDSpec.preset("hinton", temperature=4.0, alpha=0.1)

    def trained(teacher_network: Any, split: Split, frozen: Any) -> Any:
        objective = LogitDistillation(student, teacher_network, spec)
        stage = Stage(objective, Adam(1e-2), Constant(), epochs=4, batch_size=batch_size)
        return train(
            [stage], begin([stage], 5, frozen_params=frozen), split, normalization=NORMALIZATION
        )

    live = trained(teacher, split, add_prefix("teacher", teacher_params))
    stored = trained(None, Split(split.images, split.labels, logits), {})
    assert stored.history == live.history
    for name, array in stored.params.items():
        np.testing.assert_array_equal(array, live.params[name])


def test_stored_logits_do_not_depend_on_the_number_of_blas_threads() -> None:
    teacher = network(784, 1200, 1200)
    params, state, images = drawn(teacher, 100)
    with limit_blas_threads(1):
        alone = frozen_logits(teacher, params, state, images, block=32)
    shared = frozen_logits(teacher, params, state, images, block=32)
    np.testing.assert_array_equal(shared, alone)
