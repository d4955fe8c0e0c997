"""The distillation loss of any spec: its gradient, its value, and the bad input it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DataError, DtypeError, RefkdError, ShapeError
from refkd.losses import KDSpec, distillation_loss, kd_backward, kd_forward
from refkd.losses.spec import DIVERGENCES

EPS = np.finfo(np.float64).eps
SEED = st.integers(0, 2**32 - 1)
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
SPECS = [
    KDSpec(3.0, 0.3, 0.7, t_squared=t_squared, reduction=reduction, divergence=divergence)
    for t_squared, reduction, divergence in itertools.product(
        (True, False), ("batchmean", "mean", "sum"), DIVERGENCES
    )
]


def draw(seed: int, batch: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, v = 3 * rng.standard_normal((2, batch, classes))
    return z, v, rng.integers(classes, size=batch)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.divergence}-{s.reduction}-{s.t_squared}")
@given(batch=st.integers(1, 5), classes=st.integers(1, 6), seed=SEED, labelled=st.booleans())
@settings(max_examples=12, deadline=None)
def test_backward_is_the_complex_step_of_forward(
    spec: KDSpec, batch: int, classes: int, seed: int, labelled: bool
) -> None:
    z, v, labels = draw(seed, batch, classes)
    if not labelled:
        spec, labels = KDSpec(3.0, 0.0, 0.7, spec.t_squared, spec.reduction, spec.divergence), None
    u = np.random.default_rng(seed + 1).standard_normal(z.shape)
    _, saved = kd_forward(z, v, labels, spec)
    dz = kd_backward(0.7, saved, labels, spec)
    terms, _ = kd_forward(z + 1e-30j * u, v, labels, spec)
    scale = (1 + spec.effective_soft_weight * batch) * (1 + np.abs(z - v).max())
    assert abs((dz * u).sum() - 0.7 * terms.loss.imag / 1e-30) <= 50 * EPS * scale * (
        np.abs(u).sum()
    )


@each_divergence
@given(batch=st.integers(1, 5), classes=st.integers(1, 6), seed=SEED, temperature=st.floats(0.5, 9))
@settings(max_examples=20, deadline=None)
def test_gradient_sums_to_zero_over_the_classes(
    divergence: str, batch: int, classes: int, seed: int, temperature: float
) -> None:
    z, v, labels = draw(seed, batch, classes)
    spec = KDSpec(temperature, 0.3, 0.7, divergence=divergence)
    _, dz = distillation_loss(z, v, labels, spec)
    scale = (1 + temperature) * (1 + np.abs(z - v).max())
    assert np.abs(dz.sum(axis=1)).max() <= 16 * EPS * scale


@each_divergence
def test_the_loss_is_the_weighted_sum_of_its_terms(divergence: str) -> None:
    z, v, labels = draw(0, 4, 5)
    spec = KDSpec(3.0, 0.3, 0.7, divergence=divergence)
    terms, _ = kd_forward(z, v, labels, spec)
    expected = 0.3 * terms.hard + 0.7 * 9 * terms.soft
    assert float(terms.loss) == pytest.approx(float(expected), rel=8 * EPS)
    value, _ = distillation_loss(z, v, labels, spec)
    assert isinstance(value, float)
    assert value == terms.loss


@each_divergence
def test_a_soft_loss_alone_needs_no_labels(divergence: str) -> None:
    z, v, labels = draw(1, 4, 5)
    spec = KDSpec(3.0, 0.0, 0.7, divergence=divergence)
    value, dz = distillation_loss(z, v, None, spec)
    with_labels_value, with_labels_dz = distillation_loss(z, v, labels, spec)
    assert value == pytest.approx(with_labels_value, rel=4 * EPS)
    np.testing.assert_allclose(dz, with_labels_dz, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "kl_without_log"])
def test_a_student_that_equals_its_teacher_has_no_soft_gradient(divergence: str) -> None:
    z, _, _ = draw(2, 4, 5)
    _, dz = distillation_loss(z, z.copy(), None, KDSpec(3.0, 0.0, 1.0, divergence=divergence))
    assert not dz.any()


def test_cross_entropy_exceeds_the_divergence_by_the_entropy_of_the_teacher() -> None:
    z, v, labels = draw(3, 4, 5)
    kl, dkl = distillation_loss(z, v, labels, KDSpec(3.0, 0.3, 0.7))
    ce, dce = distillation_loss(z, v, labels, KDSpec(3.0, 0.3, 0.7, divergence="cross_entropy"))
    t = np.exp(v / 3) / np.exp(v / 3).sum(axis=1, keepdims=True)
    entropy = -(t * np.log(t)).sum() / 4
    assert ce - kl == pytest.approx(0.7 * 9 * entropy, rel=1e-14)
    np.testing.assert_array_equal(dkl, dce)


def test_mse_of_probabilities_by_hand() -> None:
    # s = (½, ½) and t = (¾, ¼): Σ d² = ⅛; s⊙(d − ⟨s, d⟩) = (−⅛, ⅛).
    z, v = np.zeros((1, 2)), np.array([[2 * math.log(3), 0.0]])
    spec = KDSpec(2.0, 0.0, 1.0, divergence="mse_probabilities", reduction="mean")
    value, dz = distillation_loss(z, v, None, spec)
    assert value == pytest.approx(4 * 0.125 / 2, rel=8 * EPS)
    np.testing.assert_allclose(dz, [[-0.25, 0.25]], rtol=8 * EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_divergence
def test_extreme_logits_are_finite_and_exact(divergence: str, dtype: type[np.floating]) -> None:
    z, v = np.array([[1e4, -1e4]], dtype), np.array([[-1e4, 1e4]], dtype)
    value, dz = distillation_loss(z, v, np.array([1]), KDSpec(2.0, 0.5, 0.5, divergence=divergence))
    soft = {"mse_probabilities": 2.0, "kl_without_log": 0.0}.get(divergence, 1e4)
    assert value == 0.5 * 2e4 + 0.5 * 4 * soft
    # The student is certain: no slope but in the losses that compare it with the logarithm.
    slope = 0.5 + (0.5 * 2 if divergence in ("kl", "cross_entropy") else 0)
    np.testing.assert_array_equal(dz, [[slope, -slope]])
    assert dz.dtype == dtype


def refused(divergence: str, **change) -> RefkdError:
    arguments = {
        "student_logits": np.ones((2, 3)),
        "teacher_logits": np.zeros((2, 3)),
        "labels": np.array([0, 1]),
        "spec": KDSpec(2.0, 0.5, 0.5, divergence=divergence),
    } | change
    with pytest.raises(RefkdError) as caught:
        distillation_loss(**arguments)
    return caught.value


@each_divergence
@pytest.mark.parametrize("name", ["student_logits", "teacher_logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_by_name(
    divergence: str, name: str, value: float
) -> None:
    logits = np.ones((2, 3))
    logits[1, 2] = value
    error = refused(divergence, **{name: logits})
    assert isinstance(error, DataError)
    assert f"{name} must be finite" in str(error)


@each_divergence
@pytest.mark.parametrize("bad", [3, -1, -100, 10**9])
def test_a_label_out_of_range_is_refused_and_none_is_ignored(divergence: str, bad: int) -> None:
    error = refused(divergence, labels=np.array([0, bad]))
    assert isinstance(error, DataError)
    assert "labels must lie in [0, 3)" in str(error)
    assert str(bad) in str(error)
    assert "none is ignored" in str(error)


@each_divergence
@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1], "list"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([True, False]), "bool"),
        (np.ones((2, 3)) / 3, "float64"),
        (np.array(["a", "b"]), "<U1"),
    ],
)
def test_labels_that_are_no_integer_array_are_refused(divergence: str, labels, kind: str) -> None:
    error = refused(divergence, labels=labels)
    assert isinstance(error, DtypeError)
    assert f"labels must be an integer array, got {kind}" in str(error)


@each_divergence
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), (2, 3), ()])
def test_labels_of_another_shape_are_refused(divergence: str, shape: tuple[int, ...]) -> None:
    error = refused(divergence, labels=np.zeros(shape, np.int64))
    assert isinstance(error, ShapeError)
    assert f"labels must have shape (2,), got {shape}" in str(error)


@each_divergence
def test_a_hard_weight_without_labels_is_refused(divergence: str) -> None:
    error = refused(divergence, labels=None)
    assert isinstance(error, ShapeError)
    assert "hard_weight=0.5 needs labels, got None" in str(error)


@each_divergence
@pytest.mark.parametrize("name", ["student_logits", "teacher_logits"])
def test_logits_of_a_wrong_kind_are_refused_by_name(divergence: str, name: str) -> None:
    for value, words in (
        (np.ones((2, 3), np.float32), f"{name} float32"),
        (np.ones((2, 3), np.int64), f"{name} int64"),
        ([[1.0] * 3] * 2, f"{name} must be an array, got list"),
        (np.ones((2, 3), np.complex128), f"{name} must be real"),
    ):
        error = refused(divergence, **{name: value})
        assert isinstance(error, DtypeError)
        assert words in str(error)


@each_divergence
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 3), (0, 3), (2, 0)])
def test_logits_that_are_no_batch_of_classes_are_refused(
    divergence: str, shape: tuple[int, ...]
) -> None:
    logits = np.ones(shape)
    for labels in (np.zeros(shape[:1], np.int64), np.zeros(shape[:-1], np.int64)):
        error = refused(divergence, student_logits=logits, teacher_logits=logits, labels=labels)
        assert isinstance(error, ShapeError)
        assert f"expected logits (B, C) with B, C > 0, got {shape}" in str(error)


@each_divergence
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (3, 3)])
def test_logits_of_two_shapes_are_refused_and_never_broadcast(
    divergence: str, shape: tuple[int, ...]
) -> None:
    error = refused(divergence, teacher_logits=np.ones(shape))
    assert isinstance(error, ShapeError)
    assert f"student_logits (2, 3), teacher_logits {shape}" in str(error)


@pytest.mark.parametrize("spec", ["hinton", None, {"temperature": 2.0}])
def test_what_is_no_spec_is_refused(spec) -> None:
    with pytest.raises(ConfigError, match="spec must be a KDSpec, got"):
        distillation_loss(np.ones((2, 3)), np.ones((2, 3)), np.array([0, 1]), spec)


def test_a_loss_that_overflows_is_an_error() -> None:
    logits = np.array([[3e38, -3e38]], np.float32)
    spec = KDSpec(1.0, 0.5, 0.5)
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(DataError, match="overflow"):
        distillation_loss(logits, logits[:, ::-1].copy(), np.array([1]), spec)
