"""What may be chosen about the backend."""

from __future__ import annotations

from refkd.switches import switch

__all__ = ["choices", "winograd"]

winograd: bool = switch("REFKD_WINOGRAD", default=True)
"""Whether 3 × 3 convolutions may use Winograd's algorithm, whose rounding errors are larger.

``REFKD_WINOGRAD=0`` in the environment turns it off, as does
``refkd_numba.settings.winograd = False``.
"""


def choices() -> tuple[bool]:
    """Return all that chooses between kernels, as it is set now."""
    return (winograd,)
