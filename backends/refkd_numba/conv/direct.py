"""Direct convolution, forward and backward to the weight, by the register-blocked tile.

Images are channels-last. A thread takes some output rows of an image at a time, and copies
the input rows they see, with their padding, beside each other where they do not lie so
already. Weights are packed into panels of COLUMNS filters: [panel, i, j, c, filter].
"""

from __future__ import annotations

import numpy as np

from refkd_numba.compile import compiled, device
from refkd_numba.conv.windows import taps_inside
from refkd_numba.microkernel import COLUMNS, tile

__all__ = ["backward_weight", "block_of_gradient", "forward", "pack", "rows_at_a_time"]

_F = 4  # bytes of a float32
_PANEL_STEPS = 320  # of a panel that stays in the level-1 cache: 20 to 40 KiB
_GRADIENT_PIXELS = 256
_ROW_BYTES = 1 << 17  # of input rows at a time: they stay in the level-2 cache


def rows_at_a_time(output_rows: int, row_values: int, stride: int) -> int:
    """Return how many output rows a thread takes at a time."""
    return max(1, min(output_rows, _ROW_BYTES // (_F * stride * row_values)))


def block_of_gradient(output_rows: int, output_columns: int) -> int:
    """Return how many output rows the backward takes at a time: a panel of dy in level 1."""
    return max(1, min(output_rows, _GRADIENT_PIXELS // output_columns))


@compiled
def pack(weight, panels, groups, flipped):
    """Pack (K, C/g, kH, kW) into panels (g, ⌈K/g / COLUMNS⌉, kH, kW, C/g, COLUMNS).

    ``flipped`` packs the weight of the adjoint: taps in reverse, filters and channels of each
    group exchanged. Returns whether all entries are finite.
    """
    finite = True
    height, width = weight.shape[2], weight.shape[3]
    inputs, outputs = panels.shape[4], weight.shape[0] // groups
    if flipped:
        outputs = weight.shape[1]
    for g in range(groups):
        for panel in range(panels.shape[1]):
            for i in range(height):
                for j in range(width):
                    for c in range(inputs):
                        for lane in range(COLUMNS):
                            k = panel * COLUMNS + lane
                            value = np.float32(0)
                            if k < outputs:
                                if flipped:
                                    value = weight[g * inputs + c, k, height - 1 - i, width - 1 - j]
                                else:
                                    value = weight[g * outputs + k, c, i, j]
                                # isfinite is x − x, which may become 0 where sums are reordered
                                finite = finite and abs(value) < np.inf
                            panels[g, panel, i, j, c, lane] = value
    return finite


@device
def copy_rows(x, n, top, left, first, channels, rows):
    """Write x[n, top + h, left + w, first + c] into rows (h, w, c), zero outside of x."""
    height, width = x.shape[1], x.shape[2]
    for h in range(rows.shape[0]):
        source = top + h
        if source < 0 or source >= height:
            rows[h] = np.float32(0)
            continue
        begin = max(0, -left)
        end = max(begin, min(rows.shape[1], width - left))
        for w in range(min(begin, rows.shape[1])):
            rows[h, w] = np.float32(0)
        for w in range(begin, end):
            for c in range(channels):
                rows[h, w, c] = x[n, source, left + w, first + c]
        for w in range(end, rows.shape[1]):
            rows[h, w] = np.float32(0)


@compiled
def forward(
    x, panels, bias, y, groups, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    block, relu, skip, scratch, tails, thread, threads,
):  # fmt: skip
    """Write y (N, P, Q, K) of x (N, H, W, C); ``relu`` clips what is below 0.

    With ``skip``, taps that see nothing but the padding above or below are left out; where a
    weight is not finite they must not be, since 0 times infinity is NaN. ``bias`` may be empty.
    ``scratch`` has the input rows of a block for each thread, ``tails`` a block of outputs of
    one panel.
    """
    batch, height, width = x.shape[0], x.shape[1], x.shape[2]
    out_rows, out_columns, all_outputs = y.shape[1], y.shape[2], y.shape[3]
    kernel_h, kernel_w, inputs = panels.shape[2], panels.shape[3], panels.shape[4]
    outputs = all_outputs // groups
    in_place = pad_h == 0 and pad_w == 0 and groups == 1
    blocks = (out_rows + block - 1) // block
    rows, tail = scratch[thread], tails[thread]
    tap = dilation_w * inputs  # from one tap of a row to the next, in values
    run = inputs if dilation_w > 1 else kernel_w * inputs
    for unit in range(thread, batch * blocks, threads):
        n = unit // blocks
        p0 = (unit - n * blocks) * block
        count = min(block, out_rows - p0)
        for g in range(groups):
            if in_place:
                a0 = x.ctypes.data + _F * (n * height + p0 * stride_h) * width * inputs
                pitch = width * inputs
            else:
                seen = (count - 1) * stride_h + (kernel_h - 1) * dilation_h + 1
                copy_rows(x, n, p0 * stride_h - pad_h, -pad_w, g * inputs, inputs, rows[:seen])
                a0, pitch = rows.ctypes.data, rows.shape[1] * inputs
            for panel in range(panels.shape[1]):
                k0 = panel * COLUMNS
                lanes = min(COLUMNS, outputs - k0)
                if lanes == COLUMNS:
                    c0 = y.ctypes.data + _F * (
                        (n * out_rows + p0) * out_columns * all_outputs + g * outputs + k0
                    )
                    c_row = _F * all_outputs
                else:
                    c0, c_row = tail.ctypes.data, _F * COLUMNS
                b0 = panels[g, panel].ctypes.data
                panel_rows(
                    a0, pitch, stride_h, stride_w, dilation_h, tap, inputs, run, b0, kernel_h,
                    kernel_w, c0, c_row, count, out_columns, p0 * stride_h - pad_h, height, skip,
                )  # fmt: skip
                if lanes < COLUMNS:
                    for q in range(count * out_columns):
                        for k in range(lanes):
                            p = q // out_columns
                            y[n, p0 + p, q - p * out_columns, g * outputs + k0 + k] = tail[q, k]
        for p in range(p0, p0 + count):
            finish(y[n, p], bias, relu)


@device
def panel_rows(
    a0, pitch, stride_h, stride_w, dilation_h, tap, inputs, run, b0, kernel_h, kernel_w,
    c0, c_row, count, out_columns, top, height, skip,
):  # fmt: skip
    """Convolve ``count`` output rows with one panel, some taps at a time.

    The first row sees input rows from ``top`` on.
    """
    a_row, a_jump = _F * stride_w * inputs, _F * dilation_h * pitch
    b_jump = _F * COLUMNS * kernel_w * inputs
    if run == kernel_w * inputs and kernel_h * run <= _PANEL_STEPS:
        for p in range(count):
            first, end = taps_inside(top + p * stride_h, kernel_h, dilation_h, height, skip)
            tile(
                out_columns, a0 + _F * p * stride_h * pitch + first * a_jump, a_row, _F, a_jump,
                b0 + first * b_jump, _F * COLUMNS, b_jump, end - first, run,
                c0 + p * out_columns * c_row, c_row, 0,
            )  # fmt: skip
        return
    for i in range(kernel_h):
        for j in range(kernel_w * inputs // run):
            for t in range(0, run, _PANEL_STEPS):
                steps = min(_PANEL_STEPS, run - t)
                b = b0 + i * b_jump + _F * COLUMNS * (j * inputs + t)
                a = a0 + i * a_jump + _F * (j * tap + t)
                for p in range(count):
                    first, end = taps_inside(top + p * stride_h, kernel_h, dilation_h, height, skip)
                    if first <= i < end:
                        tile(
                            out_columns, a + _F * p * stride_h * pitch, a_row, _F, 0,
                            b, _F * COLUMNS, 0, 1, steps,
                            c0 + p * out_columns * c_row, c_row, i - first + j + t,
                        )  # fmt: skip


@device
def finish(rows, bias, relu):
    """Add the bias to rows (Q, K), and clip what is below 0."""
    for q in range(rows.shape[0]):
        row = rows[q]
        if bias.size:
            for k in range(row.size):
                row[k] += bias[k]
        if relu:
            for k in range(row.size):
                row[k] = np.float32(0) if row[k] <= 0 else row[k]


@compiled
def backward_weight(
    x, dy, sums, groups, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    block, scratch, columns, thread, threads,
):  # fmt: skip
    """Write each thread's part of dW into sums (threads, g, kH, kW, C/g, padded K/g).

    ``scratch`` has the input rows of a block of output rows for each thread, ``columns`` its dy
    of one panel.
    """
    batch, height, width, _ = x.shape
    out_rows, out_columns, all_outputs = dy.shape[1], dy.shape[2], dy.shape[3]
    kernel_h, kernel_w, inputs, padded = (
        sums.shape[2], sums.shape[3], sums.shape[4], sums.shape[5],
    )  # fmt: skip
    outputs = all_outputs // groups
    in_place = pad_h == 0 and pad_w == 0 and groups == 1
    rows, panel, mine = scratch[thread], columns[thread], sums[thread]
    run = inputs if dilation_w > 1 else kernel_w * inputs
    blocks = (out_rows + block - 1) // block
    mine[:] = np.float32(0)
    for unit in range(thread, batch * blocks, threads):
        n = unit // blocks
        p0 = (unit - n * blocks) * block
        count = min(block, out_rows - p0)
        for g in range(groups):
            if in_place:
                a0 = x.ctypes.data + _F * (n * height + p0 * stride_h) * width * inputs
                pitch = width * inputs
            else:
                seen = (count - 1) * stride_h + (kernel_h - 1) * dilation_h + 1
                copy_rows(x, n, p0 * stride_h - pad_h, -pad_w, g * inputs, inputs, rows[:seen])
                a0, pitch = rows.ctypes.data, rows.shape[1] * inputs
            for k0 in range(0, padded, COLUMNS):
                copy_panel(dy, n, p0, count, g * outputs + k0, min(COLUMNS, outputs - k0), panel)
                for i in range(kernel_h):
                    for j in range(kernel_w * inputs // run):
                        tile(
                            run, a0 + _F * (i * dilation_h * pitch + j * dilation_w * inputs),
                            _F, _F * stride_w * inputs, _F * stride_h * pitch,
                            panel.ctypes.data, _F * COLUMNS, _F * COLUMNS * out_columns,
                            count, out_columns,
                            mine[g, i, j].ctypes.data + _F * k0, _F * padded, 1,
                        )  # fmt: skip


@device
def copy_panel(dy, n, p0, count, first, lanes, panel):
    """Write dy[n, p0 + p, q, first + k] into panel (p q, COLUMNS), zero from ``lanes`` on."""
    width = dy.shape[2]
    for p in range(count):
        for q in range(width):
            source, target = dy[n, p0 + p, q, first : first + lanes], panel[p * width + q]
            if lanes == COLUMNS:
                for k in range(COLUMNS):
                    target[k] = source[k]
            else:
                for k in range(lanes):
                    target[k] = source[k]
                for k in range(lanes, COLUMNS):
                    target[k] = np.float32(0)
