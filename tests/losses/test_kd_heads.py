"""The distillation loss against several heads: what a sum over teachers is, and is not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, ShapeError
from refkd.losses import (
    KDSpec,
    distillation_loss,
    kd_backward,
    kd_forward,
    kd_heads_backward,
    kd_heads_forward,
    softmax_kl_forward,
)
from refkd.losses.spec import DIVERGENCES
from refkd.ops import log_softmax_forward, softmax_forward

EPS = np.finfo(np.float64).eps
SEED = st.integers(0, 2**32 - 1)
GOOGLENET = (1.0, 0.3, 0.3)
SPECS = [
    KDSpec(3.0, 0.3, 0.7, t_squared=t_squared, reduction=reduction, divergence=divergence)
    for t_squared, reduction, divergence in itertools.product(
        (True, False), ("batchmean", "mean", "sum"), DIVERGENCES
    )
]
each_spec = pytest.mark.parametrize(
    "spec", SPECS, ids=lambda s: f"{s.divergence}-{s.reduction}-{s.t_squared}"
)
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def draw(
    seed: int, heads: int, batch: int = 4, classes: int = 5
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return a student, the heads of a teacher, and labels."""
    rng = np.random.default_rng(seed)
    z, *v = 3 * rng.standard_normal((1 + heads, batch, classes))
    return z, v, rng.integers(classes, size=batch)


def value_and_gradient(z, heads, labels, spec: KDSpec, weights) -> tuple[float, np.ndarray]:
    terms, saved = kd_heads_forward(z, heads, labels, spec, weights)
    return float(terms.loss), kd_heads_backward(1.0, saved, labels, spec, weights)


@each_spec
def test_one_head_of_weight_one_is_the_plain_loss_bit_for_bit(spec: KDSpec) -> None:
    z, (v,), labels = draw(0, 1)
    plain, plain_saved = kd_forward(z, v, labels, spec)
    terms, saved = kd_heads_forward(z, [v], labels, spec, (1.0,))
    assert terms == plain
    expected = kd_backward(0.7, plain_saved, labels, spec)
    np.testing.assert_array_equal(kd_heads_backward(0.7, saved, labels, spec, (1.0,)), expected)


@each_spec
@given(batch=st.integers(1, 4), classes=st.integers(1, 5), seed=SEED, labelled=st.booleans())
@settings(max_examples=8, deadline=None)
def test_backward_is_the_complex_step_of_forward(
    spec: KDSpec, batch: int, classes: int, seed: int, labelled: bool
) -> None:
    z, heads, labels = draw(seed, 3, batch, classes)
    if not labelled:
        spec, labels = replace(spec, hard_weight=0.0), None
    u = np.random.default_rng(seed + 1).standard_normal(z.shape)
    _, saved = kd_heads_forward(z, heads, labels, spec, GOOGLENET)
    dz = kd_heads_backward(0.7, saved, labels, spec, GOOGLENET)
    step = kd_heads_forward(z + 1e-30j * u, heads, labels, spec, GOOGLENET)[0].loss.imag / 1e-30
    scale = (1 + 1.6 * spec.effective_soft_weight * batch) * (1 + np.abs(z - heads).max())
    assert abs((dz * u).sum() - 0.7 * step) <= 50 * EPS * scale * np.abs(u).sum()


@each_divergence
def test_labels_count_once_and_each_head_by_its_weight(divergence: str) -> None:
    z, heads, labels = draw(1, 3)
    spec = KDSpec(3.0, 0.3, 0.7, divergence=divergence)
    terms, _ = kd_heads_forward(z, heads, labels, spec, GOOGLENET)
    single = [kd_forward(z, v, labels, spec)[0] for v in heads]
    assert terms.hard == single[0].hard
    soft = sum(w * term.soft for w, term in zip(GOOGLENET, single, strict=True))
    assert float(terms.soft) == pytest.approx(float(soft), rel=8 * EPS)
    expected = 0.3 * terms.hard + 0.7 * 9 * terms.soft
    assert float(terms.loss) == pytest.approx(float(expected), rel=8 * EPS)


def test_gradient_of_googlenet_as_it_was_intended() -> None:
    z, heads, labels = draw(2, 3)
    spec = KDSpec.preset("googlenet-intended")
    _, dz = value_and_gradient(z, heads, labels, spec, GOOGLENET)
    s = softmax_forward(z, temperature=5)
    soft = sum(
        w * (s - softmax_forward(v, temperature=5)) for w, v in zip(GOOGLENET, heads, strict=True)
    )
    expected = 0.55 * (softmax_forward(z) - np.eye(5)[labels]) / 4 + 0.45 / (5 * 4) * soft
    assert np.abs(dz - expected).max() <= 16 * EPS


