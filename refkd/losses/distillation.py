"""The distillation loss of any :class:`KDSpec`, forward and backward, and its checked front door.

The forward KL and the cross-entropy on soft targets, which have one gradient, run
through the fused kernel pair ``softmax_kd``; the other divergences are composed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from refkd.dispatch import Array, namespace
from refkd.errors import ConfigError, DataError, DtypeError
from refkd.losses.cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from refkd.losses.kd import check_kd_inputs, softmax_kd_backward, softmax_kd_forward
from refkd.losses.kl import softmax_kl_backward, softmax_kl_forward
from refkd.losses.kl_without_log import (
    softmax_kl_without_log_backward,
    softmax_kl_without_log_forward,
)
from refkd.losses.reduction import logits_divisor
from refkd.losses.regression import mse_backward, mse_forward
from refkd.losses.spec import SAME_GRADIENT, KDSpec
from refkd.ops.softmax import log_softmax_forward, softmax_backward, softmax_forward

__all__ = ["KDTerms", "distillation_loss", "kd_backward", "kd_forward"]


class KDTerms(NamedTuple):
    """The loss and its two terms, each an array of shape ().

    ``loss`` = hard_weight · ``hard`` + soft_weight · [T²] · ``soft``.
    """

    loss: Array
    hard: Array
    soft: Array


def distillation_loss(
    student_logits: Array, teacher_logits: Array, labels: Array | None, spec: KDSpec
) -> tuple[float, Array]:
    """Return the value of the distillation loss and its gradient, with everything checked.

    Parameters
    ----------
    student_logits, teacher_logits : array, shape (B, C), float32 or float64
    labels : integer array, shape (B,), or None
        Class indices in [0, C). None is allowed where ``spec.hard_weight`` is 0.
    spec : KDSpec

    Returns
    -------
    value : float
    dstudent_logits : array, shape (B, C)

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together, or ``spec`` is no spec.
    DataError
        If logits are NaN or infinite, a label is outside [0, C), or the loss overflows.

    Examples
    --------
    >>> import numpy as np
    >>> z, v = np.array([[1.0, 2.0, 0.0]]), np.array([[0.0, 3.0, 1.0]])
    >>> spec = KDSpec.preset("hinton", temperature=2.0, alpha=0.5)
    >>> value, dz = distillation_loss(z, v, np.array([1]), spec)
    >>> round(value, 4), bool(abs(dz.sum()) < 1e-15)
    (0.3551, True)
    """
    where = "distillation_loss"
    if not isinstance(spec, KDSpec):
        raise ConfigError(
            f"{where}: spec must be a KDSpec, got {type(spec).__name__}; "
            f"for example KDSpec.preset('hinton', temperature=4.0, alpha=0.1)"
        )
    _check_inputs(where, student_logits, teacher_logits, labels, spec)
    _check_real_and_finite(where, student_logits=student_logits, teacher_logits=teacher_logits)
    if labels is not None:
        _check_label_range(where, labels, student_logits.shape[-1])
    terms, saved = kd_forward(student_logits, teacher_logits, labels, spec)
    value = float(terms.loss)
    if not math.isfinite(value):
        raise DataError(
            f"{where}: the loss is {value}; the logits divided by the temperature "
            f"{spec.temperature:g} overflow {student_logits.dtype}"
        )
    return value, kd_backward(1.0, saved, labels, spec)


def kd_forward(
    student_logits: Array, teacher_logits: Array, labels: Array | None, spec: KDSpec
) -> tuple[KDTerms, tuple[Array, ...]]:
    """Return the terms of the distillation loss and what :func:`kd_backward` needs.

    Parameters
    ----------
    student_logits, teacher_logits : array, shape (B, C)
    labels : integer array, shape (B,), or None where ``spec.hard_weight`` is 0
    spec : KDSpec

    Raises
    ------
    ShapeError, DtypeError
        If the arguments do not fit together. Values are not checked:
        see :func:`distillation_loss`.
    """
    if spec.divergence in SAME_GRADIENT:
        loss, hard, soft, q, s, t = softmax_kd_forward(
            student_logits, teacher_logits, labels, **_kernel_options(spec)
        )
        terms = KDTerms(loss, hard, soft)
        if spec.divergence == "cross_entropy":
            terms = _add_entropy(terms, t, teacher_logits, spec)
        return terms, (q, s, t)
    _check_inputs("kd_forward", student_logits, teacher_logits, labels, spec)
    soft, saved = _soft_forward(student_logits, teacher_logits, spec)
    if labels is None:
        return KDTerms(spec.effective_soft_weight * soft, soft * 0, soft), saved
    hard, log_q = softmax_cross_entropy_forward(student_logits, labels)
    loss = spec.hard_weight * hard + spec.effective_soft_weight * soft
    return KDTerms(loss, hard, soft), (*saved, log_q)


def kd_backward(
    dloss: Array | float, saved: tuple[Array, ...], labels: Array | None, spec: KDSpec
) -> Array:
    """Backward of :func:`kd_forward` with respect to the student's logits.

    Parameters
    ----------
    dloss : float or array, shape ()
        Cotangent of ``terms.loss``.
    saved : tuple of array
        From the forward.
    labels, spec
        As in the forward.

    Returns
    -------
    dstudent_logits : array, shape (B, C)

    Notes
    -----
    Linear in the terms, so the sum of their gradients, each derived beside its kernel::

        kl, cross_entropy    w (s − t)/(T R)
        reverse_kl           w s⊙(ℓ − ⟨s, ℓ⟩)/(T R)     ℓ = log s − log t
        mse_probabilities    2w s⊙(d − ⟨s, d⟩)/(T R)    d = s − t
        kl_without_log       −w s⊙(t − ⟨s, t⟩)/(T R)
    """
    if spec.divergence in SAME_GRADIENT:
        q, s, t = saved
        return softmax_kd_backward(dloss, q, s, t, labels, **_kernel_options(spec))
    dsoft = spec.effective_soft_weight * dloss
    dz = _soft_backward(dsoft, saved[0], saved[1], spec)
    if labels is None:
        return dz
    return dz + softmax_cross_entropy_backward(spec.hard_weight * dloss, saved[-1], labels)


def _check_inputs(where: str, z: Array, v: Array, labels: Array | None, spec: KDSpec) -> None:
    check_kd_inputs(
        where,
        labels,
        spec.temperature,
        spec.hard_weight,
        spec.reduction,
        student_logits=z,
        teacher_logits=v,
    )


def _check_real_and_finite(where: str, **arrays: Array) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise DtypeError(f"{where}: {name} must be real, got {array.dtype}")
        if not bool(namespace(array).isfinite(array).all()):
            raise DataError(
                f"{where}: {name} must be finite, got NaN or infinity; "
                f"look for it in the network's inputs and parameters"
            )


def _check_label_range(where: str, labels: Array, classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"{where}: labels must lie in [0, {classes}), "
            f"got values from {int(labels.min())} to {int(labels.max())}; none is ignored"
        )


def _kernel_options(spec: KDSpec) -> dict[str, Any]:
    return {
        "temperature": spec.temperature,
        "hard_weight": spec.hard_weight,
        "soft_weight": spec.effective_soft_weight,
        "reduction": spec.reduction,
    }


def _add_entropy(terms: KDTerms, t: Array, teacher_logits: Array, spec: KDSpec) -> KDTerms:
    # H(t, s) = KL(t ‖ s) + H(t), the teacher's entropy: a constant to the student.
    log_t = log_softmax_forward(teacher_logits, temperature=spec.temperature)
    entropy = -(t * log_t).sum() / logits_divisor(spec.reduction, t)
    loss = terms.loss + spec.effective_soft_weight * entropy
    return KDTerms(loss, terms.hard, terms.soft + entropy)


def _soft_forward(z: Array, v: Array, spec: KDSpec) -> tuple[Array, tuple[Array, ...]]:
    options: dict[str, Any] = {"temperature": spec.temperature, "reduction": spec.reduction}
    if spec.divergence == "reverse_kl":
        soft, *saved = softmax_kl_forward(z, v, **options)  # log s and log t
    elif spec.divergence == "kl_without_log":
        soft, *saved = softmax_kl_without_log_forward(z, v, **options)  # s and t, as below
    else:
        saved = [softmax_forward(x, temperature=spec.temperature) for x in (z, v)]
        soft = mse_forward(*saved, reduction="sum") / logits_divisor(spec.reduction, z)
    return soft, tuple(saved)


def _soft_backward(dsoft: Array | float, a: Array, b: Array, spec: KDSpec) -> Array:
    options: dict[str, Any] = {"temperature": spec.temperature, "reduction": spec.reduction}
    if spec.divergence == "reverse_kl":
        return softmax_kl_backward(dsoft, a, b, **options, need_dq=False)[0]
    if spec.divergence == "kl_without_log":
        return softmax_kl_without_log_backward(dsoft, a, b, **options)
    ds, _ = mse_backward(dsoft / logits_divisor(spec.reduction, a), a, b, reduction="sum")
    return softmax_backward(ds, a, temperature=spec.temperature)
