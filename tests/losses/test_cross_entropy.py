"""Softmax cross-entropy: its gradient, label smoothing, reductions and extreme logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.losses import softmax_cross_entropy_backward as backward
from refkd.losses import softmax_cross_entropy_forward as forward
from refkd.ops import softmax_forward

EPS = np.finfo(np.float64).eps
BATCH = st.integers(1, 6)
CLASSES = st.integers(2, 7)
SEED = st.integers(0, 2**32 - 1)
SMOOTHING = st.sampled_from(["uniform", "others"])
REDUCTION = st.sampled_from(["mean", "sum"])


def draw(seed: int, batch: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, labels and soft targets."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((batch, classes))
    return logits, rng.integers(classes, size=batch), rng.dirichlet(np.ones(classes), batch)


def implied_targets(labels: np.ndarray, classes: int, **options) -> np.ndarray:
    """Recover the smoothed targets from the gradient q − t."""
    _, log_q = forward(np.zeros((len(labels), classes)), labels)
    dz = backward(1.0, log_q, labels, reduction="sum", **options)
    return np.exp(log_q) - dz


@given(BATCH, CLASSES, SEED, st.floats(0, 1), SMOOTHING, REDUCTION, st.booleans())
@settings(max_examples=60, deadline=None)
def test_gradient_sums_to_zero_over_the_classes(
    batch: int, classes: int, seed: int, epsilon: float, smoothing: str, reduction: str, soft: bool
) -> None:
    logits, labels, targets = draw(seed, batch, classes)
    options = {"label_smoothing": epsilon, "smoothing": smoothing, "reduction": reduction}
    y = targets if soft else labels
    _, log_q = forward(logits, y, **options)
    dz = backward(1.0, log_q, y, **options)
    assert np.abs(dz.sum(axis=-1)).max() <= 8 * EPS


@given(BATCH, CLASSES, SEED, st.floats(0, 1), SMOOTHING, REDUCTION, st.booleans())
@settings(max_examples=60, deadline=None)
def test_backward_is_the_complex_step_in_a_random_direction(
    batch: int, classes: int, seed: int, epsilon: float, smoothing: str, reduction: str, soft: bool
) -> None:
    logits, labels, targets = draw(seed, batch, classes)
    targets = 2 * targets  # no distribution: the factor Σ t in the gradient counts
    options = {"label_smoothing": epsilon, "smoothing": smoothing, "reduction": reduction}
    y = targets if soft else labels
    u = np.random.default_rng(seed + 1).standard_normal(logits.shape)
    _, log_q = forward(logits, y, **options)
    dz = backward(0.7, log_q, y, **options)
    loss, _ = forward(logits + 1e-30j * u, y, **options)
    assert abs((dz * u).sum() - 0.7 * loss.imag / 1e-30) <= 100 * EPS * np.abs(u).sum()


@given(BATCH, CLASSES, SEED)
def test_class_indices_are_one_hot_targets(batch: int, classes: int, seed: int) -> None:
    logits, labels, _ = draw(seed, batch, classes)
    one_hot = np.eye(classes)[labels]
    loss, log_q = forward(logits, labels)
    np.testing.assert_array_equal(loss, forward(logits, one_hot)[0])
    np.testing.assert_array_equal(backward(1.0, log_q, labels), backward(1.0, log_q, one_hot))
    picked = -log_q[np.arange(batch), labels]
    assert abs(loss - picked.mean()) <= 4 * EPS * picked.sum()


@given(BATCH, CLASSES, SEED)
def test_reductions_relate_by_the_number_of_examples(batch: int, classes: int, seed: int) -> None:
    logits, labels, _ = draw(seed, batch, classes)
    losses = {r: forward(logits, labels, reduction=r)[0] for r in ("mean", "sum", "none")}
    assert losses["none"].shape == (batch,)
    assert losses["sum"] == losses["none"].sum()
    assert losses["mean"] == losses["sum"] / batch
    _, log_q = forward(logits, labels)
    each = backward(np.full(batch, 2.0), log_q, labels, reduction="none")
    np.testing.assert_array_equal(each, backward(2.0, log_q, labels, reduction="sum"))
    np.testing.assert_allclose(each / batch, backward(2.0, log_q, labels), rtol=4 * EPS)


def test_a_cotangent_per_example_weights_its_row() -> None:
    logits, labels, _ = draw(0, 3, 4)
    _, log_q = forward(logits, labels, reduction="none")
    rows = backward(np.ones(3), log_q, labels, reduction="none")
    weighted = backward(np.array([2.0, 0.0, -4.0]), log_q, labels, reduction="none")
    np.testing.assert_array_equal(weighted, rows * np.array([[2.0], [0.0], [-4.0]]))


def test_leading_axes_are_examples() -> None:
    logits, labels, _ = draw(1, 6, 5)
    loss, log_q = forward(logits.reshape(2, 3, 5), labels.reshape(2, 3))
    flat_loss, flat_log_q = forward(logits, labels)
    assert loss == pytest.approx(flat_loss, rel=4 * EPS)
    dz = backward(1.0, log_q, labels.reshape(2, 3))
    np.testing.assert_array_equal(dz.reshape(6, 5), backward(1.0, flat_log_q, labels))


@given(CLASSES, st.floats(0, 1), SMOOTHING)
def test_smoothed_targets_sum_to_one(classes: int, epsilon: float, smoothing: str) -> None:
    t = implied_targets(np.arange(classes), classes, label_smoothing=epsilon, smoothing=smoothing)
    assert np.abs(t.sum(axis=1) - 1).max() <= 4 * EPS


@pytest.mark.parametrize(
    ("smoothing", "at_label", "elsewhere"),
    [("uniform", 1 - 0.1 + 0.1 / 5, 0.1 / 5), ("others", 1 - 0.1, 0.1 / 4)],
)
def test_who_receives_the_smoothed_mass(smoothing: str, at_label: float, elsewhere: float) -> None:
    t = implied_targets(np.array([2]), 5, label_smoothing=0.1, smoothing=smoothing)
    expected = [[elsewhere, elsewhere, at_label, elsewhere, elsewhere]]
    np.testing.assert_allclose(t, expected, rtol=8 * EPS)


@given(CLASSES, st.floats(0, 0.5), SEED)
def test_the_two_conventions_differ_by_the_factor_k_over_k_minus_one(
    classes: int, epsilon: float, seed: int
) -> None:
    logits, labels, _ = draw(seed, 3, classes)
    uniform, _ = forward(
        logits, labels, label_smoothing=epsilon * classes / (classes - 1), smoothing="uniform"
    )
    others, _ = forward(logits, labels, label_smoothing=epsilon, smoothing="others")
    assert abs(uniform - others) <= 64 * EPS * (1 + abs(others))


def test_full_uniform_smoothing_forgets_the_label() -> None:
    logits, labels, _ = draw(2, 4, 5)
    other_labels = (labels + 1) % 5
    options = {"label_smoothing": 1.0, "smoothing": "uniform"}
    assert forward(logits, labels, **options)[0] == forward(logits, other_labels, **options)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_are_exact(dtype: type[np.floating]) -> None:
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], dtype)
    labels = np.array([0, 1])
    loss, log_q = forward(logits, labels, reduction="none")
    np.testing.assert_array_equal(loss, [0, 2e4])
    dz = backward(1.0, log_q, labels, reduction="sum")
    np.testing.assert_array_equal(dz, [[0, 0], [1, -1]])
    assert loss.dtype == dz.dtype == dtype


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_class_that_is_ruled_out_counts_only_where_it_is_a_target(epsilon: float) -> None:
    logits = np.array([[1.0, 2.0, -np.inf]])
    with np.errstate(invalid="ignore"):
        loss, log_q = forward(logits, np.array([1]), label_smoothing=epsilon)
    assert loss == (np.inf if epsilon else pytest.approx(math.log1p(math.exp(-1)), rel=4 * EPS))
    dz = backward(1.0, log_q, np.array([1]), label_smoothing=epsilon)
    np.testing.assert_allclose(dz[0, 2], -epsilon / 3, atol=EPS)


def test_dtype_is_kept_for_any_kind_of_smoothing() -> None:
    logits, labels = np.eye(3, dtype=np.float32), np.arange(3)
    for epsilon in (0, 1, 0.1, np.float64(0.1), np.float32(0.1)):
        loss, log_q = forward(logits, labels, label_smoothing=epsilon)
        dz = backward(1.0, log_q, labels, label_smoothing=epsilon)
        assert loss.dtype == dz.dtype == np.float32


def test_uniform_logits_cost_the_logarithm_of_the_classes() -> None:
    loss, _ = forward(np.full((3, 8), 1e4), np.array([0, 3, 7]))
    assert loss == pytest.approx(math.log(8), rel=2 * EPS)


def test_a_single_class_costs_nothing() -> None:
    loss, log_q = forward(np.array([[-7.0]]), np.array([0]))
    assert loss == 0
    np.testing.assert_array_equal(backward(1.0, log_q, np.array([0])), [[0]])


def test_the_gradient_of_a_batch_of_one_is_q_minus_y() -> None:
    logits = np.array([[0.3, -1.2, 2.0]])
    _, log_q = forward(logits, np.array([1]))
    expected = softmax_forward(logits) - [[0, 1, 0]]
    np.testing.assert_allclose(backward(1.0, log_q, np.array([1])), expected, atol=2 * EPS)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        ([0, 1], DtypeError, "targets must be an integer array .* got list"),
        (np.array([True, False]), DtypeError, "targets must be an integer array .* got bool"),
        (np.ones((2, 3), np.float32), DtypeError, "targets float32"),
        (np.array([0, 1, 2]), ShapeError, r"must have shape \(2,\), got \(3,\)"),
        (np.array([[0], [1]]), ShapeError, r"must have shape \(2,\), got \(2, 1\)"),
        (np.ones((2, 4)), ShapeError, r"must have shape \(2, 3\), got \(2, 4\)"),
        (np.ones(2), ShapeError, r"must have shape \(2, 3\), got \(2,\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"softmax_cross_entropy_forward: .*{words}"):
        forward(np.ones((2, 3)), targets)


def test_logits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DtypeError, match="logits must be an array, got list"):
        forward([[1.0, 2.0]], np.array([0]))
    with pytest.raises(ShapeError, match=r"expected logits \(\.\.\., C\), C > 0"):
        forward(np.ones((2, 0)), np.array([0, 0]))
    with pytest.raises(ShapeError, match="the mean of an empty batch"):
        forward(np.ones((0, 3)), np.ones(0, int))
    assert forward(np.ones((0, 3)), np.ones(0, int), reduction="sum")[0] == 0


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan, "0.1"])
def test_a_smoothing_outside_the_unit_interval_is_refused(epsilon) -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing must be a number in \[0, 1\]"):
        forward(np.ones((2, 3)), np.array([0, 1]), label_smoothing=epsilon)


def test_unknown_options_are_refused_with_a_suggestion() -> None:
    logits, labels = np.ones((2, 3)), np.array([0, 1])
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        forward(logits, labels, smoothing="unifrom")
    with pytest.raises(ConfigError, match=r"'mean', 'sum', 'none', got 'batchmean'"):
        forward(logits, labels, reduction="batchmean")


def test_smoothing_to_the_others_needs_others() -> None:
    with pytest.raises(ShapeError, match="at least 2 classes, got 1"):
        forward(np.ones((2, 1)), np.array([0, 0]), label_smoothing=0.1, smoothing="others")
