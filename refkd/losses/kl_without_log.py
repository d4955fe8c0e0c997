"""A mistake in circulation, exactly: the KL divergence with a logarithm left out.

``nn.KLDivLoss`` takes the student's log-probabilities. Given its probabilities it computes
the function below, without complaint. It is here so that systems published with it can
be reproduced and their students explained; whoever wants a divergence takes ``softmax_kl``.
"""

from __future__ import annotations

from refkd.dispatch import Array, kernel
from refkd.losses.kl import check_kl_inputs
from refkd.losses.reduction import example_cotangent, logits_divisor
from refkd.ops.softmax import log_softmax_forward, softmax_forward

__all__ = ["softmax_kl_without_log_backward", "softmax_kl_without_log_forward"]


@kernel
def softmax_kl_without_log_forward(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> tuple[Array, Array, Array]:
    """Return Σ_c t_c (log t_c − s_c), where log s_c is due; s and t softmax at temperature T.

    This is −H(t) − ⟨t, s⟩: negative for every student, and lowest for the one that is
    certain of the teacher's first choice, not for the teacher's equal.

    Parameters
    ----------
    student_logits, teacher_logits : array, shape (..., C)
        The teacher is a constant here.
    temperature : float, > 0
    reduction : {"batchmean", "mean", "sum", "none"}
        Sum over the classes, then as in :func:`refkd.losses.softmax_kl_forward`.

    Returns
    -------
    loss : array, shape (), or (...) for ``"none"``
    s, t : array, shape (..., C)
        Kept for the backward.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If shapes, dtypes or options do not fit.
    """
    where = "softmax_kl_without_log_forward"
    xp = check_kl_inputs(
        where,
        temperature,
        reduction,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    s = softmax_forward(student_logits, temperature=temperature)
    log_t = log_softmax_forward(teacher_logits, temperature=temperature)
    t = xp.exp(log_t)
    loss = (t * (log_t - s)).sum(axis=-1)
    if reduction != "none":
        loss = loss.sum() / logits_divisor(reduction, s)
    return loss, s, t


@kernel
def softmax_kl_without_log_backward(
    dloss: Array | float,
    s: Array,
    t: Array,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
) -> Array:
    """Backward of :func:`softmax_kl_without_log_forward` with respect to the student's logits.

    Parameters
    ----------
    dloss : float or array, shape () or (...)
        Cotangent of the loss.
    s, t : array, shape (..., C)
        From the forward.
    temperature, reduction
        As in the forward.

    Returns
    -------
    dstudent_logits : array, shape (..., C)

    Notes
    -----
    Only −⟨t, s⟩ depends on the student; with ∂s_c/∂z_j = s_c (δ_cj − s_j)/T::

        dz_j = −Σ_c t_c s_c (δ_cj − s_j)/T · dloss/R = −s_j (t_j − ⟨t, s⟩)/T · dloss/R

    R the divisor of the reduction. Where the right form says s − t, this is s times
    something bounded: it vanishes for a student that is certain, right or wrong, and not
    for one that equals its teacher. As T → ∞ it tends to −(v − v̄)/(C T)² · dloss/R, a push
    along the teacher's logits v that no longer looks at the student.
    """
    where = "softmax_kl_without_log_backward"
    check_kl_inputs(where, temperature, reduction, s=s, t=t)
    scale = example_cotangent(where, dloss, s, reduction)
    scale = -scale / (float(temperature) * logits_divisor(reduction, s))
    return s * (t - (t * s).sum(axis=-1, keepdims=True)) * scale
