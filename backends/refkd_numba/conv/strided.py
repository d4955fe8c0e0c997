"""Backward to the input of a convolution with steps: a product, and its columns added up.

Between the steps dx has entries that few taps reach, so that the convolution with the
flipped weight would multiply with zeros for the most part.
"""

from __future__ import annotations

import numpy as np

from refkd_numba.blas import sgemm
from refkd_numba.compile import compiled
from refkd_numba.conv.windows import inside

__all__ = ["backward_input", "block_rows"]

_F = 4
_COLUMN_BYTES = 1 << 18


def block_rows(output_rows: int, output_columns: int, taps: int) -> int:
    """Return how many output rows a thread multiplies at a time."""
    return max(1, min(output_rows, _COLUMN_BYTES // (_F * taps * output_columns)))


@compiled
def backward_input(
    dy, weight, dx, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, block, columns,
    thread, threads,
):  # fmt: skip
    """Write dx (N, H, W, C), an image at a time, of weight (g, K/g, kH, kW, C/g).

    ``columns`` (threads, block · Q, kH, kW, C/g) is scratch.
    """
    height, width = dx.shape[1], dx.shape[2]
    rows, across, all_outputs = dy.shape[1], dy.shape[2], dy.shape[3]
    groups, outputs, kernel_h, kernel_w, inputs = weight.shape
    taps = kernel_h * kernel_w * inputs
    mine = columns[thread]
    for n in range(thread, dx.shape[0], threads):
        dx[n] = np.float32(0)
        for p0 in range(0, rows, block):
            count = min(block, rows - p0)
            for g in range(groups):
                sgemm(
                    False, False, count * across, taps, outputs, np.float32(1),
                    dy[n, p0].ctypes.data + _F * g * outputs, all_outputs,
                    weight[g].ctypes.data, taps, np.float32(0), mine.ctypes.data, taps,
                )  # fmt: skip
                for p in range(count):
                    for i in range(kernel_h):
                        h = (p0 + p) * stride_h + i * dilation_h - pad_h
                        if h < 0 or h >= height:
                            continue
                        for j in range(kernel_w):
                            shift = j * dilation_w - pad_w
                            first, end = inside(across, stride_w, shift, width)
                            for q in range(first, end):
                                source = mine[p * across + q, i, j]
                                w = q * stride_w + shift
                                target = dx[n, h, w, g * inputs : (g + 1) * inputs]
                                for c in range(inputs):
                                    target[c] += source[c]
