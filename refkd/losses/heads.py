"""One student, several teachers: the distillation loss against each head of a teacher.

A teacher with auxiliary classifiers gives several opinions on one image. The student
learns from all of them, each with a weight of its own, and from the label once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from refkd.dispatch import Array
from refkd.errors import ConfigError
from refkd.losses.distillation import KDTerms, kd_backward, kd_forward
from refkd.losses.spec import KDSpec

__all__ = ["kd_heads_backward", "kd_heads_forward"]


def kd_heads_forward(
    student_logits: Array,
    teacher_heads: Sequence[Array],
    labels: Array | None,
    spec: KDSpec,
    head_weights: Sequence[float],
) -> tuple[KDTerms, tuple[tuple[Array, ...], ...]]:
    """Return the terms of L = a·CE + w·[T²]·Σ_h w_h D_h/R and what the backward needs.

    D_h is the divergence of ``spec`` between head h of the teacher and the student.

    Parameters
    ----------
    student_logits : array, shape (B, C)
    teacher_heads : sequence of array, shape (B, C)
        The logits of each head, at least one.
    labels : integer array, shape (B,), or None where ``spec.hard_weight`` is 0
    spec : KDSpec
    head_weights : sequence of float, >= 0
        w_h, one for each head; they need not sum to 1.

    Returns
    -------
    terms : KDTerms
        ``soft`` is the weighted sum over the heads.
    saved : tuple
        For :func:`kd_heads_backward`.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the arguments do not fit together. Values of arrays are not checked.
    """
    if len(teacher_heads) != len(head_weights) or not head_weights:
        raise ConfigError(
            f"kd_heads_forward: expected one weight for each teacher head, at least one, "
            f"got {len(teacher_heads)} heads and {len(head_weights)} weights"
        )
    weights, specs = _by_head(spec, tuple(head_weights))
    terms, saved = [], []
    for head, logits in enumerate(teacher_heads):
        term, kept = kd_forward(student_logits, logits, None if head else labels, specs[head])
        terms.append(term)
        saved.append(kept)
    softs = [
        term.soft if weight == 1 else weight * term.soft
        for weight, term in zip(weights, terms, strict=True)
    ]
    loss = _total([term.loss for term in terms])
    return KDTerms(loss, terms[0].hard, _total(softs)), tuple(saved)


def kd_heads_backward(
    dloss: Array | float,
    saved: tuple[tuple[Array, ...], ...],
    labels: Array | None,
    spec: KDSpec,
    head_weights: Sequence[float],
) -> Array:
    """Backward of :func:`kd_heads_forward` with respect to the student's logits.

    Parameters
    ----------
    dloss : float or array, shape ()
        Cotangent of ``terms.loss``.
    saved : tuple
        From the forward.
    labels, spec, head_weights
        As in the forward.

    Returns
    -------
    dstudent_logits : array, shape (B, C)

    Notes
    -----
    The loss is a sum over the heads, the first of which carries the labels, and so is its
    gradient; for ``kl``::

        dz = a (q − y)/B + (w/(T R)) Σ_h w_h (s − t_h)

    which is the gradient of a single teacher that answers with the mean of the heads'
    *probabilities*, times Σ_h w_h. Only the values differ, by how far the heads disagree.
    q and s are the same for all heads and are computed for each of them: logits are small
    beside the networks they come from.
    """
    _, specs = _by_head(spec, tuple(head_weights))
    return _total(
        [
            kd_backward(dloss, kept, None if head else labels, specs[head])
            for head, kept in enumerate(saved)
        ]
    )


def _total(values: list[Array]) -> Array:
    """Return the sum; of a single value itself, since on a GPU every addition is a launch."""
    return sum(values[1:], values[0])


@functools.lru_cache(maxsize=64)  # making a spec costs as much as a small loss
def _by_head(
    spec: KDSpec, head_weights: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[KDSpec, ...]]:
    """Return the weights as Python numbers, and the loss split into one for each head."""
    weights = tuple(float(weight) for weight in head_weights)
    alone = replace(spec, hard_weight=0.0)
    specs = tuple(
        replace(alone if head else spec, soft_weight=weight * spec.soft_weight)
        for head, weight in enumerate(weights)
    )
    return weights, specs
