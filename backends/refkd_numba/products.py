"""Products of matrices by the register-blocked tile, and the panels it reads them from.

An entry is summed in one order whatever the shapes: runs of STEPS products, one run after
another. So the logits of an example are the same bits in any company, and whatever the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from refkd_numba.compile import device
from refkd_numba.microkernel import COLUMNS, ROWS, tile

__all__ = [
    "FLOAT",
    "NONE",
    "ONCE",
    "PANEL",
    "STEPS",
    "address",
    "copy_into_panels",
    "floats",
    "panels_for",
    "product",
    "transpose_into_panels",
]

# NumPy's integers: of a literal Numba would make a type, and compile every callee anew.
FLOAT = np.int64(4)  # bytes
PANEL = np.int64(COLUMNS)
STEPS = np.int64(256)  # of a panel that stays in the level-1 cache
NONE, ONCE = np.int64(0), np.int64(1)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    signature = types.CPointer(types.float32)(types.intp)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return signature, generate


@device(inline=True)
def address(array):
    """Return where an array lies, as a signed number."""
    return np.int64(array.ctypes.data)


@device(inline=True)
def floats(address, count):
    """Return the ``count`` float32 at an address as an array."""
    return carray(_pointer(address), (count,))


@device(inline=True)
def panels_for(count):
    """Return how many panels hold ``count`` columns."""
    return (count + PANEL - 1) // PANEL


@device
def product(
    rows, panels, steps, a, a_row, a_step, b, b_panel, b_step, c, c_row, c_panel, before
):  # fmt: skip
    """Add C[m, p, :] (+)= Σ_t A[m, t] B[p, t, :] for m < ``rows``, p < ``panels``, t < ``steps``.

    Addresses and distances in bytes; ``steps`` is at most STEPS. With ``before`` nonzero the
    sums are added to what C holds.
    """
    for m in range(0, rows, ROWS):
        height = min(ROWS, rows - m)
        for p in range(panels):
            tile(
                height, a + m * a_row, a_row, a_step, NONE, b + p * b_panel, b_step, NONE, ONCE,
                steps, c + m * c_row + p * c_panel, c_row, before,
            )  # fmt: skip


@device
def transpose_into_panels(x, x_row, rows, begin, end, panels, panel_size):
    """Write x[n, i] into panels[n // PANEL, i − begin, n % PANEL] for begin <= i < end.

    Addresses and distances in bytes; lanes without a row are 0.
    """
    width = x_row // FLOAT
    for p in range(panels_for(rows)):
        count = min(PANEL, rows - p * PANEL)
        source = floats(x + p * PANEL * x_row, (count - 1) * width + end)
        target = floats(panels + p * panel_size, (end - begin) * PANEL)
        for i in range(end - begin):
            for lane in range(count):
                target[i * PANEL + lane] = source[lane * width + begin + i]
            for lane in range(count, PANEL):
                target[i * PANEL + lane] = 0


@device
def copy_into_panels(x, x_row, rows, columns, panels, panel_size):
    """Write x[n, i] into panels[i // PANEL, n, i % PANEL].

    Addresses and distances in bytes; lanes without a column are 0.
    """
    for p in range(panels_for(columns)):
        count = min(PANEL, columns - p * PANEL)
        for n in range(rows):
            source = floats(x + n * x_row + p * PANEL * FLOAT, count)
            target = floats(panels + p * panel_size + n * PANEL * FLOAT, PANEL)
            if count == PANEL:
                for lane in range(PANEL):
                    target[lane] = source[lane]
            else:
                for lane in range(count):
                    target[lane] = source[lane]
                for lane in range(count, PANEL):
                    target[lane] = 0
