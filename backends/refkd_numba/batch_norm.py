"""Batch norm, with or without ReLU behind it: one pass for the sums, one for the result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.threads import worker_threads
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled, device
from refkd_numba.norm import (
    backward_row,
    column_moments,
    column_sums,
    forward_row,
    gradient,
    memory,
    memory_as,
    passed,
    result,
    row,
    row_width,
    run_moments,
    run_sums,
    scaled,
)
from refkd_numba.operands import are_float32, is_positive
from refkd_numba.team import share, span

__all__ = ["KERNELS", "batch_norm_relu_backward", "batch_norm_relu_forward"]

_WORTH = 1 << 16


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    eps: float = 1e-5,
) -> Any:
    return _forward(x, weight, bias, running_mean, running_var, eps, -math.inf)


def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, batch_statistics: bool
) -> Any:
    return _backward(dy, None, x, weight, mean, rstd, batch_statistics)


def batch_norm_relu_forward(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    eps: float = 1e-5,
) -> Any:
    """Return what ``batch_norm_forward`` does, with y = max(y, 0)."""
    return _forward(x, weight, bias, running_mean, running_var, eps, 0.0)


def batch_norm_relu_backward(
    dy: Array,
    y: Array,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    *,
    batch_statistics: bool,
) -> Any:
    """Return what ``batch_norm_backward`` does for dy · [y > 0]."""
    return _backward(dy, y, x, weight, mean, rstd, batch_statistics)


def _forward(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None,
    running_var: Array | None,
    eps: float,
    least: float,
) -> Any:
    of_batch = running_mean is None and running_var is None
    running = () if of_batch else (running_mean, running_var)
    if not _fits(x, weight, bias, *running) or not is_positive(eps):
        return NotImplemented
    channels, count = x.shape[1], x.size // x.shape[1]
    if of_batch and count < 2:
        return NotImplemented
    flat, run = memory(x)
    y, flat_y = result(x, run)
    worth = x.size > _WORTH
    if of_batch:
        mean, var = empty((channels,)), empty((channels,))
        sums = _scratch(x, run, worth, 2)
        moments = _moments_of_columns if run == 1 else _moments_of_planes
        share(moments, flat, run, channels, sums, worth=worth)
    else:
        mean, var = running_mean.copy(order="C"), running_var.copy(order="C")
        sums = _scratch(x, run, worth, 0)
    rstd = empty((channels,))
    share(
        _columns_forward if run == 1 else _planes_forward, flat, run, flat_y, sums,
        np.ascontiguousarray(weight), np.ascontiguousarray(bias), float(eps), np.float32(least),
        mean, var, rstd, worth=worth,
    )  # fmt: skip
    return y, mean, var, rstd


def _backward(
    dy: Array,
    y: Array | None,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    batch_statistics: bool,
) -> Any:
    images = (dy,) if y is None else (dy, y)
    if not _fits(x, weight, mean, rstd) or not are_float32(x, *images):
        return NotImplemented
    channels, count = x.shape[1], x.size // x.shape[1]
    if batch_statistics and count < 2:
        return NotImplemented
    flat_x, run = memory(x)
    flat_dy, *others = (memory_as(a, run) for a in images)
    flat_y = others[0] if others else flat_dy
    dx, flat_dx = result(x, run)
    worth = x.size > _WORTH
    weight, mean, rstd = map(np.ascontiguousarray, (weight, mean, rstd))
    sums = _scratch(x, run, worth, 3)
    relu = y is not None
    share(
        _sums_of_columns if run == 1 else _sums_of_planes, flat_dy, flat_y, flat_x, run, relu,
        mean, sums, worth=worth,
    )  # fmt: skip
    dweight, dbias = empty((channels,)), empty((channels,))
    share(
        _columns_backward if run == 1 else _planes_backward, flat_dy, flat_y, flat_x, run, relu,
        bool(batch_statistics), flat_dx, sums, weight, mean, rstd, dweight, dbias, worth=worth,
    )  # fmt: skip
    return dx, dweight, dbias


def _fits(x: Any, *vectors: Any) -> bool:
    return (
        are_float32(x)
        and x.ndim >= 2
        and are_float32(*vectors)
        and vectors[0].shape == (x.shape[1],)
    )


def _scratch(x: Array, run: int, worth: bool, kinds: int) -> Array:
    """Return room for sums: parts of the batch x kinds x a row, of whole repeats of the channels.

    How the batch is split depends on the number of threads alone.
    """
    channels = x.shape[1]
    if run != 1:
        return empty((x.shape[0], kinds, channels), np.float64)
    width = row_width(channels, x.size // channels)
    return empty((worker_threads() if worth else 1, kinds, width), np.float64)


@compiled
def _moments_of_columns(x, run, channels, sums, thread, threads):
    """Sum x − s and its square down the rows of each part; s is the first value of a channel."""
    parts, _, width = sums.shape
    rows = (x.size + width - 1) // width
    scratch = np.empty((4, width), np.float32)
    origin = scratch[3]
    for j in range(width):
        origin[j] = x[j % channels]
    for part in range(thread, parts, threads):
        begin, end = rows * part // parts * width, rows * (part + 1) // parts * width
        column_moments(
            x[begin : min(end, x.size)], origin, scratch, sums[part, 0], sums[part, 1]
        )  # fmt: skip


@compiled
def _moments_of_planes(x, run, channels, sums, thread, threads):
    """Sum x − s and its square over each plane of (N, C, run); s is the first of a channel."""
    part = span(x.size // run, thread, threads)
    for plane in range(part.start, part.stop):
        n, c = plane // channels, plane % channels
        sums[n, 0, c], sums[n, 1, c] = run_moments(row(x, plane, run), np.float64(x[c * run]))


@device
def _forward_constants(x, run, sums, weight, bias, eps, mean, var, rstd, own):
    """Return m, scale and offset of y = (x − m) · scale + offset, for each column of sums.

    Every thread finds them; one of them, for which ``own`` is true, writes the statistics.
    In evaluation there are no sums: the mean and the variance are those that are given.
    """
    channels, width = weight.size, sums.shape[2]
    count = x.size // channels
    constants = np.empty((3, width), np.float32)
    for c in range(channels):
        if sums.shape[1]:
            total = _summed(sums, 0, c, channels) / count
            exact_mean = np.float64(x[c * run]) + total
            exact_var = _summed(sums, 1, c, channels) / count - total * total
            if exact_var < 0:
                exact_var = 0.0
            # Not by isfinite: that is x − x, which LLVM makes 0 where sums may be reordered.
            if not abs(exact_mean) < np.inf:
                exact_mean, exact_var = np.nan, np.nan
            if own:
                mean[c], var[c] = exact_mean, exact_var
        else:
            exact_mean, exact_var = np.float64(mean[c]), np.float64(var[c])
        exact_rstd = 1 / np.sqrt(exact_var + eps)
        if own:
            rstd[c] = exact_rstd
        rounded = np.float32(exact_mean)
        scale = weight[c] * exact_rstd
        offset = bias[c] - (exact_mean - rounded) * scale
        for j in range(c, width, channels):
            constants[0, j], constants[1, j], constants[2, j] = rounded, scale, offset
    return constants


@device(inline=True)
def _summed(sums, kind, channel, channels):
    """Return a channel's sum of one kind, over all parts and all repeats of the channels."""
    total = 0.0
    for part in range(sums.shape[0]):
        for j in range(channel, sums.shape[2], channels):
            total += sums[part, kind, j]
    return total


