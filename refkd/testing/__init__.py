"""Checking gradients: hand-written ones against numeric derivatives; needs only NumPy.

Names load on first use, so that the pytest plugin, which is part of every pytest run,
costs nothing where nobody checks a gradient.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refkd.testing.adjoint import check_adjoint
    from refkd.testing.gradcheck import check_grad
    from refkd.testing.products import check_hvp, check_vjp
    from refkd.testing.report import (
        Comparison,
        GradCheckError,
        GradReport,
        ParameterReport,
        Verdict,
    )

__all__ = [
    "Comparison",
    "GradCheckError",
    "GradReport",
    "ParameterReport",
    "Verdict",
    "check_adjoint",
    "check_grad",
    "check_hvp",
    "check_vjp",
]

_HOMES = {
    "check_grad": "gradcheck",
    "check_adjoint": "adjoint",
    "check_hvp": "products",
    "check_vjp": "products",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"refkd.testing.{_HOMES.get(name, 'report')}")
    return getattr(home, name)
