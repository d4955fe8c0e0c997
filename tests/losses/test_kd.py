"""The fused kernel pair softmax_kd against the composition it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.losses import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_kd_backward,
    softmax_kd_forward,
    softmax_kl_backward,
    softmax_kl_forward,
)

EPS = np.finfo(np.float64).eps
BATCH = st.integers(1, 6)
CLASSES = st.integers(1, 8)
SEED = st.integers(0, 2**32 - 1)
TEMPERATURE = st.floats(0.3, 20)
WEIGHT = st.just(0.0) | st.floats(1e-3, 10)
REDUCTION = st.sampled_from(["batchmean", "mean", "sum"])


def draw(seed: int, batch: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, v = 3 * rng.standard_normal((2, batch, classes))
    return z, v, rng.integers(classes, size=batch)


@given(BATCH, CLASSES, SEED, TEMPERATURE, WEIGHT, WEIGHT, REDUCTION)
@settings(max_examples=80, deadline=None)
def test_fused_value_and_gradient_equal_the_composition(
    batch: int,
    classes: int,
    seed: int,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str,
) -> None:
    z, v, labels = draw(seed, batch, classes)
    options = {
        "temperature": temperature,
        "hard_weight": hard_weight,
        "soft_weight": soft_weight,
        "reduction": reduction,
    }
    loss, hard, soft, q, s, t = softmax_kd_forward(z, v, labels, **options)
    ce, log_q = softmax_cross_entropy_forward(z, labels)
    kl, log_t, log_s = softmax_kl_forward(v, z, temperature=temperature, reduction=reduction)
    # Sums of up to 48 terms, in another order: a few ulp of the sum of magnitudes.
    assert abs(hard - ce) <= 4 * EPS * (1 + ce)
    magnitude = (np.exp(log_t) * np.abs(log_t - log_s)).sum()
    assert abs(soft - kl) <= 8 * EPS * magnitude
    assert loss == hard_weight * hard + soft_weight * soft

    dz = softmax_kd_backward(0.7, q, s, t, labels, **options)
    dce = softmax_cross_entropy_backward(0.7 * hard_weight, log_q, labels)
    _, dkl = softmax_kl_backward(
        0.7 * soft_weight, log_t, log_s, temperature=temperature, reduction=reduction
    )
    scale = np.abs(dce).max() + np.abs(dkl).max()
    assert np.abs(dz - (dce + dkl)).max() <= 8 * EPS * scale


@given(BATCH, CLASSES, SEED, TEMPERATURE, REDUCTION)
@settings(max_examples=40, deadline=None)
def test_gradient_sums_to_zero_over_the_classes(
    batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    z, v, labels = draw(seed, batch, classes)
    options = {
        "temperature": temperature,
        "hard_weight": 0.3,
        "soft_weight": temperature,
        "reduction": reduction,
    }
    *_, q, s, t = softmax_kd_forward(z, v, labels, **options)
    dz = softmax_kd_backward(1.0, q, s, t, labels, **options)
    assert np.abs(dz.sum(axis=1)).max() <= 8 * EPS


@given(BATCH, CLASSES, SEED, TEMPERATURE, REDUCTION)
@settings(max_examples=40, deadline=None)
def test_without_labels_it_is_the_weighted_divergence(
    batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    z, v, labels = draw(seed, batch, classes)
    options = {
        "temperature": temperature,
        "hard_weight": 0.0,
        "soft_weight": 2.0,
        "reduction": reduction,
    }
    with_labels = softmax_kd_forward(z, v, labels, **options)
    without = softmax_kd_forward(z, v, None, **options)
    assert without[0] == with_labels[0] == 2 * without[2]
    assert without[1] == 0
    np.testing.assert_array_equal(
        softmax_kd_backward(1.0, *without[3:], None, **options),
        softmax_kd_backward(1.0, *with_labels[3:], labels, **options),
    )


def test_a_batch_gradient_is_the_mean_of_single_gradients() -> None:
    z, v, labels = draw(0, 4, 5)
    options = {"temperature": 3.0, "hard_weight": 0.3, "soft_weight": 6.3}

    def gradient(rows: slice) -> np.ndarray:
        *_, q, s, t = softmax_kd_forward(z[rows], v[rows], labels[rows], **options)
        return softmax_kd_backward(1.0, q, s, t, labels[rows], **options)

    singles = np.concatenate([gradient(slice(i, i + 1)) for i in range(4)])
    np.testing.assert_allclose(gradient(slice(0, 4)), singles / 4, atol=4 * EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_are_exact(dtype: type[np.floating]) -> None:
    z, v = np.array([[1e4, -1e4]], dtype), np.array([[-1e4, 1e4]], dtype)
    labels = np.array([1])
    options = {"temperature": 4.0, "hard_weight": 0.5, "soft_weight": 8.0}
    loss, hard, soft, q, s, t = softmax_kd_forward(z, v, labels, **options)
    assert (hard, soft, loss) == (2e4, 5e3, 5e4)
    dz = softmax_kd_backward(1.0, q, s, t, labels, **options)
    np.testing.assert_array_equal(dz, [[0.5 + 2, -0.5 - 2]])
    assert {a.dtype for a in (loss, hard, soft, q, s, t, dz)} == {np.dtype(dtype)}


def test_a_single_class_has_no_loss_and_no_gradient() -> None:
    options = {"temperature": 4.0, "hard_weight": 0.5, "soft_weight": 8.0}
    labels = np.zeros(2, np.int64)
    loss, *_, q, s, t = softmax_kd_forward(
        np.array([[1.0], [2.0]]), np.array([[5.0], [-3.0]]), labels, **options
    )
    assert loss == 0
    assert not softmax_kd_backward(1.0, q, s, t, labels, **options).any()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer_dtype_are_accepted(dtype: type[np.integer]) -> None:
    z, v, labels = draw(1, 5, 4)
    options = {"temperature": 2.0, "hard_weight": 0.5, "soft_weight": 2.0}
    expected = softmax_kd_forward(z, v, labels, **options)
    given_ = softmax_kd_forward(z, v, labels.astype(dtype), **options)
    assert given_[0] == expected[0]
    np.testing.assert_array_equal(
        softmax_kd_backward(1.0, *given_[3:], labels.astype(dtype), **options),
        softmax_kd_backward(1.0, *expected[3:], labels, **options),
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"student_logits": np.ones(3)}, ShapeError, "expected equal shapes"),
        ({"teacher_logits": np.ones((2, 4))}, ShapeError, r"teacher_logits \(2, 4\)"),
        ({"teacher_logits": np.ones((2, 3), np.float32)}, DtypeError, "teacher_logits float32"),
        ({"teacher_logits": [[1.0] * 3] * 2}, DtypeError, "teacher_logits must be an array"),
        ({"labels": None}, ShapeError, "hard_weight=0.5 needs labels, got None"),
        ({"labels": [0, 1]}, DtypeError, "labels must be an integer array, got list"),
        ({"labels": np.ones(2)}, DtypeError, "labels must be an integer array, got float64"),
        ({"labels": np.array([0])}, ShapeError, r"labels must have shape \(2,\), got \(1,\)"),
        ({"temperature": 0.0}, ConfigError, "temperature must be a finite number > 0"),
        ({"reduction": "none"}, ConfigError, "'batchmean', 'mean', 'sum', got 'none'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, error: type[Exception], words: str) -> None:
    arguments = {
        "student_logits": np.ones((2, 3)),
        "teacher_logits": np.ones((2, 3)),
        "labels": np.array([0, 1]),
        "temperature": 2.0,
        "hard_weight": 0.5,
        "soft_weight": 2.0,
    } | change
    with pytest.raises(error, match=f"softmax_kd_forward: .*{words}"):
        softmax_kd_forward(**arguments)


def test_numpy_weights_keep_float32() -> None:
    z, v = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    options = {name: np.float64(0.5) for name in ("temperature", "hard_weight", "soft_weight")}
    labels = np.array([0, 1, 2])
    loss, hard, soft, q, s, t = softmax_kd_forward(z, v, labels, **options)
    dz = softmax_kd_backward(1.0, q, s, t, labels, **options)
    assert {a.dtype for a in (loss, hard, soft, q, s, t, dz)} == {np.dtype(np.float32)}
