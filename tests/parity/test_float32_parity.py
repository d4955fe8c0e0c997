"""The float32 error of the softmax family beside PyTorch's, both against refkd in float64.

The inputs are float32 numbers, which float64 holds exactly, so the reference is right to
all the digits float32 has. The claim: refkd's error is at most 4 times PyTorch's, plus
4 eps of the size of what was added up (PyTorch may be exact by luck, refkd need not be).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from refkd import losses, ops

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

EPS = float(np.finfo(np.float32).eps)
BATCH, CLASSES = 16, 10
cases = pytest.mark.parametrize(
    ("scale", "temperature", "seed"),
    [(s, t, seed) for s in (1.0, 30.0, 1e4) for t in (1.0, 3.0, 20.0) for seed in range(5)],
)


def draw(seed: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return student and teacher logits up to ±scale, and a cotangent."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.uniform(-1, 1, (2, BATCH, CLASSES))
    dy = rng.standard_normal((BATCH, CLASSES))
    return tuple(a.astype(np.float32) for a in (*logits, dy))


def assert_no_worse(
    ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray, scale: float = 0.0
) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    error, their_error = (np.abs(a.astype(np.float64) - exact).max() for a in (ours, theirs))
    assert error <= 4 * their_error + 4 * EPS * max(scale, np.abs(exact).max())


def both_precisions(function: Callable[..., tuple], *arrays: np.ndarray) -> list[tuple]:
    """Return the results in float32 and in float64."""
    return list(
        zip(function(*arrays), function(*(a.astype(np.float64) for a in arrays)), strict=True)
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@cases
def test_softmax(autograd, name: str, scale: float, temperature: float, seed: int) -> None:
    x, _, dy = draw(seed, scale)

    def refkd(x: np.ndarray, dy: np.ndarray) -> tuple:
        y = getattr(ops, f"{name}_forward")(x, temperature=temperature)
        return y, getattr(ops, f"{name}_backward")(dy, y, temperature=temperature)

    function = getattr(torch, name)
    theirs = autograd(lambda a: function(a / temperature, dim=-1), (x,), dy)
    # Probabilities are rounded at eps, and multiply dy/T in both gradients.
    for (ours, exact), their, unit in zip(
        both_precisions(refkd, x, dy), theirs, (1.0, np.abs(dy).max() / temperature), strict=True
    ):
        assert_no_worse(ours, their, exact, unit)


@cases
def test_cross_entropy(autograd, scale: float, temperature: float, seed: int) -> None:
    x, _, _ = draw(seed, scale / temperature)
    labels = np.random.default_rng(seed).integers(CLASSES, size=BATCH)
    target = torch.from_numpy(labels)

    def refkd(x: np.ndarray) -> tuple:
        loss, log_q = losses.softmax_cross_entropy_forward(x, labels, label_smoothing=0.1)
        return loss, losses.softmax_cross_entropy_backward(1.0, log_q, labels, label_smoothing=0.1)

    theirs = autograd(lambda z: F.cross_entropy(z, target, label_smoothing=0.1), (x,))
    for (ours, exact), their, unit in zip(
        both_precisions(refkd, x), theirs, (1.0, 1 / BATCH), strict=True
    ):
        assert_no_worse(ours, their, exact, unit)


@cases
def test_divergence(autograd, scale: float, temperature: float, seed: int) -> None:
    a, b, _ = draw(seed, scale)

    def refkd(a: np.ndarray, b: np.ndarray) -> tuple:
        loss, log_p, log_q = losses.softmax_kl_forward(a, b, temperature=temperature)
        return loss, *losses.softmax_kl_backward(1.0, log_p, log_q, temperature=temperature)

    def pytorch(a, b):
        log_p, log_q = (torch.log_softmax(x / temperature, dim=-1) for x in (a, b))
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    theirs = autograd(pytorch, (a, b))
    # Probabilities are rounded at eps; da multiplies them by log-ratios of up to 2·scale/T.
    ratio = 1 + 2 * scale / temperature
    unit = 1 / (BATCH * temperature)
    for (ours, exact), their, size in zip(
        both_precisions(refkd, a, b), theirs, (1.0, unit * ratio, unit), strict=True
    ):
        assert_no_worse(ours, their, exact, size)


@cases
def test_distillation_loss(autograd, scale: float, temperature: float, seed: int) -> None:
    z, v, _ = draw(seed, scale)
    labels = np.random.default_rng(seed).integers(CLASSES, size=BATCH)
    teacher, target = torch.from_numpy(v), torch.from_numpy(labels)
    spec = losses.KDSpec.preset("hinton", temperature=temperature, alpha=0.3)

    def refkd(z: np.ndarray, v: np.ndarray) -> tuple:
        terms, saved = losses.kd_forward(z, v, labels, spec)
        return terms.loss, losses.kd_backward(1.0, saved, labels, spec)

    def pytorch(z):
        log_s, t = torch.log_softmax(z / temperature, -1), torch.softmax(teacher / temperature, -1)
        kd = F.kl_div(log_s, t, reduction="batchmean") * temperature**2
        return 0.3 * F.cross_entropy(z, target) + 0.7 * kd

    theirs = autograd(pytorch, (z,))
    units = (0.3 + 0.7 * temperature**2, (0.3 + 0.7 * temperature) / BATCH)
    for (ours, exact), their, unit in zip(both_precisions(refkd, z, v), theirs, units, strict=True):
        assert_no_worse(ours, their, exact, unit)
