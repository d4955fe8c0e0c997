"""Evaluation: logits block by block, accuracy, calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.data.dataset import Normalization
from refkd.errors import NonFiniteError
from refkd.models import create
from refkd.nn import Dropout, Linear, Sequential
from refkd.train.evaluate import accuracy, calibration, evaluate_logits
from tests.nn.contract_layers import BatchStatistics

NETWORK = create("mlp", in_features=4, hidden=(6,), num_classes=3, dropout=0.5)


def drawn(network: Any = NETWORK, dtype: Any = np.float64) -> tuple[Any, Any]:
    return network.init(np.random.default_rng(0), dtype=dtype)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2500])
def test_logits_are_those_of_the_network_in_evaluation_for_every_image(rows: int) -> None:
    params, state = drawn()
    images = np.random.default_rng(1).integers(256, size=(rows, 2, 2)).astype(np.uint8)
    logits = evaluate_logits(NETWORK, params, state, images, normalization=Normalization(1 / 255))
    expected, _ = NETWORK.forward(params, state, images / 255, train=False)
    assert logits.shape == (rows, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


def test_no_image_has_no_logits() -> None:
    logits = evaluate_logits(
        NETWORK, *drawn(), np.zeros((0, 2, 2), np.uint8), normalization=Normalization(1.0)
    )
    assert logits.shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.uint8, np.float32, np.float64])
def test_logits_have_the_dtype_of_the_parameters(dtype: Any, stored: Any) -> None:
    images = np.ones((3, 4), stored)
    logits = evaluate_logits(NETWORK, *drawn(dtype=dtype), images, normalization=Normalization(0.5))
    assert logits.dtype == dtype


def test_running_statistics_are_used_and_not_those_of_a_block() -> None:
    network = Sequential.numbered(Linear(4, 3), BatchStatistics(3), Dropout(0.5))
    params, state = drawn(network)
    images = np.random.default_rng(2).standard_normal((1500, 4))
    logits = evaluate_logits(network, params, state, images, normalization=Normalization(1.0))
    expected = (images @ params["0.weight"].T + params["0.bias"]) / math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["fc1.weight", "fc2.bias"])
def test_a_network_that_returns_nan_or_infinity_is_an_error(name: str, bad: float) -> None:
    params, state = drawn()
    params[name].flat[0] = bad
    images = np.full((1500, 4), -1.0)
    images[-1] = 1
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="diverged or are"):
        evaluate_logits(NETWORK, params, state, images, normalization=Normalization(1.0))


def test_accuracy_counts_the_rows_whose_largest_logit_is_the_label() -> None:
    logits = np.array([[1, 3, 2], [0, -1, -2], [5, 6, 7], [1, 1, 0]], float)
    assert accuracy(logits, np.array([1, 1, 2, 0])) == 0.75  # the first of equals counts


def test_calibration_of_a_network_that_is_always_sure_and_half_right() -> None:
    logits = np.array([[100.0, 0], [100, 0], [0, 100], [0, 100]])
    result = calibration(logits, np.array([0, 1, 0, 1]))
    assert result == {"bins": [{"confidence": 1.0, "accuracy": 0.5, "count": 4}], "ece": 0.5}


def test_calibration_sorts_rows_into_bins_by_confidence() -> None:
    confidences = np.array([0.55, 0.59, 0.73, 0.99])
    logits = np.log(np.stack([confidences, 1 - confidences], axis=1))
    result = calibration(logits, np.array([0, 1, 0, 0]))
    assert [row["count"] for row in result["bins"]] == [2, 1, 1]
    assert [row["accuracy"] for row in result["bins"]] == [0.5, 1, 1]
    assert [row["confidence"] for row in result["bins"]] == pytest.approx([0.57, 0.73, 0.99])
    assert result["ece"] == pytest.approx((2 * 0.07 + 0.27 + 0.01) / 4)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), bins=st.integers(1, 20))
def test_calibration_counts_every_row_once_and_its_error_is_a_fraction(
    seed: int, rows: int, bins: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.standard_normal((rows, 4)), rng.integers(4, size=rows)
    result = calibration(logits, labels, bins=bins)
    assert sum(row["count"] for row in result["bins"]) == rows
    assert len(result["bins"]) <= bins
    assert 0 <= result["ece"] <= 1
    weighted = sum(row["count"] * row["accuracy"] for row in result["bins"]) / rows
    assert weighted == pytest.approx(accuracy(logits, labels))


def test_a_calibrated_network_has_a_small_error() -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.standard_normal((50_000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((50_000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert calibration(logits, labels)["ece"] < 0.01
    assert calibration(5 * logits, labels)["ece"] > 0.1
