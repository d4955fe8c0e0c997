"""What may be chosen about the backend."""

from __future__ import annotations

import os

__all__ = ["memory_limit", "tf32"]

tf32: bool = os.environ.get("REFKD_TF32", "0") not in ("", "0")
"""Whether matrix products and convolutions may round what they multiply to 10 bits (TF32).

``REFKD_TF32=1`` in the environment turns it on, as does ``refkd_cupy.settings.tf32 = True``.
"""

memory_limit: str | None = os.environ.get("REFKD_GPU_MEMORY") or None
"""The most memory that arrays may take: bytes (``"2000000000"``) or a share (``"50%"``).

``REFKD_GPU_MEMORY`` in the environment sets it; it is read when the backend is loaded.
"""
