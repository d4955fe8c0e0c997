"""Addresses from which vectors of 16 bytes can be read."""

from __future__ import annotations

from refkd.dispatch import Array
from refkd_cupy import device

__all__ = ["BYTES", "at_vectors"]

BYTES = 16


def at_vectors(x: Array) -> Array:
    """Return a C-ordered x, or a copy of it where its address is no multiple of BYTES.

    So a kernel, and what it rounds, is the same wherever an array lies.
    """
    if device.pointer(x) % BYTES == 0:
        return x
    copy = device.empty(x.shape, x.dtype)
    copy[...] = x
    return copy
