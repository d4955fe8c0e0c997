"""Means over seeds with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

__all__ = ["confidence_interval", "student_t_quantile"]


def confidence_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95% interval of the mean, [low, high]; None for a single value.

    Notes
    -----
    mean ± t · sd/√n with the sample standard deviation and Student's t at n − 1
    degrees of freedom: for a handful of seeds the normal 1.96 is far too narrow.
    """
    n = len(values)
    if n < 2:
        return None
    center = fmean(values)
    variance = math.fsum((v - center) ** 2 for v in values) / (n - 1)
    half = student_t_quantile(0.975, n - 1) * math.sqrt(variance / n)
    return [center - half, center + half]


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for probability >= 1/2.

    Notes
    -----
    With t = √ν tan θ the density becomes proportional to cos^(ν−1) θ, smooth on a
    finite range; Simpson's rule integrates it and bisection inverts it.
    """
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(log_scale) / math.sqrt(math.pi)

    def upper_half(theta: float, intervals: int = 400) -> float:
        h = theta / intervals
        weights = (1 if i in (0, intervals) else 4 if i % 2 else 2 for i in range(intervals + 1))
        terms = (w * math.cos(i * h) ** (degrees - 1) for i, w in enumerate(weights))
        return scale * math.fsum(terms) * h / 3

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if upper_half(middle) < probability - 0.5:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)
