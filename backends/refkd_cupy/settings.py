"""What may be chosen about the backend: by the environment when it is loaded, or here later."""

from __future__ import annotations

import math
import os
from typing import Any

from refkd.errors import ConfigError
from refkd.switches import switch

__all__ = ["choices", "cublas_lt", "memory_limit", "tf32", "three_terms", "three_terms_from"]


def _limit(variable: str) -> dict[str, Any]:
    """Return a limit of memory as CuPy's pools take it: a size, a fraction, or nothing."""
    value = os.environ.get(variable, "").strip()
    number = value.removesuffix("%")
    if not value:
        return {}
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if number != value and 0 < amount <= 100:
        return {"fraction": amount / 100}
    if number == value and 1 <= amount < 2**63:
        return {"size": int(amount)}
    raise ConfigError(
        f"{variable} must be a number of bytes, at least 1, or a share above 0% and up to 100%, "
        f"such as 50%, got {value!r}"
    )


tf32: bool = switch("REFKD_TF32", default=False)
"""Whether matrix products and convolutions may round what they multiply to 10 bits (TF32).

``REFKD_TF32=1`` in the environment turns it on, as does ``refkd_cupy.settings.tf32 = True``.
"""

three_terms: bool = switch("REFKD_THREE_TERMS", default=True)
"""Whether tensor cores may make float32 products of three each, whose factors are TF32.

Their rounding errors are those of float32, but infinity times anything is NaN to them.
``REFKD_THREE_TERMS=0`` in the environment turns it off, as does
``refkd_cupy.settings.three_terms = False``; then they are fused multiply-adds.
"""

three_terms_from: float = math.inf
"""Linear maps of at least so many products are made of three terms each, and not by cuBLAS."""

cublas_lt: bool = True
"""Whether linear maps with a bias are made by cuBLASLt, where it is there."""

memory_limit: dict[str, Any] = _limit("REFKD_GPU_MEMORY")
"""The most memory that arrays may take: ``{"size": bytes}``, ``{"fraction": share}``, or no limit.

``REFKD_GPU_MEMORY`` in the environment sets it, to bytes (``2000000000``) or a share (``50%``);
it is read when the backend is loaded.
"""


def choices() -> tuple[Any, ...]:
    """Return all that chooses between kernels, as it is set now."""
    return tf32, three_terms, three_terms_from, cublas_lt
