"""Translating a distillation loss from one convention into another, gradient for gradient."""

from __future__ import annotations

import math
from dataclasses import replace

from refkd.errors import ConfigError
from refkd.losses.presets import check_expressible, template
from refkd.losses.spec import FORMULAS, SAME_GRADIENT, KDSpec, batch_over_divisor

__all__ = ["convert"]


def convert(
    spec: KDSpec,
    other: str | KDSpec,
    *,
    num_classes: int | None = None,
    batch_size: int | None = None,
) -> KDSpec:
    """Return ``spec`` in another convention; see :meth:`refkd.losses.KDSpec.convert`.

    Notes
    -----
    Equal gradients need the same function of s and t, so the same temperature and
    divergence, and then equal coefficients: the soft weight is solved from
    w·[T²]/(T·R) on both sides, the hard weight is the same.
    """
    target = template(other, spec.temperature) if isinstance(other, str) else other
    name = repr(other) if isinstance(other, str) else "the given convention"
    _check_same_function(spec, target, name)
    ratio = 1.0
    if spec.reduction != target.reduction:
        ratio = batch_over_divisor(spec.reduction, num_classes, batch_size)
        ratio /= batch_over_divisor(target.reduction, num_classes, batch_size)
    unit = target.temperature**2 if target.t_squared else 1.0
    soft_weight = spec.effective_soft_weight * ratio / unit
    if target.alpha_weights is not None:
        _check_one_alpha(spec.hard_weight, soft_weight, target, name)
    converted = replace(target, hard_weight=spec.hard_weight, soft_weight=soft_weight)
    if isinstance(other, str):
        check_expressible(other, converted)
    return converted


def _check_same_function(spec: KDSpec, target: KDSpec, name: str) -> None:
    if target.temperature != spec.temperature:
        raise ConfigError(
            f"KDSpec.convert: s and t at T = {spec.temperature:g} and at "
            f"T = {target.temperature:g} are different functions of the logits; no weights "
            f"make their gradients equal"
        )
    pair = {spec.divergence, target.divergence}
    if len(pair) > 1 and not pair <= SAME_GRADIENT:
        raise ConfigError(
            f"KDSpec.convert: the gradients of {FORMULAS[spec.divergence]} and of "
            f"{FORMULAS[target.divergence]} ({name}) are different functions of s and t; "
            f"no weights make them equal"
        )


def _check_one_alpha(hard_weight: float, soft_weight: float, target: KDSpec, name: str) -> None:
    # In `target` the two weights hang on one alpha: its soft weight is a multiple, `gain`,
    # of what the hard weight leaves of 1.
    if target.soft_weight == 0 or target.hard_weight == 1:
        raise ConfigError(
            f"KDSpec.convert: in {name} alpha = {target.alpha:g} leaves the soft term no "
            f"weight to scale; give a spec with another alpha"
        )
    gain = target.soft_weight / (1 - target.hard_weight)
    total = hard_weight + soft_weight / gain
    if math.isclose(total, 1.0, rel_tol=1e-12):
        return
    message = (
        f"KDSpec.convert: {name} ties both weights by one alpha, and no alpha gives the "
        f"weights {hard_weight:g} and {soft_weight:.6g}"
    )
    if total > 0:
        scaled = replace(target, hard_weight=hard_weight / total, soft_weight=soft_weight / total)
        message += (
            f"; alpha = {scaled.alpha:.6g} gives {1 / total:.6g} times this gradient "
            f"({total:.6g} times the learning rate makes up for it under plain SGD)"
        )
    raise ConfigError(message)
