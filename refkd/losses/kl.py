"""Kullback-Leibler divergence of two softmax distributions, with temperature.

One pair serves both directions of distillation: KL(teacher ‖ student) has the
student as ``q``, the reverse KL(student ‖ teacher) has it as ``p``.
"""

from __future__ import annotations

from typing import Any

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import ShapeError, check_float_dtypes, check_positive, check_same_shape
from refkd.losses.reduction import check_reduction, example_cotangent, logits_divisor
from refkd.ops.softmax import log_softmax_forward

__all__ = ["KL_REDUCTIONS", "check_kl_inputs", "softmax_kl_backward", "softmax_kl_forward"]

KL_REDUCTIONS = ("batchmean", "mean", "sum", "none")


@kernel
def softmax_kl_forward(
    p_logits: Array, q_logits: Array, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> tuple[Array, Array, Array]:
    """Return KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), p and q softmax at temperature T.

    There is no factor T² here; a caller who wants it multiplies the loss.

    Parameters
    ----------
    p_logits, q_logits : array, shape (..., C)
    temperature : float, > 0
    reduction : {"batchmean", "mean", "sum", "none"}
        Sum over the classes, then: divided by the number of examples; divided by
        examples · C (``nn.KLDivLoss``'s default); undivided; per example.

    Returns
    -------
    loss : array, shape (), or (...) for ``"none"``
    log_p, log_q : array, shape (..., C)
        Kept for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or options do not fit.
    """
    where = "softmax_kl_forward"
    xp = check_kl_inputs(where, temperature, reduction, p_logits=p_logits, q_logits=q_logits)
    log_p = log_softmax_forward(p_logits, temperature=temperature)
    log_q = log_softmax_forward(q_logits, temperature=temperature)
    loss = (xp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    if reduction != "none":
        loss = loss.sum() / logits_divisor(reduction, log_p)
    return loss, log_p, log_q


@kernel
def softmax_kl_backward(
    dloss: Array | float,
    log_p: Array,
    log_q: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    need_dp: bool = True,
    need_dq: bool = True,
) -> tuple[Array | None, Array | None]:
    """Backward of :func:`softmax_kl_forward` with respect to both logits.

    Parameters
    ----------
    dloss : float or array, shape () or (...)
        Cotangent of the loss.
    log_p, log_q : array, shape (..., C)
        From the forward.
    temperature, reduction
        As in the forward.
    need_dp, need_dq : bool
        False skips that gradient (a detached teacher) and returns None for it.

    Returns
    -------
    dp_logits, dq_logits : array, shape (..., C), or None

    Notes
    -----
    With a, b the logits of p, q and ∂ log p_c/∂a_j = (δ_cj − p_j)/T::

        ∂KL/∂b_j = −Σ_c p_c (δ_cj − q_j)/T = (q_j − p_j)/T

        ∂KL/∂a_j = Σ_c p_c (δ_cj − p_j)/T · (ℓ_c + 1)      ℓ = log p − log q
                 = p_j (ℓ_j − Σ_c p_c ℓ_c)/T

    (the 1 cancels: Σ_c p_c (δ_cj − p_j) = 0), each times dloss/R, R the divisor of
    the reduction.
    """
    where = "softmax_kl_backward"
    xp = check_kl_inputs(where, temperature, reduction, log_p=log_p, log_q=log_q)
    scale = example_cotangent(where, dloss, log_p, reduction)
    scale = scale / (float(temperature) * logits_divisor(reduction, log_p))
    p = xp.exp(log_p)
    dp = dq = None
    if need_dp:
        log_ratio = log_p - log_q
        dp = p * (log_ratio - (p * log_ratio).sum(axis=-1, keepdims=True)) * scale
    if need_dq:
        dq = (xp.exp(log_q) - p) * scale
    return dp, dq


def check_kl_inputs(where: str, temperature: float, reduction: str, **arrays: Array) -> Any:
    """Raise unless logits (or distributions) and options fit together; return the array module."""
    check_float_dtypes(where, **arrays)
    check_same_shape(where, **arrays)
    check_positive(where, "temperature", temperature)
    first = next(iter(arrays.values()))
    if first.ndim == 0 or first.shape[-1] == 0:
        raise ShapeError(f"{where}: expected logits (..., C), C > 0, got {tuple(first.shape)}")
    check_reduction(where, reduction, tuple(first.shape), KL_REDUCTIONS)
    return namespace(first)
