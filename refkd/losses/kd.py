"""The distillation loss a·CE(labels) + w·KL(teacher ‖ student) as one fused kernel pair.

This is the hot path of logit distillation. Which a and w a paper or library means
is the business of :mod:`refkd.losses.spec`; :mod:`refkd.losses.distillation` composes the
other divergences from the pairs of this package.
"""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import (
    DtypeError,
    ShapeError,
    check_float_dtypes,
    check_positive,
    check_same_shape,
)
from refkd.losses.reduction import check_reduction, cotangent, logits_divisor
from refkd.ops.softmax import log_softmax_forward

__all__ = ["check_kd_inputs", "softmax_kd_backward", "softmax_kd_forward"]

_REDUCTIONS = ("batchmean", "mean", "sum")


@kernel
def softmax_kd_forward(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array | None,
    *,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str = "batchmean",
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return L = a·CE(q, labels) + w·KL(t ‖ s) and its two terms.

    q = softmax(z) is the student at temperature 1; s = softmax(z/T) and
    t = softmax(v/T) are student and teacher at temperature T.

    Parameters
    ----------
    student_logits, teacher_logits : array, shape (B, C)
        z and v. The teacher is a constant here.
    labels : integer array, shape (B,), or None
        Class indices in [0, C), not checked here; may be None where ``hard_weight`` is 0.
    temperature : float, > 0
        T.
    hard_weight, soft_weight : float
        a and w, the factors as they stand (T² included where it is wanted).
    reduction : {"batchmean", "mean", "sum"}
        Divisor R of the KL: B, B·C or 1. The cross-entropy is the mean over B.

    Returns
    -------
    loss, hard, soft : array, shape ()
        L, CE (0 without labels) and the reduced KL.
    q, s, t : array, shape (B, C)
        Kept for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or options do not fit.
    """
    where = "softmax_kd_forward"
    xp = check_kd_inputs(
        where,
        labels,
        temperature,
        hard_weight,
        reduction,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    log_q = log_softmax_forward(student_logits)
    log_s = log_softmax_forward(student_logits, temperature=temperature)
    log_t = log_softmax_forward(teacher_logits, temperature=temperature)
    t = xp.exp(log_t)
    soft = (t * (log_t - log_s)).sum() / logits_divisor(reduction, t)
    if labels is None:
        hard = soft * 0
    else:
        hard = -xp.take_along_axis(log_q, labels[:, None], axis=1).sum() / labels.size
    loss = float(hard_weight) * hard + float(soft_weight) * soft
    return loss, hard, soft, xp.exp(log_q), xp.exp(log_s), t


@kernel
def softmax_kd_backward(
    dloss: Array | float,
    q: Array,
    s: Array,
    t: Array,
    labels: Array | None,
    *,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
    reduction: str = "batchmean",
) -> Array:
    """Backward of :func:`softmax_kd_forward` with respect to the student's logits.

    Parameters
    ----------
    dloss : float or array, shape ()
        Cotangent of the loss (of the first output alone).
    q, s, t : array, shape (B, C)
        From the forward.
    labels, temperature, hard_weight, soft_weight, reduction
        As in the forward.

    Returns
    -------
    dstudent_logits : array, shape (B, C)

    Notes
    -----
    The sum of the two gradients derived in :mod:`refkd.losses.cross_entropy` and
    :mod:`refkd.losses.kl`, y the one-hot labels::

        dz = dloss · [a (q − y)/B + w (s − t)/(T·R)]

    With w = T² and R = B the soft part is T (s − t)/B: the gradients of the two terms
    stay of one order as T grows, since s − t shrinks like 1/T.

    References
    ----------
    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015,
    arXiv:1503.02531, section 2.
    """
    where = "softmax_kd_backward"
    xp = check_kd_inputs(where, labels, temperature, hard_weight, reduction, q=q, s=s, t=t)
    batch, classes = q.shape
    scale = float(temperature) * logits_divisor(reduction, q)
    dz = (s - t) * (float(soft_weight) / scale)
    if labels is not None:
        dz = dz + (q - (labels[:, None] == xp.arange(classes))) * (float(hard_weight) / batch)
    return dz * cotangent(where, dloss, q, ())


def check_kd_inputs(
    where: str,
    labels: Array | None,
    temperature: float,
    hard_weight: float,
    reduction: str,
    **arrays: Array,
) -> Any:
    """Raise unless logits, labels and options fit together; return the array module."""
    check_float_dtypes(where, **arrays)
    check_same_shape(where, **arrays)
    check_positive(where, "temperature", temperature)
    logits = next(iter(arrays.values()))
    if logits.ndim != 2 or logits.size == 0:
        raise ShapeError(
            f"{where}: expected logits (B, C) with B, C > 0, got {tuple(logits.shape)}"
        )
    check_reduction(where, reduction, tuple(logits.shape), _REDUCTIONS)
    if labels is None:
        if hard_weight != 0:
            raise ShapeError(f"{where}: hard_weight={hard_weight} needs labels, got None")
        return namespace(logits)
    if getattr(getattr(labels, "dtype", None), "kind", "O") not in "iu":
        raise DtypeError(
            f"{where}: labels must be an integer array, "
            f"got {getattr(labels, 'dtype', type(labels).__name__)}"
        )
    if tuple(labels.shape) != (logits.shape[0],):
        raise ShapeError(
            f"{where}: labels must have shape ({logits.shape[0]},), got {tuple(labels.shape)}"
        )
    return namespace(logits)
