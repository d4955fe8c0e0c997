"""Which outputs a tap serves, and which taps an output has."""

from __future__ import annotations

from refkd_numba.compile import device

__all__ = ["inside", "taps_inside"]


@device(inline=True)
def inside(count, step, shift, size):
    """Return the range of o < count for which o·step + shift lies in [0, size)."""
    first = max(0, -(shift // step))
    last = min(count - 1, (size - 1 - shift) // step)
    return first, max(first, last + 1)


@device(inline=True)
def taps_inside(top, taps, dilation, height, skip):
    """Return the range of taps i with row top + i·dilation inside; one, where there is none.

    Without ``skip``, all taps.
    """
    if not skip:
        return 0, taps
    first = max(0, (dilation - 1 - top) // dilation)
    end = min(taps, (height - 1 - top) // dilation + 1)
    first = min(first, taps - 1)
    return first, max(end, first + 1)
