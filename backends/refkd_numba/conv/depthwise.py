"""Depthwise convolution: every channel has one filter of its own. Loops run along the channels."""

from __future__ import annotations

import numpy as np

from refkd_numba.compile import compiled
from refkd_numba.conv.windows import inside

__all__ = ["backward_input", "backward_weight", "forward"]


@compiled
def forward(
    x, weight, bias, y, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, relu,
    thread, threads,
):  # fmt: skip
    """Write y (N, P, Q, C) of x (N, H, W, C) and weight (kH, kW, C); ``relu`` clips it."""
    height, width, rows, columns = x.shape[1], x.shape[2], y.shape[1], y.shape[2]
    for unit in range(thread, y.shape[0] * rows, threads):
        n = unit // rows
        p = unit - n * rows
        for q in range(columns):
            y[n, p, q] = bias
        for i in range(weight.shape[0]):
            h = p * stride_h + i * dilation_h - pad_h
            if h < 0 or h >= height:
                continue
            for j in range(weight.shape[1]):
                shift = j * dilation_w - pad_w
                first, end = inside(columns, stride_w, shift, width)
                for q in range(first, end):
                    target, source, tap = y[n, p, q], x[n, h, q * stride_w + shift], weight[i, j]
                    for c in range(target.size):
                        target[c] += source[c] * tap[c]
        if relu:
            for q in range(columns):
                target = y[n, p, q]
                for c in range(target.size):
                    target[c] = np.float32(0) if target[c] <= 0 else target[c]


@compiled
def backward_input(
    dy, weight, dx, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, thread, threads
):
    """Write dx (N, H, W, C), an image at a time."""
    height, width, rows, columns = dx.shape[1], dx.shape[2], dy.shape[1], dy.shape[2]
    for n in range(thread, dx.shape[0], threads):
        dx[n] = np.float32(0)
        for p in range(rows):
            for i in range(weight.shape[0]):
                h = p * stride_h + i * dilation_h - pad_h
                if h < 0 or h >= height:
                    continue
                for j in range(weight.shape[1]):
                    shift = j * dilation_w - pad_w
                    first, end = inside(columns, stride_w, shift, width)
                    for q in range(first, end):
                        target, source = dx[n, h, q * stride_w + shift], dy[n, p, q]
                        tap = weight[i, j]
                        for c in range(target.size):
                            target[c] += source[c] * tap[c]


@compiled
def backward_weight(
    x, dy, sums, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, thread, threads
):
    """Write each thread's part of dW into sums (threads, kH, kW, C): rows, images, their sum."""
    height, width, rows, columns = x.shape[1], x.shape[2], dy.shape[1], dy.shape[2]
    channels = x.shape[3]
    mine = sums[thread]
    mine[:] = np.float32(0)
    of_image = np.empty(mine.shape, np.float32)
    of_row = np.empty(channels, np.float32)
    for n in range(thread, x.shape[0], threads):
        of_image[:] = np.float32(0)
        for p in range(rows):
            for i in range(mine.shape[0]):
                h = p * stride_h + i * dilation_h - pad_h
                if h < 0 or h >= height:
                    continue
                for j in range(mine.shape[1]):
                    shift = j * dilation_w - pad_w
                    first, end = inside(columns, stride_w, shift, width)
                    of_row[:] = np.float32(0)
                    for q in range(first, end):
                        source, gradient = x[n, h, q * stride_w + shift], dy[n, p, q]
                        for c in range(channels):
                            of_row[c] += source[c] * gradient[c]
                    target = of_image[i, j]
                    for c in range(channels):
                        target[c] += of_row[c]
        for i in range(mine.shape[0]):
            for j in range(mine.shape[1]):
                for c in range(channels):
                    mine[i, j, c] += of_image[i, j, c]
