"""The kernels of refkd.losses against PyTorch on the CPU, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import losses

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

BATCH = st.integers(1, 7)
CLASSES = st.integers(2, 9)
SEED = st.integers(0, 2**32 - 1)
REDUCTION = st.sampled_from(["mean", "sum", "none"])
few = settings(max_examples=20, deadline=None)


def cotangent(rng: np.random.Generator, reduction: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape if reduction == "none" else ()))


@given(batch=BATCH, classes=CLASSES, seed=SEED, smoothing=st.floats(0, 1), reduction=REDUCTION)
@few
def test_cross_entropy_with_class_indices(
    assert_parity, autograd, batch: int, classes: int, seed: int, smoothing: float, reduction: str
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.standard_normal((batch, classes)), rng.integers(classes, size=batch)
    dloss = cotangent(rng, reduction, (batch,))
    options = {"label_smoothing": smoothing, "reduction": reduction}
    target = torch.from_numpy(labels)
    value, dz = autograd(lambda z: F.cross_entropy(z, target, **options), (logits,), dloss)
    loss, log_q = losses.softmax_cross_entropy_forward(logits, labels, **options)
    # Near 0 the loss and its gradient are differences: of logits, and of q and the target.
    assert_parity(loss, value, 1.0)
    dlogits = losses.softmax_cross_entropy_backward(dloss, log_q, labels, **options)
    assert_parity(dlogits, dz, np.abs(dloss).max() / (batch if reduction == "mean" else 1))


@given(batch=BATCH, classes=CLASSES, seed=SEED, smoothing=st.floats(0, 1), reduction=REDUCTION)
@few
def test_cross_entropy_with_soft_targets(
    assert_parity, autograd, batch: int, classes: int, seed: int, smoothing: float, reduction: str
) -> None:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((batch, classes))
    targets = rng.dirichlet(np.ones(classes), batch)
    dloss = cotangent(rng, reduction, (batch,))
    options = {"label_smoothing": smoothing, "reduction": reduction}
    target = torch.from_numpy(targets)
    value, dz = autograd(lambda z: F.cross_entropy(z, target, **options), (logits,), dloss)
    loss, log_q = losses.softmax_cross_entropy_forward(logits, targets, **options)
    # Near 0 the loss and its gradient are differences: of logits, and of q and the target.
    assert_parity(loss, value, 1.0)
    dlogits = losses.softmax_cross_entropy_backward(dloss, log_q, targets, **options)
    assert_parity(dlogits, dz, np.abs(dloss).max() / (batch if reduction == "mean" else 1))


def test_cross_entropy_over_leading_axes(assert_parity, autograd) -> None:
    # PyTorch keeps the classes of (N, C, L) in the second place, refkd in the last.
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((3, 4, 5)), rng.integers(5, size=(3, 4))
    target = torch.from_numpy(labels)
    value, dz = autograd(lambda z: F.cross_entropy(z.movedim(-1, 1), target), (logits,), 1.0)
    loss, log_q = losses.softmax_cross_entropy_forward(logits, labels)
    assert_parity(loss, value)
    assert_parity(losses.softmax_cross_entropy_backward(1.0, log_q, labels), dz)


def torch_kl(a, b, temperature: float, reduction: str):
    """KL(softmax(a/T) ‖ softmax(b/T)): the second argument of kl_div is its first."""
    log_p = torch.log_softmax(a / temperature, dim=-1)
    log_q = torch.log_softmax(b / temperature, dim=-1)
    value = F.kl_div(log_q, log_p, reduction=reduction, log_target=True)
    return value.sum(dim=-1) if reduction == "none" else value


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@given(
    batch=BATCH,
    classes=CLASSES,
    seed=SEED,
    temperature=st.floats(0.5, 20),
    reduction=st.sampled_from(["batchmean", "mean", "sum", "none"]),
)
@few
def test_divergence_with_gradients_of_both_sides(
    assert_parity, autograd, batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    rng = np.random.default_rng(seed)
    a, b = 3 * rng.standard_normal((2, batch, classes))
    dloss = cotangent(rng, reduction, (batch,))
    options = {"temperature": temperature, "reduction": reduction}
    value, da, db = autograd(lambda p, q: torch_kl(p, q, **options), (a, b), dloss)
    loss, log_p, log_q = losses.softmax_kl_forward(a, b, **options)
    # The terms p (log p − log q) cancel: their size, not the sum's, is what is rounded.
    terms = np.abs(np.exp(log_p) * (log_p - log_q)).sum()
    assert_parity(loss, value, terms)
    ours_a, ours_b = losses.softmax_kl_backward(dloss, log_p, log_q, **options)
    # So do q − p and ℓ − ⟨p, ℓ⟩ where the two distributions are close.
    unit = np.abs(dloss).max() * (1 + np.abs(log_p - log_q).max()) / (temperature * batch * classes)
    assert_parity(ours_a, da, unit)
    assert_parity(ours_b, db, unit)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@given(
    batch=BATCH,
    classes=CLASSES,
    seed=SEED,
    temperature=st.floats(0.5, 20),
    reduction=st.sampled_from(["batchmean", "mean", "sum", "none"]),
)
@few
def test_divergence_of_a_softmax_without_its_logarithm(
    assert_parity, autograd, batch: int, classes: int, seed: int, temperature: float, reduction: str
) -> None:
    rng = np.random.default_rng(seed)
    z, v = 3 * rng.standard_normal((2, batch, classes))
    dloss = cotangent(rng, reduction, (batch,))
    t = torch.softmax(torch.from_numpy(v) / temperature, dim=-1)

    def divergence(a):
        value = F.kl_div(torch.softmax(a / temperature, dim=-1), t, reduction=reduction)
        return value.sum(dim=-1) if reduction == "none" else value

    value, dz = autograd(divergence, (z,), dloss)
    options = {"temperature": temperature, "reduction": reduction}
    loss, s, ours_t = losses.softmax_kl_without_log_forward(z, v, **options)
    assert_parity(loss, value)
    # t − ⟨t, s⟩ is a difference of probabilities.
    unit = np.abs(dloss).max() / (temperature * batch * classes)
    assert_parity(losses.softmax_kl_without_log_backward(dloss, s, ours_t, **options), dz, unit)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    seed=SEED,
    reduction=REDUCTION,
)
@few
def test_mse(assert_parity, autograd, shape: tuple[int, ...], seed: int, reduction: str) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, *shape))
    dloss = cotangent(rng, reduction, shape)
    theirs = autograd(lambda a, b: F.mse_loss(a, b, reduction=reduction), (x, y), dloss)
    ours = (
        losses.mse_forward(x, y, reduction=reduction),
        *losses.mse_backward(dloss, x, y, reduction=reduction),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_parity(a, b)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    seed=SEED,
    reduction=REDUCTION,
    delta=st.floats(0.01, 10),
)
@few
def test_huber(
    assert_parity, autograd, shape: tuple[int, ...], seed: int, reduction: str, delta: float
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, *shape))
    dloss = cotangent(rng, reduction, shape)
    options = {"delta": delta, "reduction": reduction}
    theirs = autograd(lambda a, b: F.huber_loss(a, b, **options), (x, y), dloss)
    ours = (
        losses.huber_forward(x, y, **options),
        *losses.huber_backward(dloss, x, y, **options),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_parity(a, b)