@compiled
def _columns_forward(x, run, y, sums, weight, bias, eps, least, mean, var, rstd, thread, threads):
    """Write y = max((x − μ)/√(v + ε) · weight + bias, least) for rows of channels."""
    constants = _forward_constants(x, run, sums, weight, bias, eps, mean, var, rstd, thread == 0)
    width = constants.shape[1]
    part = span((x.size + width - 1) // width, thread, threads)
    for i in range(part.start, part.stop):
        forward_row(
            row(x, i, width), constants[0], constants[1], constants[2], least, row(y, i, width)
        )


@compiled
def _planes_forward(x, run, y, sums, weight, bias, eps, least, mean, var, rstd, thread, threads):
    """Write y = max((x − μ)/√(v + ε) · weight + bias, least) for planes of a channel."""
    constants = _forward_constants(x, run, sums, weight, bias, eps, mean, var, rstd, thread == 0)
    part = span(x.size // run, thread, threads)
    for plane in range(part.start, part.stop):
        c = plane % weight.size
        centre, scale, offset = constants[0, c], constants[1, c], constants[2, c]
        source, target = row(x, plane, run), row(y, plane, run)
        for i in range(source.size):
            value = scaled(source[i], centre, scale, offset)
            target[i] = least if value <= least else value


@compiled
def _sums_of_columns(dy, y, x, run, relu, mean, sums, thread, threads):
    """Sum dy, dy (x − μ) and x − μ down the rows of each part, dy where y > 0 if ``relu``."""
    parts, _, width = sums.shape
    rows = (x.size + width - 1) // width
    scratch = np.empty((4, width), np.float32)
    centre = scratch[3]
    for j in range(width):
        centre[j] = mean[j % mean.size]
    for part in range(thread, parts, threads):
        begin = rows * part // parts * width
        end = min(rows * (part + 1) // parts * width, x.size)
        column_sums(
            dy[begin:end], y[begin:end], x[begin:end], relu, centre, scratch, sums[part]
        )  # fmt: skip


@compiled
def _sums_of_planes(dy, y, x, run, relu, mean, sums, thread, threads):
    """Sum dy, dy (x − μ) and x − μ over each plane, dy where y > 0 if ``relu``."""
    part = span(x.size // run, thread, threads)
    for plane in range(part.start, part.stop):
        n, c = plane // mean.size, plane % mean.size
        sums[n, 0, c], sums[n, 1, c], sums[n, 2, c] = run_sums(
            row(dy, plane, run), row(y, plane, run), row(x, plane, run), relu, mean[c]
        )


@device
def _backward_constants(x, sums, of_batch, weight, mean, rstd, dweight, dbias, own):
    """Return m, slope, level and scale of dx = dy · scale + level − (x − m) · slope.

    For each column of sums, and as in the forward one thread writes what the caller gets.
    """
    channels, width = weight.size, sums.shape[2]
    count = x.size // channels
    constants = np.empty((4, width), np.float32)
    for c in range(channels):
        total, dot = _summed(sums, 0, c, channels), _summed(sums, 1, c, channels)
        shift = _summed(sums, 2, c, channels) / count if of_batch else 0.0
        r = np.float64(rstd[c])
        of_weight = r * (dot - shift * total)
        if own:
            dweight[c], dbias[c] = of_weight, total
        scale = weight[c] * r
        slope = r * of_weight / count
        level = (shift * slope - total / count) * scale
        for j in range(c, width, channels):
            constants[0, j], constants[1, j] = mean[c], slope * scale
            constants[2, j], constants[3, j] = level, scale
    return constants


@compiled
def _columns_backward(
    dy, y, x, run, relu, of_batch, dx, sums, weight, mean, rstd, dweight, dbias, thread, threads
):
    """Write dx = w r (dy − db/M − x̂ dw/M) for rows of channels, or w r dy unless ``of_batch``."""
    constants = _backward_constants(
        x, sums, of_batch, weight, mean, rstd, dweight, dbias, thread == 0
    )
    width = constants.shape[1]
    part = span((x.size + width - 1) // width, thread, threads)
    for i in range(part.start, part.stop):
        d, v, to = row(dy, i, width), row(y, i, width), row(dx, i, width)
        if of_batch:
            backward_row(
                d, v, row(x, i, width), relu,
                constants[0], constants[1], constants[2], constants[3], to,
            )  # fmt: skip
        else:
            scale = constants[3]
            for j in range(to.size):
                to[j] = passed(d[j], v[j], relu) * scale[j]


@compiled
def _planes_backward(
    dy, y, x, run, relu, of_batch, dx, sums, weight, mean, rstd, dweight, dbias, thread, threads
):
    """Write dx = w r (dy − db/M − x̂ dw/M) for planes, or w r dy unless ``of_batch``."""
    constants = _backward_constants(
        x, sums, of_batch, weight, mean, rstd, dweight, dbias, thread == 0
    )
    part = span(x.size // run, thread, threads)
    for plane in range(part.start, part.stop):
        c = plane % weight.size
        d, v, u = row(dy, plane, run), row(y, plane, run), row(x, plane, run)
        to = row(dx, plane, run)
        centre, slope, level, scale = (
            constants[0, c], constants[1, c], constants[2, c], constants[3, c]
        )  # fmt: skip
        if of_batch:
            for i in range(to.size):
                to[i] = gradient(passed(d[i], v[i], relu), u[i], centre, slope, level, scale)
        else:
            for i in range(to.size):
                to[i] = passed(d[i], v[i], relu) * scale


KERNELS = {"batch_norm_forward": batch_norm_forward, "batch_norm_backward": batch_norm_backward}
