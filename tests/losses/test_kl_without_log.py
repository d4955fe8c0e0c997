"""The KL divergence with a logarithm left out: what it rewards, its limits, its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.losses import (
    softmax_kl_forward,
    softmax_kl_without_log_backward,
    softmax_kl_without_log_forward,
)
from refkd.ops import softmax_forward

EPS = np.finfo(np.float64).eps
BATCH = st.integers(1, 5)
CLASSES = st.integers(1, 7)
SEED = st.integers(0, 2**32 - 1)
TEMPERATURE = st.floats(0.3, 20)
REDUCTIONS = ("batchmean", "mean", "sum")
some = settings(max_examples=40, deadline=None)


def draw(seed: int, *shape: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return student and teacher."""
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal(shape), scale * rng.standard_normal(shape)


def gradient(z: np.ndarray, v: np.ndarray, **options) -> np.ndarray:
    _, s, t = softmax_kl_without_log_forward(z, v, **options)
    return softmax_kl_without_log_backward(1.0, s, t, **options)


@given(BATCH, CLASSES, SEED, TEMPERATURE, st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@some
def test_it_lies_between_the_negative_entropy_and_what_the_first_choice_adds(
    batch: int, classes: int, seed: int, temperature: float, scale: float
) -> None:
    z, v = draw(seed, batch, classes, scale=scale)
    loss, s, t = softmax_kl_without_log_forward(z, v, temperature=temperature, reduction="none")
    # KL(t ‖ uniform) = log C − H(t)
    uniform, _, _ = softmax_kl_forward(v, 0 * z, temperature=temperature, reduction="none")
    negative_entropy = uniform - np.log(classes)
    rounding = 16 * EPS * (1 + np.log(classes))
    assert (np.abs(loss - negative_entropy + (t * s).sum(axis=1)) <= rounding).all()
    assert (loss <= negative_entropy + rounding).all()
    assert (loss >= negative_entropy - t.max(axis=1) - rounding).all()


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@some
def test_no_student_is_better_than_one_certain_of_the_first_choice(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    z, v = draw(seed, batch, classes)
    certain = 1e4 * np.eye(classes)[v.argmax(axis=1)]
    best, _, _ = softmax_kl_without_log_forward(certain, v, temperature=temperature)
    for student in (z, v):
        loss, _, _ = softmax_kl_without_log_forward(student, v, temperature=temperature)
        assert best <= loss + 8 * EPS


@given(BATCH, CLASSES, SEED, TEMPERATURE, st.sampled_from(REDUCTIONS))
@some
def test_backward_is_the_complex_step_in_random_directions(
    batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    z, v = draw(seed, batch, classes)
    u, _ = draw(seed + 1, batch, classes)
    options = {"temperature": temperature, "reduction": reduction}
    loss, s, t = softmax_kl_without_log_forward(z, v, **options)
    dz = softmax_kl_without_log_backward(0.7, s, t, **options)
    step = softmax_kl_without_log_forward(z + 1e-30j * u, v, **options)[0].imag / 1e-30
    assert abs((dz * u).sum() - 0.7 * step) <= 50 * EPS / temperature * np.abs(u).sum()
    assert loss.shape == ()


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@some
def test_gradient_sums_to_zero_over_the_classes(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    dz = gradient(*draw(seed, batch, classes), temperature=temperature)
    assert np.abs(dz.sum(axis=1)).max() <= 8 * EPS / temperature


def test_gradient_by_hand() -> None:
    # s = (½, ½) and t = (¾, ¼): ⟨t, s⟩ = ½, −s⊙(t − ½)/T = (−⅛, ⅛)/2.
    z, v = np.zeros((1, 2)), np.array([[2 * np.log(3), 0.0]])
    loss, s, t = softmax_kl_without_log_forward(z, v, temperature=2.0)
    assert loss == pytest.approx(0.75 * np.log(0.75) + 0.25 * np.log(0.25) - 0.5, rel=4 * EPS)
    dz = softmax_kl_without_log_backward(1.0, s, t, temperature=2.0)
    np.testing.assert_allclose(dz, [[-1 / 16, 1 / 16]], rtol=8 * EPS)


@pytest.mark.parametrize("seed", range(5))
def test_a_high_temperature_pushes_along_the_teacher_wherever_the_student_stands(
    seed: int,
) -> None:
    batch, classes = 3, 6
    z, v = draw(seed, batch, classes, scale=1.0)
    limit = -(v - v.mean(axis=1, keepdims=True)) / (batch * classes**2)

    def error(temperature: float) -> float:
        scaled = gradient(z, v, temperature=temperature) * temperature**2
        return float(np.abs(scaled - limit).max())

    # Halved as T doubles: the error is proportional to 1/T.
    for temperature in (500.0, 1000.0, 2000.0):
        assert error(temperature) / error(2 * temperature) == pytest.approx(2, rel=0.02)
    assert error(1e4) <= 1e-4


@given(BATCH, CLASSES, SEED, TEMPERATURE)
@some
def test_reductions_relate_by_exact_factors(
    batch: int, classes: int, seed: int, temperature: float
) -> None:
    z, v = draw(seed, batch, classes)
    options = {"temperature": temperature}
    loss = {
        r: softmax_kl_without_log_forward(z, v, reduction=r, **options)[0]
        for r in (*REDUCTIONS, "none")
    }
    assert loss["sum"] == loss["none"].sum()
    assert loss["batchmean"] == loss["sum"] / batch
    assert loss["mean"] == loss["sum"] / (batch * classes)
    _, s, t = softmax_kl_without_log_forward(z, v, **options)
    total = gradient(z, v, reduction="sum", **options)
    weights = np.arange(1.0, batch + 1)
    each = softmax_kl_without_log_backward(weights, s, t, reduction="none", **options)
    np.testing.assert_allclose(each, total * weights[:, None], rtol=8 * EPS)
    for reduction, count in (("batchmean", batch), ("mean", batch * classes)):
        part = gradient(z, v, reduction=reduction, **options)
        np.testing.assert_allclose(part, total / count, rtol=8 * EPS, atol=0)


def test_leading_axes_are_examples() -> None:
    z, v = draw(1, 2, 3, 4)
    flat = gradient(z.reshape(6, 4), v.reshape(6, 4), temperature=2.0)
    np.testing.assert_allclose(gradient(z, v, temperature=2.0).reshape(6, 4), flat, rtol=8 * EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_are_exact(dtype: type[np.floating]) -> None:
    sure_of_0, sure_of_1 = np.array([[1e4, 0]], dtype), np.array([[0, 1e4]], dtype)
    for student, expected in ((sure_of_0, 0), (sure_of_1, -1)):
        loss, s, t = softmax_kl_without_log_forward(student, sure_of_1)
        assert loss == expected
        # Certain, right or wrong: there is no slope, where the divergence has the steepest.
        dz = softmax_kl_without_log_backward(1.0, s, t)
        np.testing.assert_array_equal(dz, [[0, 0]])
        assert {x.dtype for x in (loss, s, t, dz)} == {np.dtype(dtype)}


def test_the_probabilities_returned_are_those_of_student_and_teacher() -> None:
    z, v = draw(2, 3, 4)
    _, s, t = softmax_kl_without_log_forward(z, v, temperature=3.0)
    np.testing.assert_array_equal(s, softmax_forward(z, temperature=3.0))
    np.testing.assert_allclose(t, softmax_forward(v, temperature=3.0), rtol=8 * EPS)


def test_dtype_is_kept_for_any_kind_of_temperature() -> None:
    z, v = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32)
    for temperature in (2, 2.0, np.float64(2), np.float32(2)):
        loss, s, t = softmax_kl_without_log_forward(z, v, temperature=temperature)
        dz = softmax_kl_without_log_backward(1.0, s, t, temperature=temperature)
        assert loss.dtype == dz.dtype == np.float32


def test_what_does_not_fit_is_refused_by_name() -> None:
    a = np.ones((2, 3))
    where = "softmax_kl_without_log_forward"
    with pytest.raises(DtypeError, match=f"{where}: teacher_logits must be an array, got list"):
        softmax_kl_without_log_forward(a, a.tolist())
    with pytest.raises(DtypeError, match="student_logits float64, teacher_logits float32"):
        softmax_kl_without_log_forward(a, a.astype(np.float32))
    with pytest.raises(ShapeError, match=r"student_logits \(2, 3\), teacher_logits \(1, 3\)"):
        softmax_kl_without_log_forward(a, a[:1])
    with pytest.raises(ShapeError, match="the batchmean of an empty batch"):
        softmax_kl_without_log_forward(a[:0], a[:0])
    with pytest.raises(ConfigError, match="did you mean 'batchmean'"):
        softmax_kl_without_log_forward(a, a, reduction="batch_mean")
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0, got 0"):
        softmax_kl_without_log_forward(a, a, temperature=0)
    with pytest.raises(ShapeError, match=r"dloss must have the loss's shape \(2,\)"):
        softmax_kl_without_log_backward(1.0, a, a, reduction="none")
