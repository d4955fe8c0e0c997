"""Drawn functions with right gradients: chains of stages, each with its backward.

Some stages are not analytic (``abs``, ``var``, ``linalg.norm``, a cast to float64, a
ufunc without complex loops), so that every numeric method has its turn; some have
kinks, and now and then a point lies on one. Scales run from 1e-6 to 1e6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.subjects import Subject
from bench.subjects.stages import (
    KINKED,
    POINTWISE,
    ROWWISE,
    Stage,
    gate,
    kinked,
    linear,
    maximum_subtracted,
    pointwise,
    quotient,
)

__all__ = ["Drawn", "draw"]


@dataclass(frozen=True)
class Drawn:
    """A drawn function.

    Attributes
    ----------
    subject : Subject
    on_kink : bool
        Whether the point lies on a kink, with a gradient between the one-sided slopes.
    """

    subject: Subject
    on_kink: bool


def draw(rng: np.random.Generator) -> Drawn:
    """Draw f = s Σ c (stage_k ∘ ... ∘ stage_1)(x) + offset, and a point.

    Parameters
    ----------
    rng : numpy.random.Generator

    Notes
    -----
    Only the first stage may have its kink at the point, and no other one follows: so one
    entry of x moves one kink alone, and a gradient between the one-sided slopes of each
    entry is a valid one.
    """
    rows, columns = (int(k) for k in rng.integers(1, 5, size=2))
    spread = float(rng.choice([1e-3, 0.1, 1.0, 1.0, 1.0, 10.0, 1e3]))
    x = spread * rng.standard_normal((rows, columns))
    on_kink = bool(rng.random() < 0.1)
    stages = [_on_kink(rng, x)] if on_kink else []
    for k in range(int(rng.integers(1, 4))):
        width = columns if not stages else stages[-1].width
        stages.append(_drawn_stage(rng, str(k), width, smooth=on_kink))
    scale = 10.0 ** rng.uniform(-6, 6)
    cotangent = scale * rng.standard_normal((rows, stages[-1].width))
    offset = float(rng.choice([0.0, scale, 1e3 * scale, 1e6 * scale], p=[0.4, 0.4, 0.1, 0.1]))
    params = {"x": x} | {name: v for stage in stages for name, v in stage.params.items()}
    single = rng.random() < 0.15
    if single and not on_kink:  # a cast would move the point off its kink
        params = {name: value.astype(np.float32) for name, value in params.items()}
    return Drawn(_chained(stages, params, cotangent, offset), on_kink)


def _chained(stages: list[Stage], params: dict[str, Any], cotangent: Any, offset: float) -> Subject:
    def f(**given: Any) -> Any:
        u = given["x"]
        for stage in stages:
            u = stage.forward(u, given)
        return (cotangent * u).sum() + offset

    def grad(**given: Any) -> dict[str, Any]:
        inputs = [given["x"]]
        for stage in stages:
            inputs.append(stage.forward(inputs[-1], given))
        du = cotangent
        gradients: dict[str, Any] = {}
        for stage, u in zip(reversed(stages), reversed(inputs[:-1]), strict=True):
            du, own = stage.backward(du, u, given)
            gradients |= own
        gradients["x"] = du
        return {name: np.asarray(gradients[name], given[name].dtype) for name in given}

    return Subject(" ∘ ".join(s.name for s in reversed(stages)), f, params, grad)


def _drawn_stage(rng: np.random.Generator, key: str, width: int, smooth: bool) -> Stage:
    kind = rng.choice(["linear", "gate", "quotient", "pointwise", "rowwise", "kinked"], p=_CHANCES)
    if kind in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[kind](rng, key, width)
    if kind == "pointwise" or (smooth and kind == "kinked"):
        return pointwise(POINTWISE[int(rng.integers(len(POINTWISE)))], width)
    if kind == "rowwise":
        return ROWWISE[int(rng.integers(len(ROWWISE)))](width)
    if rng.random() < 0.25:
        return maximum_subtracted(width)
    return kinked(KINKED[int(rng.integers(len(KINKED)))], width)


_CHANCES = (0.2, 0.15, 0.1, 0.25, 0.2, 0.1)
_WITH_PARAMETERS: dict[str, Callable[[np.random.Generator, str, int], Stage]] = {
    "linear": linear,
    "gate": gate,
    "quotient": quotient,
}


def _on_kink(rng: np.random.Generator, x: Any) -> Stage:
    """Move some entries of ``x`` onto kinks, in place; return the stage that has them."""
    rows, width = x.shape
    share = float(rng.random())
    if width > 1 and rng.random() < 0.4:
        for row in x[: int(rng.integers(1, rows + 1))]:
            i, j = rng.choice(width, size=2, replace=False)
            row[i] = row[j] = row.max()
        return maximum_subtracted(width, share)
    flat = rng.choice(x.size, size=int(rng.integers(1, math.isqrt(x.size) + 1)), replace=False)
    x.flat[flat] = 0.0
    return kinked(KINKED[int(rng.integers(len(KINKED)))], width, share)