def test_gradient_of_googlenet_as_it_was_published() -> None:
    z, heads, labels = draw(3, 3)
    spec = KDSpec.preset("googlenet-published")
    _, dz = value_and_gradient(z, heads, labels, spec, GOOGLENET)
    s = softmax_forward(z, temperature=5)
    soft = np.zeros_like(z)
    for weight, v in zip(GOOGLENET, heads, strict=True):
        t = softmax_forward(v, temperature=5)
        soft += weight * s * (t - (t * s).sum(axis=1, keepdims=True))
    expected = 0.55 * (softmax_forward(z) - np.eye(5)[labels]) / 4 - 0.45 / (5 * 4) * soft
    assert np.abs(dz - expected).max() <= 16 * EPS


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "reverse_kl"])
@given(seed=SEED, weights=st.lists(st.floats(0.1, 2), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_the_heads_teach_what_the_mean_of_their_probabilities_would(
    divergence: str, seed: int, weights: list[float]
) -> None:
    z, heads, labels = draw(seed, len(weights))
    spec = KDSpec(3.0, 0.3, 0.7, divergence=divergence)
    _, dz = value_and_gradient(z, heads, labels, spec, weights)
    shares = np.array(weights) / sum(weights)
    mean = sum(a * softmax_forward(v, temperature=3) for a, v in zip(shares, heads, strict=True))
    of_mean = replace(spec, soft_weight=0.7 * sum(weights))
    _, expected = distillation_loss(z, 3 * np.log(mean), labels, of_mean)
    assert np.abs(dz - expected).max() <= 256 * EPS * (1 + sum(weights))


def test_to_the_reverse_divergence_they_teach_what_the_mean_of_their_logits_would() -> None:
    z, heads, labels = draw(4, 3)
    spec = KDSpec(3.0, 0.3, 0.7, divergence="reverse_kl")
    _, dz = value_and_gradient(z, heads, labels, spec, GOOGLENET)
    mean = sum(w * v for w, v in zip(GOOGLENET, heads, strict=True)) / 1.6
    _, expected = distillation_loss(z, mean, labels, replace(spec, soft_weight=0.7 * 1.6))
    assert np.abs(dz - expected).max() <= 256 * EPS


def test_the_value_exceeds_that_of_the_mean_by_how_far_the_heads_disagree() -> None:
    z, heads, _ = draw(5, 3)
    spec = KDSpec(1.0, 0.0, 1.0)
    value, _ = value_and_gradient(z, heads, None, spec, GOOGLENET)
    mean = sum(w * softmax_forward(v) for w, v in zip(GOOGLENET, heads, strict=True)) / 1.6
    of_mean, _ = distillation_loss(z, np.log(mean), None, replace(spec, soft_weight=1.6))
    disagreement = sum(
        w * softmax_kl_forward(v, np.log(mean))[0] for w, v in zip(GOOGLENET, heads, strict=True)
    )
    assert disagreement > 0.1
    assert value - of_mean == pytest.approx(disagreement, rel=1e-13)


@each_divergence
def test_the_order_of_the_heads_does_not_matter(divergence: str) -> None:
    z, heads, labels = draw(6, 3)
    spec = KDSpec(3.0, 0.3, 0.7, divergence=divergence)
    value, dz = value_and_gradient(z, heads, labels, spec, (1.0, 0.3, 0.2))
    turned, dturned = value_and_gradient(z, heads[::-1], labels, spec, (0.2, 0.3, 1.0))
    assert value == pytest.approx(turned, rel=8 * EPS)
    assert np.abs(dz - dturned).max() <= 32 * EPS


@each_divergence
def test_a_head_of_weight_zero_is_not_listened_to(divergence: str) -> None:
    z, heads, labels = draw(7, 3)
    spec = KDSpec(3.0, 0.3, 0.7, divergence=divergence)
    for weights, kept in (((1.0, 0.0, 0.3), [0, 2]), ((0.0, 1.0, 0.3), [1, 2])):
        value, dz = value_and_gradient(z, heads, labels, spec, weights)
        rest = [heads[i] for i in kept]
        without, dwithout = value_and_gradient(z, rest, labels, spec, (1.0, 0.3))
        assert value == pytest.approx(without, rel=4 * EPS)
        np.testing.assert_allclose(dz, dwithout, rtol=0, atol=4 * EPS)


def test_numpy_weights_keep_float32() -> None:
    z, heads, labels = draw(8, 2)
    z, heads = z.astype(np.float32), [v.astype(np.float32) for v in heads]
    spec, weights = KDSpec(3.0, 0.3, 0.7), np.array([0.9, 0.37])
    terms, saved = kd_heads_forward(z, heads, labels, spec, tuple(weights))
    dz = kd_heads_backward(1.0, saved, labels, spec, tuple(weights))
    assert {a.dtype for a in (*terms, dz)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("heads", "weights"), [(2, (1.0,)), (1, (1.0, 0.3)), (0, ())])
def test_one_weight_for_each_head_is_asked_for(heads: int, weights: tuple[float, ...]) -> None:
    z, v, labels = draw(9, heads)
    words = f"one weight for each teacher head, at least one, got {heads} heads"
    with pytest.raises(ConfigError, match=words):
        kd_heads_forward(z, v, labels, KDSpec(3.0, 0.3, 0.7), weights)


def test_what_does_not_fit_is_refused() -> None:
    z, heads, labels = draw(10, 2)
    spec = KDSpec(3.0, 0.3, 0.7)
    with pytest.raises(ConfigError, match="soft_weight must be a finite number >= 0"):
        kd_heads_forward(z, heads, labels, spec, (1.0, -0.3))
    with pytest.raises(ShapeError, match=r"hard_weight=0\.3 needs labels, got None"):
        kd_heads_forward(z, heads, None, spec, (1.0, 0.3))
    with pytest.raises(ShapeError, match=r"teacher_logits \(4, 4\)"):
        kd_heads_forward(z, [heads[0], heads[1][:, :4]], labels, spec, (1.0, 0.3))


def test_probabilities_that_underflow_in_one_head_are_finite() -> None:
    z = np.array([[0.0, 1e4]])
    heads = [np.array([[1e4, 0.0]]), np.array([[0.0, 0.0]])]
    terms, _ = kd_heads_forward(z, heads, None, KDSpec(1.0, 0.0, 1.0), (1.0, 1.0))
    log_half = log_softmax_forward(heads[1])[0, 0]
    assert float(terms.soft) == pytest.approx(1e4 + (log_half + 5e3), rel=4 * EPS)
