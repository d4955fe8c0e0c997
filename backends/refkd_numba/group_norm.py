"""Group norm, example by example: from the sums to the result an example stays in the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.norm import (
    backward_row,
    column_moments,
    column_sums,
    fold,
    forward_row,
    gradient,
    memory,
    memory_as,
    repeat,
    result,
    row,
    row_width,
    run_moments,
    run_sums,
    scaled,
)
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 15

_NOTHING_LESS = np.float32(-math.inf)


def group_norm_forward(
    x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float = 1e-5
) -> Any:
    if not _fits(x, num_groups, weight, bias) or not is_positive(eps):
        return NotImplemented
    flat, run = memory(x)
    y, flat_y = result(x, run)
    mean, rstd = empty((x.shape[0], num_groups)), empty((x.shape[0], num_groups))
    share(
        _columns_forward if run == 1 else _runs_forward, flat, _unit(x, run),
        np.ascontiguousarray(weight), np.ascontiguousarray(bias), float(eps), flat_y, mean, rstd,
        worth=x.size > _WORTH,
    )  # fmt: skip
    return y, mean, rstd


def group_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, num_groups: int
) -> Any:
    if not _fits(x, num_groups, weight) or not are_float32(x, dy) or not are_float32(mean, rstd):
        return NotImplemented
    batch, channels = x.shape[:2]
    if mean.shape != (batch, num_groups):
        return NotImplemented
    flat, run = memory(x)
    dx, flat_dx = result(x, run)
    sums = empty((batch, 2, channels), np.float64)
    share(
        _columns_backward if run == 1 else _runs_backward, memory_as(dy, run), flat, _unit(x, run),
        np.ascontiguousarray(weight), np.ascontiguousarray(mean), np.ascontiguousarray(rstd),
        flat_dx, sums, worth=x.size > _WORTH,
    )  # fmt: skip
    dweight, dbias = sums.sum(axis=0).astype(np.float32)
    return dx, dweight, dbias


def _fits(x: Any, num_groups: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and are_float32(*vectors)
        and vectors[0].shape == (x.shape[1],)
        and type(num_groups) is int
        and num_groups > 0
        and x.shape[1] % num_groups == 0
    )


def _unit(x: Array, run: int) -> int:
    """Return the length of a run, or of a row."""
    return run if run != 1 else row_width(x.shape[1], math.prod(x.shape[2:]))


@compiled
def _columns_forward(x, width, weight, bias, eps, y, mean, rstd, thread, threads):
    """Write y = (x − μ)/√(v + ε) · weight + bias for rows of channels, μ and 1/√(v + ε)."""
    batch, groups = mean.shape
    channels = weight.size
    size, per_group = x.size // batch, channels // groups
    scratch, sums = np.empty((4, width), np.float32), np.empty((2, width), np.float64)
    centre, scale, offset, origin = scratch[0], scratch[1], scratch[2], scratch[3]
    part = span(batch, thread, threads)
    for n in range(part.start, part.stop):
        values, to = row(x, n, size), row(y, n, size)
        for first in range(0, channels, per_group):
            for c in range(first, first + per_group):
                origin[c] = values[first]
        repeat(scratch[3:], channels)
        column_moments(values, origin, scratch[:3], sums[0], sums[1])
        fold(sums, channels)
        for g in range(groups):
            first = g * per_group
            total, square = 0.0, 0.0
            for c in range(first, first + per_group):
                total += sums[0, c]
                square += sums[1, c]
            exact, r = _statistics(total, square, values[first], size // groups, eps)
            mean[n, g], rstd[n, g] = exact, r
            rounded = np.float32(exact)
            rest = exact - rounded
            for c in range(first, first + per_group):
                centre[c], scale[c] = rounded, weight[c] * r
                offset[c] = bias[c] - rest * (weight[c] * r)
        repeat(scratch[:3], channels)
        for i in range((size + width - 1) // width):
            forward_row(
                row(values, i, width), centre, scale, offset, _NOTHING_LESS, row(to, i, width)
            )


@device(inline=True)
def _statistics(total, square, origin, count, eps):
    """Return μ and 1/√(v + ε) of ``count`` values, from Σ (x − origin) and Σ (x − origin)²."""
    total /= count
    var = square / count - total * total
    if var < 0:
        var = 0.0
    mean = origin + total
    if not abs(mean) < np.inf:
        mean, var = np.nan, np.nan
    return mean, 1 / np.sqrt(var + eps)


@compiled
def _runs_forward(x, run, weight, bias, eps, y, mean, rstd, thread, threads):
    """Write y = (x − μ)/√(v + ε) · weight + bias for runs of a channel, μ and 1/√(v + ε)."""
    batch, groups = mean.shape
    per_group = weight.size // groups
    part = span(batch * groups, thread, threads)
    for i in range(part.start, part.stop):
        n, g = i // groups, i % groups
        values = row(x, i, per_group * run)
        origin = np.float64(values[0])
        total, square = run_moments(values, origin)
        exact, r = _statistics(total, square, origin, values.size, eps)
        mean[n, g], rstd[n, g] = exact, r
        centre = np.float32(exact)
        for c in range(per_group):
            factor = weight[g * per_group + c] * r
            scale = np.float32(factor)
            offset = np.float32(bias[g * per_group + c] - (exact - centre) * factor)
            source, target = row(values, c, run), row(y, i * per_group + c, run)
            for j in range(source.size):
                target[j] = scaled(source[j], centre, scale, offset)


@compiled
def _columns_backward(dy, x, width, weight, mean, rstd, dx, gradients, thread, threads):
    """Write dx for rows of channels, and of each example Σ dy x̂ and Σ dy."""
    batch, groups = mean.shape
    channels = weight.size
    size, per_group = x.size // batch, channels // groups
    scratch, sums = np.empty((4, width), np.float32), np.empty((3, width), np.float64)
    slope, level, scale, centre = scratch[0], scratch[1], scratch[2], scratch[3]
    part = span(batch, thread, threads)
    for n in range(part.start, part.stop):
        d, values, to = row(dy, n, size), row(x, n, size), row(dx, n, size)
        for g in range(groups):
            for c in range(g * per_group, (g + 1) * per_group):
                centre[c] = mean[n, g]
        repeat(scratch[3:], channels)
        column_sums(d, d, values, False, centre, scratch[:3], sums)
        fold(sums, channels)
        for g in range(groups):
            first, last = g * per_group, (g + 1) * per_group
            shift = 0.0
            for c in range(first, last):
                gradients[n, 0, c], gradients[n, 1, c] = sums[1, c], sums[0, c]
                shift += sums[2, c]
            slope_of_x, level_of_x = _coefficients(
                gradients[n, :, first:last], weight[first:last], shift, size // groups, rstd[n, g]
            )
            for c in range(first, last):
                slope[c], level[c], scale[c] = slope_of_x, level_of_x, weight[c] * rstd[n, g]
        repeat(scratch[:3], channels)
        for i in range((size + width - 1) // width):
            t = row(d, i, width)
            backward_row(
                t, t, row(values, i, width), False, centre, slope, level, scale, row(to, i, width)
            )  # fmt: skip


@device(inline=True)
def _coefficients(gradients, weight, shift, count, rstd):
    """Return slope and level of dx = w r dy + level − (x − μ) · slope in a group.

    ``gradients`` holds Σ dy (x − μ) and Σ dy of each channel, of which the first becomes
    Σ dy x̂; ``shift`` is Σ (x − μ), which differs from 0 as μ is rounded.
    """
    r = np.float64(rstd)
    shift /= count
    slope, level = 0.0, 0.0
    for c in range(weight.size):
        gradients[0, c] = r * (gradients[0, c] - shift * gradients[1, c])
        slope += weight[c] * gradients[0, c]
        level += weight[c] * gradients[1, c]
    slope *= r / count
    return r * slope, r * (shift * slope - level / count)


@compiled
def _runs_backward(dy, x, run, weight, mean, rstd, dx, gradients, thread, threads):
    """Write dx for runs of a channel, and of each example Σ dy x̂ and Σ dy."""
    batch, groups = mean.shape
    per_group = weight.size // groups
    part = span(batch * groups, thread, threads)
    for i in range(part.start, part.stop):
        n, g = i // groups, i % groups
        first, last = g * per_group, (g + 1) * per_group
        shift = 0.0
        for c in range(first, last):
            d, values = row(dy, n * weight.size + c, run), row(x, n * weight.size + c, run)
            of_dy, dot, of_x = run_sums(d, d, values, False, mean[n, g])
            gradients[n, 0, c], gradients[n, 1, c] = dot, of_dy
            shift += of_x
        exact_slope, exact_level = _coefficients(
            gradients[n, :, first:last], weight[first:last], shift, per_group * run, rstd[n, g]
        )
        centre, slope, level = mean[n, g], np.float32(exact_slope), np.float32(exact_level)
        for c in range(first, last):
            at = n * weight.size + c
            d, values, to = row(dy, at, run), row(x, at, run), row(dx, at, run)
            scale = weight[c] * rstd[n, g]
            for j in range(to.size):
                to[j] = gradient(d[j], values[j], centre, slope, level, scale)


KERNELS = {"group_norm_forward": group_norm_forward, "group_norm_backward": group_norm_backward}
