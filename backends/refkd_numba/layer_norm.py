"""Layer norm: each row is read from memory once, and stays in the cache until it is done."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.threads import worker_threads
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.layout import rows
from refkd_numba.norm import centred, scaled
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.team import share, span

__all__ = ["KERNELS"]

_WORTH = 1 << 15
_STRETCH = 1024  # entries of a row whose sum stays in float32
_BLOCK = 64  # rows, likewise

_ZERO, _ONE = np.float32(0), np.float32(1)


def layer_norm_forward(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Any:
    if not _fits(x, weight, bias) or not is_positive(eps):
        return NotImplemented
    y, mean, rstd = empty(x.shape), empty(x.shape[:-1]), empty(x.shape[:-1])
    table = rows(x)
    share(
        _layer_norm_forward, table, np.ascontiguousarray(weight), np.ascontiguousarray(bias),
        float(eps),
        y.reshape(table.shape), mean.reshape(-1), rstd.reshape(-1), worth=x.size > _WORTH,
    )  # fmt: skip
    return y, mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> Any:
    if not _fits(x, weight) or not are_float32(x, dy) or not are_float32(mean, rstd):
        return NotImplemented
    if mean.shape != x.shape[:-1]:
        return NotImplemented
    dx = empty(x.shape)
    table = rows(x)
    worth = x.size > _WORTH
    sums = empty((worker_threads() if worth else 1, 2, weight.size), np.float64)
    share(
        _layer_norm_backward, rows(dy), table, np.ascontiguousarray(weight),
        np.ascontiguousarray(mean).reshape(-1), np.ascontiguousarray(rstd).reshape(-1),
        dx.reshape(table.shape), sums, worth=worth,
    )  # fmt: skip
    dweight, dbias = sums.sum(axis=0).astype(np.float32)
    return dx, dweight, dbias


def _fits(x: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and are_float32(*vectors)
        and vectors[0].shape == x.shape[-1:]
    )


@compiled
def _layer_norm_forward(x, weight, bias, eps, y, mean, rstd, thread, threads):
    """Write y = (x − μ)/√(v + ε) · weight + bias row by row, μ and 1/√(v + ε)."""
    each = 1 / weight.size
    part = span(x.shape[0], thread, threads)
    for i in range(part.start, part.stop):
        source, target = x[i], y[i]
        rough = np.float32(_sum(source) * each)
        total, square = _moments_about(source, rough)
        shift = total * each
        var = square * each - shift * shift
        if var < 0:
            var = 0.0
        scale = _ONE / np.sqrt(np.float32(var + eps))
        offset = np.float32(-shift) * scale
        for j in range(weight.size):
            target[j] = scaled(source[j], rough, scale, offset) * weight[j] + bias[j]
        mean[i], rstd[i] = rough + shift, scale


@device(inline=True)
def _sum(x):
    total = 0.0
    for start in range(0, x.size, _STRETCH):
        part, of_part = x[start : min(start + _STRETCH, x.size)], _ZERO
        for j in range(part.size):
            of_part += part[j]
        total += of_part
    return total


@device(inline=True)
def _moments_about(x, centre):
    """Return Σ (x − centre) and Σ (x − centre)²."""
    total, square = 0.0, 0.0
    for start in range(0, x.size, _STRETCH):
        part = x[start : min(start + _STRETCH, x.size)]
        of_part, square_of_part = _ZERO, _ZERO
        for j in range(part.size):
            value = centred(part[j], centre)
            of_part += value
            square_of_part += value * value
        total += of_part
        square += square_of_part
    return total, square


@compiled
def _layer_norm_backward(dy, x, weight, mean, rstd, dx, sums, thread, threads):
    """Write dx row by row, and for each part of the rows Σ dy x̂ and Σ dy."""
    parts, width = sums.shape[0], weight.size
    block = np.empty((2, width), np.float32)
    dweight, dbias = block[0], block[1]
    for part in range(thread, parts, threads):
        for j in range(width):
            sums[part, 0, j], sums[part, 1, j] = 0, 0
        first, last = x.shape[0] * part // parts, x.shape[0] * (part + 1) // parts
        for start in range(first, last, _BLOCK):
            for j in range(width):
                dweight[j], dbias[j] = 0, 0
            for i in range(start, min(start + _BLOCK, last)):
                _backward_row(dy[i], x[i], weight, mean[i], rstd[i], dx[i], dweight, dbias)
            for j in range(width):
                sums[part, 0, j] += dweight[j]
                sums[part, 1, j] += dbias[j]


@device(inline=True)
def _backward_row(dy, x, weight, mean, rstd, dx, dweight, dbias):
    """Write dx = r (w dy − Σ w dy/D − x̂ Σ w dy x̂/D), and add dy x̂ and dy to the other two."""
    each = 1 / x.size
    total, dot, of_x = _sums(dy, x, weight, mean)
    # The mean is rounded: what is left of Σ (x − μ) is taken out of x̂.
    shift = of_x * each
    slope = np.float32(rstd * (dot - shift * total) * each)
    level, offset = np.float32(total * each), np.float32(-shift * rstd)
    for j in range(x.size):
        normed = scaled(x[j], mean, rstd, offset)
        dweight[j] += dy[j] * normed
        dbias[j] += dy[j]
        dx[j] = (dy[j] * weight[j] - level - normed * slope) * rstd


@device(inline=True)
def _sums(dy, x, weight, mean):
    """Return Σ w dy, Σ w dy (x − μ) and Σ (x − μ)."""
    level, dot, shift = 0.0, 0.0, 0.0
    for start in range(0, x.size, _STRETCH):
        stop = min(start + _STRETCH, x.size)
        d, u, w = dy[start:stop], x[start:stop], weight[start:stop]
        level_of_part, dot_of_part, shift_of_part = _ZERO, _ZERO, _ZERO
        for j in range(u.size):
            value, weighted = centred(u[j], mean), d[j] * w[j]
            level_of_part += weighted
            dot_of_part += weighted * value
            shift_of_part += value
        level += level_of_part
        dot += dot_of_part
        shift += shift_of_part
    return level, dot, shift


KERNELS = {"layer_norm_forward": layer_norm_forward, "layer_norm_backward": layer_norm_backward}
