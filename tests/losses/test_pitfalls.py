"""Mistakes in circulation, each as a runnable counter-example beside the right form.

They concern the loss; those of training (the modes of teacher and student, checkpoints,
unequal epochs) are shown where training is tested.
"""

from __future__ import annotations

import numpy as np
import pytest

from refkd.losses import (
    KDSpec,
    distillation_loss,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_kl_backward,
    softmax_kl_forward,
)
from refkd.ops import log_softmax_forward, softmax_backward, softmax_forward

EPS = np.finfo(np.float64).eps
T = 4.0
B, C = 6, 10


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher."""
    z, v = 3 * np.random.default_rng(0).standard_normal((2, B, C))
    return z, v


def soft_gradient(z: np.ndarray, v: np.ndarray, **options) -> np.ndarray:
    return distillation_loss(z, v, None, KDSpec(T, 0.0, 1.0, **options))[1]


def kldiv(log_input: np.ndarray, target: np.ndarray) -> float:
    """What nn.KLDivLoss(reduction="batchmean") computes from any two arrays."""
    return float((target * (np.log(target) - log_input)).sum() / len(target))


def test_the_default_mean_of_kldivloss_divides_by_the_classes_too(logits) -> None:
    z, v = logits
    right = soft_gradient(z, v, reduction="batchmean")
    np.testing.assert_allclose(soft_gradient(z, v, reduction="mean") * C, right, rtol=4 * EPS)
    s, t = softmax_forward(z, temperature=T), softmax_forward(v, temperature=T)
    elementwise_mean = (t * (np.log(t) - np.log(s))).mean()
    loss, _, _ = softmax_kl_forward(v, z, temperature=T, reduction="mean")
    assert loss == pytest.approx(elementwise_mean, rel=1e-13)


def test_a_softmax_where_a_log_softmax_is_due_makes_the_loss_negative(logits) -> None:
    z, v = logits
    s, t = softmax_forward(z, temperature=T), softmax_forward(v, temperature=T)
    assert kldiv(s, t) < 0 < kldiv(np.log(s), t)
    spec = KDSpec(T, 0.0, 1.0, t_squared=False, divergence="kl_without_log")
    assert distillation_loss(z, v, None, spec)[0] == pytest.approx(kldiv(s, t), rel=1e-14)
    # −H(t) − ⟨t, s⟩ is negative whatever the student does, its own teacher included.
    assert kldiv(t, t) < 0


def test_a_softmax_where_a_log_softmax_is_due_has_another_gradient(logits) -> None:
    z, v = logits
    s, t = softmax_forward(z, temperature=T), softmax_forward(v, temperature=T)
    stated = -s * (t - (t * s).sum(axis=1, keepdims=True)) / (B * T)
    by_chain_rule = softmax_backward(-t / B, s, temperature=T)
    np.testing.assert_allclose(by_chain_rule, stated, rtol=1e-13)
    without_log = soft_gradient(z, v, t_squared=False, divergence="kl_without_log")
    np.testing.assert_allclose(without_log, stated, rtol=1e-13)
    u = np.random.default_rng(1).standard_normal(z.shape)
    s_stepped = softmax_forward(z + 1e-30j * u, temperature=T)
    step = -(t * s_stepped).sum().imag / B / 1e-30
    assert (stated * u).sum() == pytest.approx(step, rel=1e-13)
    right = soft_gradient(z, v, t_squared=False)
    assert np.abs(stated - right).max() > 0.5 * np.abs(right).max()


def test_a_softmax_where_a_log_softmax_is_due_rewards_the_argmax(logits) -> None:
    _, v = logits
    t = softmax_forward(v, temperature=T)
    one_hot = np.eye(C)[v.argmax(axis=1)]
    assert kldiv(one_hot, t) < kldiv(t, t)
    # Even the perfect student is pushed on: up at the teacher's argmax.
    push = -soft_gradient(v, v, divergence="kl_without_log")
    np.testing.assert_array_equal(push.argmax(axis=1), v.argmax(axis=1))
    assert (push.max(axis=1) > 0).all()


def test_a_softmax_where_a_log_softmax_is_due_lets_a_certain_student_be_wrong(logits) -> None:
    _, v = logits
    wrong = 1e3 * np.eye(C)[v.argmin(axis=1)]
    assert np.abs(soft_gradient(wrong, v, divergence="kl_without_log")).max() < 1e-90
    assert np.abs(soft_gradient(wrong, v)).max() > 0.5 * T / B


def test_a_softmax_where_a_log_softmax_is_due_trains_without_end(logits) -> None:
    # Plain gradient descent from the teacher itself: away from it, to certainty.
    _, v = logits
    z, likeness, confidence = v.copy(), [], []
    for _ in range(5):
        for _ in range(200):
            z -= 20 * soft_gradient(z, v, divergence="kl_without_log")
        likeness.append(-softmax_kl_forward(v, z, temperature=T)[0])
        confidence.append(softmax_forward(z, temperature=T).max(axis=1).mean())
    assert likeness == sorted(likeness, reverse=True)
    assert confidence == sorted(confidence)
    assert confidence[-1] > 0.9
    np.testing.assert_array_equal(z.argmax(axis=1), v.argmax(axis=1))


def test_swapped_arguments_give_the_other_divergence(logits) -> None:
    z, v = logits
    log_s, log_t = (log_softmax_forward(a, temperature=T) for a in (z, v))
    swapped = kldiv(log_t, np.exp(log_s))
    reverse, _ = distillation_loss(
        z, v, None, KDSpec(T, 0.0, 1.0, t_squared=False, divergence="reverse_kl")
    )
    assert swapped == pytest.approx(reverse, rel=1e-13)
    right = soft_gradient(z, v)
    difference = np.abs(soft_gradient(z, v, divergence="reverse_kl") - right).max()
    assert difference > 0.05 * np.abs(right).max()


def test_swapped_arguments_go_unnoticed_near_the_teacher(logits) -> None:
    # Both divergences have one Hessian there, so a trained student hides the mistake.
    z, v = logits
    near = v + 1e-5 * z
    right = soft_gradient(near, v)
    difference = np.abs(soft_gradient(near, v, divergence="reverse_kl") - right).max()
    assert difference < 1e-4 * np.abs(right).max()


def test_a_missing_t_squared_makes_the_soft_gradient_t_squared_times_weaker(logits) -> None:
    z, v = logits
    weak = soft_gradient(z, v, t_squared=False)
    np.testing.assert_array_equal(weak * T**2, soft_gradient(z, v))


def test_a_missing_t_squared_lets_the_soft_gradient_fade_as_the_temperature_rises(logits) -> None:
    z, v = logits

    def size(temperature: float, t_squared: bool) -> float:
        spec = KDSpec(temperature, 0.0, 1.0, t_squared=t_squared)
        return float(np.abs(distillation_loss(z, v, None, spec)[1]).max())

    assert size(400.0, False) / size(200.0, False) == pytest.approx(1 / 4, rel=0.02)
    assert size(400.0, True) / size(200.0, True) == pytest.approx(1, rel=0.02)


def test_alpha_on_the_other_term_is_another_loss(logits) -> None:
    z, v = logits
    labels = np.arange(B) % C
    on_hard = KDSpec(T, 0.3, 0.7, alpha_weights="hard")
    on_soft = KDSpec(T, 0.7, 0.3, alpha_weights="soft")
    assert on_hard.alpha == pytest.approx(0.3)
    assert on_soft.alpha == pytest.approx(0.3)
    value, _ = distillation_loss(z, v, labels, on_hard)
    other, _ = distillation_loss(z, v, labels, on_soft)
    assert abs(value - other) > 0.01 * value


def test_the_logarithm_of_a_softmax_is_minus_infinity_where_it_underflows() -> None:
    z, v = np.array([[1e3, 0.0]]), np.array([[0.0, 1e3]])
    s = softmax_forward(z)
    assert s[0, 1] == 0
    with np.errstate(divide="ignore"):
        assert np.log(s)[0, 1] == -np.inf
    np.testing.assert_array_equal(log_softmax_forward(z), [[0, -1e3]])
    loss, log_t, log_s = softmax_kl_forward(v, z)
    assert loss == 1e3
    np.testing.assert_array_equal(softmax_kl_backward(1.0, log_t, log_s)[1], [[1, -1]])


def test_softening_the_teacher_alone_has_its_minimum_elsewhere(logits) -> None:
    _, v = logits
    t = softmax_forward(v, temperature=T)

    def gradient_of_unsoftened_student(z: np.ndarray) -> np.ndarray:
        _, log_q = softmax_cross_entropy_forward(z, t)
        return softmax_cross_entropy_backward(1.0, log_q, t)

    assert not soft_gradient(v, v.copy()).any()
    assert np.abs(gradient_of_unsoftened_student(v)).max() > 1e-2
    assert np.abs(gradient_of_unsoftened_student(v / T)).max() <= 4 * EPS


def test_the_teacher_passed_twice_teaches_nothing(logits) -> None:
    _, v = logits
    value, dz = distillation_loss(v, v, None, KDSpec(T, 0.0, 1.0))
    assert value == 0
    assert not dz.any()


def test_a_teacher_that_is_not_detached_receives_a_gradient(logits) -> None:
    z, v = logits
    _, log_t, log_s = softmax_kl_forward(v, z, temperature=T)
    dteacher, dstudent = softmax_kl_backward(1.0, log_t, log_s, temperature=T)
    assert np.abs(dteacher).max() > 0.1 * np.abs(dstudent).max()
    detached, same = softmax_kl_backward(1.0, log_t, log_s, temperature=T, need_dp=False)
    assert detached is None
    np.testing.assert_array_equal(same, dstudent)


def test_a_softmax_without_exp_in_the_denominator_is_no_distribution() -> None:
    z = np.array([0.0, 0.1, 0.5, 0.0])
    wrong = np.exp(z) / z.sum()
    assert wrong.sum() > 7
    assert softmax_forward(z).sum() == pytest.approx(1, rel=2 * EPS)
