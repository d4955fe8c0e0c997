"""Derive the coefficients in ``refkd/ops/special.py`` and write ``erf.json``. Needs mpmath.

Run as ``python tests/golden/make_erf.py``; it takes a few seconds, prints the coefficient
tuples and rewrites the golden file.

A row of ``erf.json`` is ``[x, hi, lo, derivative]``: erf(x) is ``hi + lo`` to about 106 bits
(``lo`` is zero where it would be subnormal), ``derivative`` is 2/sqrt(pi) exp(-x^2) rounded once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import mpmath as mp
import numpy as np

Function = Callable[[mp.mpf], mp.mpf]
Coefficients = list[mp.mpf]

mp.mp.dps = 50


def polynomial(coefficients: Coefficients, x: mp.mpf) -> mp.mpf:
    """Evaluate ``sum_k coefficients[k] x^k``."""
    return mp.polyval(coefficients[::-1], x)


def interpolate(
    f: Function, nodes: Coefficients, degree_p: int, degree_q: int
) -> tuple[Coefficients, Coefficients]:
    """Rational function P/Q with Q(0) = 1 through ``f`` at degree_p + degree_q + 1 nodes."""
    size = degree_p + degree_q + 1
    matrix, right = mp.matrix(size, size), mp.matrix(size, 1)
    for i, x in enumerate(nodes):
        right[i] = f(x)
        for j in range(degree_p + 1):
            matrix[i, j] = x**j
        for j in range(1, degree_q + 1):
            matrix[i, degree_p + j] = -right[i] * x**j
    solution = list(mp.lu_solve(matrix, right))
    return solution[: degree_p + 1], [mp.mpf(1), *solution[degree_p + 1 :]]


def minimax(
    f: Function, weight: Function, low: float, high: float, degree_p: int, degree_q: int
) -> tuple[Coefficients, Coefficients, mp.mpf]:
    """Rational fit whose weighted error is nearly level on [low, high]; also returns that error.

    Interpolates, measures the largest weighted error between neighbouring nodes, narrows the
    gaps where it is large and widens them where it is small, and repeats. Unlike the exchange
    algorithm this never loses an alternation, so it needs no good start.
    """
    points, sweeps = 300, 100
    ramp = [((1 - mp.cos(mp.pi * k / points)) / 2) ** 1.5 for k in range(points + 1)]
    grid = [low + (high - low) * r for r in ramp]
    values, weights = [f(x) for x in grid], [weight(x) for x in grid]
    count = degree_p + degree_q + 1
    reach = low + (high - low) * mp.mpf("0.5")  # the weights vanish towards ``high``
    nodes = [
        low + (reach - low) * (1 - mp.cos(mp.pi * (2 * k + 1) / (2 * count))) / 2
        for k in range(count)
    ]
    best = [], [], mp.inf
    for _ in range(sweeps):
        p, q = interpolate(f, nodes, degree_p, degree_q)
        errors = [
            w * abs(polynomial(p, x) / polynomial(q, x) - v)
            for x, v, w in zip(grid, values, weights, strict=True)
        ]
        edges = [mp.mpf(low), *nodes, mp.mpf(high)]
        heights = [
            max((e for e, x in zip(errors, grid, strict=True) if a <= x <= b), default=mp.eps)
            for a, b in pairwise(edges)
        ]
        if max(heights) < best[2]:
            best = p, q, max(heights)
        if max(heights) < 1.1 * min(heights):
            break
        level = mp.exp(mp.fsum(map(mp.log, heights)) / len(heights))
        gaps = [
            (b - a) * min(max(mp.cbrt(level / h), 0.8), 1.25)
            for (a, b), h in zip(pairwise(edges), heights, strict=True)
        ]
        total, x, nodes = mp.fsum(gaps), mp.mpf(low), []
        for gap in gaps[:-1]:
            x += gap * (high - low) / total
            nodes.append(x)
    return best


def atanh_of_erf_over_x_minus_one(z: mp.mpf) -> mp.mpf:
    """atanh(erf(x)) / x - 1 as a function of z = x^2."""
    if z == 0:
        return 2 / mp.sqrt(mp.pi) - 1
    x = mp.sqrt(z)
    return mp.log((1 + mp.erf(x)) / mp.erfc(x)) / (2 * x) - 1


def relative_weight_of_erf(z: mp.mpf) -> mp.mpf:
    """Relative change of erf(x) per change of atanh(erf(x)) / x."""
    if z == 0:
        return mp.sqrt(mp.pi) / 2
    x = mp.sqrt(z)
    return x * mp.erfc(x) * (1 + mp.erf(x)) / mp.erf(x)


def erf_over_x_minus_one(z: mp.mpf) -> mp.mpf:
    """erf(x) / x - 1 as a function of z = x^2."""
    x = mp.sqrt(z)
    return mp.erf(x) / x - 1


def round_to_float32(coefficients: Coefficients) -> tuple[float, ...]:
    """The shortest decimals that round to the float32 values of ``coefficients``."""
    return tuple(float(str(np.float32(float(c)))) for c in coefficients)


def derive_coefficients() -> dict[str, tuple[float, ...]]:
    """Every coefficient tuple of ``refkd/ops/special.py``, by its name there."""
    centre, error = mp.chebyfit(erf_over_x_minus_one, [0, 1], 13, error=True)
    print(f"erf(x)/x - 1 in x^2 on [0, 1]: error {mp.nstr(error, 2)}")

    p, q, error = minimax(
        lambda x: mp.exp(x * x) * mp.erfc(x), lambda x: mp.exp(-x * x), 1, 6, 5, 6
    )
    print(f"exp(x^2) erfc(x) on [1, 6]: error of erf {mp.nstr(error, 2)}")

    p32, q32, error = minimax(atanh_of_erf_over_x_minus_one, relative_weight_of_erf, 0, 16, 3, 3)
    print(f"atanh(erf(x))/x - 1 in x^2 for |x| <= 4: relative error of erf {mp.nstr(error, 2)}")
    return {
        "_CENTRE": tuple(float(c) for c in reversed(centre)),
        "_TAIL_NUMERATOR": tuple(float(c) for c in p),
        "_TAIL_DENOMINATOR": tuple(float(c) for c in q),
        "_FLOAT32_NUMERATOR": round_to_float32(p32),
        "_FLOAT32_DENOMINATOR": round_to_float32(q32),
    }


# Of seven million random arguments those at which the float64 erf of refkd was found worst.
HARDEST = (
    0.02679608942250289,
    0.4743354112532494,
    0.8420767224017005,
    0.9953984742174165,
    0.9969083538696113,
    0.9979029047040595,
    1.0003638317617898,
    1.0031377137554,
    1.0070339775402428,
    1.1109169836214199,
)


def golden_arguments() -> list[float]:
    """Random, log-spaced, subnormal, boundary and known-hard arguments, sorted."""
    rng = np.random.default_rng(20240607)
    tiny, smallest_normal = math.ulp(0.0), 2.0**-1022
    x = [tiny, 3 * tiny, 1e-320, 1e-310, smallest_normal, 1e-307, 1e-300, 1e-160, 1e-150, 1e-20]
    x += np.logspace(-10, 0, 41).tolist()
    for low, high, count in ((0, 1, 120), (1, 2.5, 100), (2.5, 6, 60)):
        x += rng.uniform(low, high, count).tolist()
    for edge in (0.5, 1.0, 2.0, 4.0, 5.921587195794507, 6.0):
        x += [math.nextafter(edge, 0), edge, math.nextafter(edge, 10)]
    x += [6.5, 10.0, 30.0]
    return sorted({*x, *HARDEST})


def write_golden(path: Path) -> None:
    """Write the golden rows, one per line."""
    rows = []
    for x in golden_arguments():
        value = mp.erf(mp.mpf(x))
        hi = float(value)
        lo = float(value - hi) if abs(hi) > 1e-290 else 0.0
        derivative = float(2 / mp.sqrt(mp.pi) * mp.exp(-(mp.mpf(x) ** 2)))
        rows.append(json.dumps([x, hi, lo, derivative]))
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    for name, values in derive_coefficients().items():
        print(f"{name} = (", *(f"    {value!r}," for value in values), ")", sep="\n")
    write_golden(Path(__file__).with_name("erf.json"))
