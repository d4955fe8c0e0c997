"""The KL divergence of two softmax distributions: inequalities, limits and exact values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.losses import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_kl_backward,
    softmax_kl_forward,
)
from refkd.ops import softmax_forward

EPS = np.finfo(np.float64).eps
BATCH = st.integers(1, 5)
CLASSES = st.integers(1, 7)
SEED = st.integers(0, 2**32 - 1)
TEMPERATURE = st.floats(0.3, 20)
REDUCTIONS = ("batchmean", "mean", "sum")


def draw(seed: int, *shape: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal(shape), scale * rng.standard_normal(shape)


@given(BATCH, CLASSES, SEED, TEMPERATURE, st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_divergence_is_at_least_half_the_squared_l1_distance(
    batch: int, classes: int, seed: int, temperature: float, scale: float
) -> None:
    # Pinsker's inequality, which implies KL >= 0 and KL > 0 wherever p and q differ.
    a, b = draw(seed, batch, classes, scale=scale)
    kl, log_p, log_q = softmax_kl_forward(a, b, temperature=temperature, reduction="none")
    distance = np.abs(np.exp(log_p) - np.exp(log_q)).sum(axis=-1)
    assert (kl >= distance**2 / 2 - 8 * EPS).all()


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@settings(max_examples=30, deadline=None)
def test_divergence_and_gradients_of_equal_logits_are_exactly_zero(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    a, _ = draw(seed, batch, classes)
    loss, log_p, log_q = softmax_kl_forward(a, a.copy(), temperature=temperature)
    assert loss == 0
    for gradient in softmax_kl_backward(1.0, log_p, log_q, temperature=temperature):
        assert not gradient.any()


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_is_divergence_plus_entropy(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    v, z = draw(seed, batch, classes)
    kl, log_t, _ = softmax_kl_forward(v, z, temperature=temperature, reduction="none")
    t = np.exp(log_t)
    cross_entropy, _ = softmax_cross_entropy_forward(z / temperature, t, reduction="none")
    entropy = -(t * log_t).sum(axis=-1)
    assert (np.abs(cross_entropy - kl - entropy) <= 64 * EPS * (1 + cross_entropy)).all()


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_on_soft_targets_has_the_gradient_of_the_divergence(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    v, z = draw(seed, batch, classes)
    _, log_t, log_s = softmax_kl_forward(v, z, temperature=temperature)
    _, dz = softmax_kl_backward(1.0, log_t, log_s, temperature=temperature, need_dp=False)
    _, log_q = softmax_cross_entropy_forward(z / temperature, np.exp(log_t))
    dscaled = softmax_cross_entropy_backward(1.0, log_q, np.exp(log_t))
    assert np.abs(dz - dscaled / temperature).max() <= 32 * EPS / temperature


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@settings(max_examples=40, deadline=None)
def test_both_gradients_sum_to_zero_over_the_classes(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    a, b = draw(seed, batch, classes)
    _, log_p, log_q = softmax_kl_forward(a, b, temperature=temperature)
    log_ratio = np.abs(log_p - log_q).max()
    da, db = softmax_kl_backward(1.0, log_p, log_q, temperature=temperature)
    assert np.abs(db.sum(axis=-1)).max() <= 8 * EPS / temperature
    assert np.abs(da.sum(axis=-1)).max() <= 8 * EPS * (1 + log_ratio) / temperature


@given(BATCH, CLASSES, SEED, TEMPERATURE, st.sampled_from(REDUCTIONS))
@settings(max_examples=40, deadline=None)
def test_backward_is_the_complex_step_in_random_directions(
    batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    a, b = draw(seed, batch, classes)
    u, w = draw(seed + 1, batch, classes)
    options = {"temperature": temperature, "reduction": reduction}
    loss, log_p, log_q = softmax_kl_forward(a, b, **options)
    da, db = softmax_kl_backward(0.7, log_p, log_q, **options)
    in_a = softmax_kl_forward(a + 1e-30j * u, b, **options)[0].imag / 1e-30
    in_b = softmax_kl_forward(a, b + 1e-30j * w, **options)[0].imag / 1e-30
    scale = (1 + np.abs(log_p - log_q).max()) / temperature
    assert abs((da * u).sum() - 0.7 * in_a) <= 50 * EPS * scale * np.abs(u).sum()
    assert abs((db * w).sum() - 0.7 * in_b) <= 50 * EPS * scale * np.abs(w).sum()
    assert loss.shape == ()


@pytest.mark.parametrize("seed", range(5))
def test_the_t_squared_scaled_gradient_tends_to_the_logit_difference(seed: int) -> None:
    batch, classes = 3, 6
    z, v = draw(seed, batch, classes, scale=1.0)
    z, v = (a - a.mean(axis=1, keepdims=True) for a in (z, v))

    def error(temperature: float) -> float:
        _, log_t, log_s = softmax_kl_forward(v, z, temperature=temperature)
        _, dz = softmax_kl_backward(temperature**2, log_t, log_s, temperature=temperature)
        return float(np.abs(dz - (z - v) / (classes * batch)).max())

    # Halved as T doubles: the error is proportional to 1/T.
    for temperature in (500.0, 1000.0, 2000.0):
        assert error(temperature) / error(2 * temperature) == pytest.approx(2, rel=0.02)
    assert error(1e4) <= 1e-4


def test_without_centring_the_limit_is_the_centred_difference() -> None:
    z, v = draw(9, 2, 5, scale=1.0)
    _, log_t, log_s = softmax_kl_forward(v, z, temperature=1e5)
    _, dz = softmax_kl_backward(1e10, log_t, log_s, temperature=1e5)
    d = z - v
    np.testing.assert_allclose(dz, (d - d.mean(axis=1, keepdims=True)) / (5 * 2), atol=1e-5)


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@settings(max_examples=30, deadline=None)
def test_reductions_relate_by_exact_factors(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    a, b = draw(seed, batch, classes)
    loss = {
        r: softmax_kl_forward(a, b, temperature=temperature, reduction=r)[0]
        for r in (*REDUCTIONS, "none")
    }
    assert loss["sum"] == loss["none"].sum()
    assert loss["batchmean"] == loss["sum"] / batch
    assert loss["mean"] == loss["sum"] / (batch * classes)
    _, log_p, log_q = softmax_kl_forward(a, b, temperature=temperature)
    options = {"temperature": temperature}
    total = softmax_kl_backward(1.0, log_p, log_q, reduction="sum", **options)
    each = softmax_kl_backward(np.ones(batch), log_p, log_q, reduction="none", **options)
    for whole, rows in zip(total, each, strict=True):
        np.testing.assert_array_equal(whole, rows)
    for reduction, count in (("batchmean", batch), ("mean", batch * classes)):
        some = softmax_kl_backward(1.0, log_p, log_q, reduction=reduction, **options)
        for whole, part in zip(total, some, strict=True):
            np.testing.assert_allclose(part, whole / count, rtol=8 * EPS, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_are_exact(dtype: type[np.floating]) -> None:
    a, b = np.array([[1e4, 0]], dtype), np.array([[0, 1e4]], dtype)
    for temperature in (1.0, 2.0):
        loss, log_p, log_q = softmax_kl_forward(a, b, temperature=temperature)
        assert loss == 1e4 / temperature
        da, db = softmax_kl_backward(1.0, log_p, log_q, temperature=temperature)
        # p sits in a corner of the simplex, where its softmax has no slope.
        np.testing.assert_array_equal(da, [[0, 0]])
        np.testing.assert_array_equal(db, [[-1 / temperature, 1 / temperature]])
        assert {x.dtype for x in (loss, da, db)} == {np.dtype(dtype)}


def test_a_uniform_p_against_a_certain_q_has_a_closed_form() -> None:
    # KL = Σ ½ (log ½ − log q): log q = (0, −1e4) to the last bit.
    loss, _, _ = softmax_kl_forward(np.array([[1e4, 1e4]]), np.array([[1e4, 0.0]]))
    assert loss == pytest.approx(5000 - math.log(2), rel=2 * EPS)


def test_a_detached_side_gets_no_gradient() -> None:
    a, b = draw(0, 2, 3)
    _, log_p, log_q = softmax_kl_forward(a, b)
    da, db = softmax_kl_backward(1.0, log_p, log_q)
    no_p = softmax_kl_backward(1.0, log_p, log_q, need_dp=False)
    no_q = softmax_kl_backward(1.0, log_p, log_q, need_dq=False)
    assert no_p[0] is None
    assert no_q[1] is None
    np.testing.assert_array_equal(no_p[1], db)
    np.testing.assert_array_equal(no_q[0], da)


def test_leading_axes_are_examples() -> None:
    a, b = draw(1, 2, 3, 4)
    loss, log_p, log_q = softmax_kl_forward(a, b)
    flat = softmax_kl_forward(a.reshape(6, 4), b.reshape(6, 4))
    assert loss == pytest.approx(flat[0], rel=4 * EPS)
    _, db = softmax_kl_backward(1.0, log_p, log_q)
    expected = (softmax_forward(b) - softmax_forward(a)) / 6
    np.testing.assert_allclose(db, expected, atol=4 * EPS)


def test_dtype_is_kept_for_any_kind_of_temperature() -> None:
    a, b = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32)
    for temperature in (2, 2.0, np.float64(2), np.float32(2)):
        loss, log_p, log_q = softmax_kl_forward(a, b, temperature=temperature)
        da, db = softmax_kl_backward(1.0, log_p, log_q, temperature=temperature)
        assert loss.dtype == da.dtype == db.dtype == np.float32


def test_what_does_not_fit_is_refused_by_name() -> None:
    a = np.ones((2, 3))
    with pytest.raises(DtypeError, match="softmax_kl_forward: q_logits must be an array, got list"):
        softmax_kl_forward(a, a.tolist())
    with pytest.raises(DtypeError, match="p_logits float64, q_logits float32"):
        softmax_kl_forward(a, a.astype(np.float32))
    with pytest.raises(ShapeError, match=r"p_logits \(2, 3\), q_logits \(1, 3\)"):
        softmax_kl_forward(a, a[:1])
    with pytest.raises(ShapeError, match="the batchmean of an empty batch"):
        softmax_kl_forward(a[:0], a[:0])
    with pytest.raises(ShapeError, match="C > 0"):
        softmax_kl_forward(a[:, :0], a[:, :0])
    with pytest.raises(ConfigError, match="did you mean 'batchmean'"):
        softmax_kl_forward(a, a, reduction="batch_mean")
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0, got 0"):
        softmax_kl_forward(a, a, temperature=0)
