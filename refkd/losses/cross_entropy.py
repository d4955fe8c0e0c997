"""Softmax cross-entropy with class indices or soft targets, forward and backward, fused.

Fused means that the pair starts from logits: softmax and logarithm are one
function here, because their composition is exact where its parts are not.
"""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import (
    DtypeError,
    ShapeError,
    check_choice,
    check_float_dtypes,
    check_unit_interval,
)
from refkd.losses.reduction import check_reduction, divisor, example_cotangent
from refkd.ops.softmax import log_softmax_forward

__all__ = ["softmax_cross_entropy_backward", "softmax_cross_entropy_forward"]


@kernel
def softmax_cross_entropy_forward(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Return L = −Σ_c t_c log q_c with q = softmax(logits), reduced over the examples.

    0 · log 0 is 0: a logit of −∞ rules out a class that is no target.

    Parameters
    ----------
    logits : array, shape (..., C)
    targets : integer array, shape (...), or floating array, shape (..., C)
        Class indices in [0, C), every one of which counts, or target distributions.
    label_smoothing : float, in [0, 1]
        ε, the mass taken from the target.
    smoothing : {"uniform", "others"}
        Who receives it. ``"uniform"``: t ← (1 − ε) t + ε/C (PyTorch, timm).
        ``"others"``: t ← (1 − ε) t + ε (1 − t)/(C − 1), all classes but the label's
        (Szegedy et al. as DeiT writes it).
    reduction : {"mean", "sum", "none"}
        Over the examples, the leading axes.

    Returns
    -------
    loss : array, shape (), or (...) for ``"none"``
    log_q : array, shape (..., C)
        Kept for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or options do not fit. The range of indices is not checked
        here but where data enter.
    """
    where = "softmax_cross_entropy_forward"
    xp = _check(where, logits, targets, label_smoothing, smoothing, reduction)
    log_q = log_softmax_forward(logits)
    t = _target_distribution(xp, logits, targets, label_smoothing, smoothing)
    loss = -(t * xp.where(t == 0, 0, log_q)).sum(axis=-1)
    if reduction != "none":
        loss = loss.sum() / _examples(logits, reduction)
    return loss, log_q


@kernel
def softmax_cross_entropy_backward(
    dloss: Array | float,
    log_q: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    reduction: str = "mean",
) -> Array:
    """Backward of :func:`softmax_cross_entropy_forward` with respect to the logits.

    Parameters
    ----------
    dloss : float or array, shape () or (...)
        Cotangent of the loss.
    log_q : array, shape (..., C)
        From the forward.
    targets, label_smoothing, smoothing, reduction
        As in the forward.

    Returns
    -------
    dlogits : array, shape (..., C)

    Notes
    -----
    ∂ log q_c/∂z_j = δ_cj − q_j, so −Σ_c t_c (δ_cj − q_j) = q_j Σ_c t_c − t_j::

        dz = (q Σ_c t_c − t) dloss / N

    where Σ_c t_c = 1 for every proper target; N is the number of examples for
    ``"mean"``, else 1.
    """
    where = "softmax_cross_entropy_backward"
    xp = _check(where, log_q, targets, label_smoothing, smoothing, reduction)
    t = _target_distribution(xp, log_q, targets, label_smoothing, smoothing)
    dz = xp.exp(log_q) * t.sum(axis=-1, keepdims=True) - t
    return dz * (example_cotangent(where, dloss, log_q, reduction) / _examples(log_q, reduction))


def _target_distribution(
    xp: Any, logits: Array, targets: Array, label_smoothing: float, smoothing: str
) -> Array:
    classes = logits.shape[-1]
    if targets.dtype.kind in "iu":
        t = (targets[..., None] == xp.arange(classes)).astype(logits.real.dtype)
    else:
        t = targets
    if label_smoothing == 0:
        return t
    label_smoothing = float(label_smoothing)  # a NumPy scalar would promote float32
    if smoothing == "uniform":
        return (1 - label_smoothing) * t + label_smoothing / classes
    return (1 - label_smoothing) * t + label_smoothing / (classes - 1) * (1 - t)


def _examples(logits: Array, reduction: str) -> int:
    return divisor(reduction, examples=logits[..., 0].size, elements=logits[..., 0].size)


def _check(
    where: str,
    logits: Array,
    targets: Array,
    label_smoothing: float,
    smoothing: str,
    reduction: str,
) -> Any:
    check_float_dtypes(where, logits=logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ShapeError(f"{where}: expected logits (..., C), C > 0, got {tuple(logits.shape)}")
    shape = tuple(logits.shape)
    kind = getattr(getattr(targets, "dtype", None), "kind", None)
    if kind is not None and kind in "iu":
        expected = shape[:-1]
    elif kind is not None and kind in "fc":
        check_float_dtypes(where, logits=logits, targets=targets)
        expected = shape
    else:
        raise DtypeError(
            f"{where}: targets must be an integer array (class indices) or a floating one "
            f"(distributions), got {getattr(targets, 'dtype', type(targets).__name__)}"
        )
    if tuple(targets.shape) != expected:
        raise ShapeError(
            f"{where}: {targets.dtype} targets for logits {shape} must have shape {expected}, "
            f"got {tuple(targets.shape)}"
        )
    check_reduction(where, reduction, shape)
    check_unit_interval(where, "label_smoothing", label_smoothing)
    check_choice(where, "smoothing", smoothing, ("uniform", "others"))
    if smoothing == "others" and label_smoothing > 0 and shape[-1] < 2:
        raise ShapeError(f"{where}: smoothing='others' needs at least 2 classes, got {shape[-1]}")
    return namespace(logits)
