"""The one table of tolerances that all tests use, by dtype and class of operation.

A tolerance bounds the scaled error max|a − b| / max|b| of an array. There is no other
place for such a number: a test that needs a looser one has found something.
"""

from __future__ import annotations

import numpy as np

from refkd.errors import check_choice

__all__ = ["GRADIENT", "GRADIENT_BY_DIFFERENCES", "tolerance"]

GRADIENT = 1e-12
"""Of a float64 gradient, against the complex step or longdouble differences."""

GRADIENT_BY_DIFFERENCES = 1e-7
"""Of a float64 gradient, against float64 differences; and the coarsest error bar of others."""

# In roundings of the dtype: pointwise is a handful of operations for each element,
# reduction sums over an axis or a batch, product is a matrix product or convolution.
_ROUNDINGS = {"pointwise": 8, "reduction": 64, "product": 256}


def tolerance(dtype: object, operation: str) -> float:
    """Return the scaled error allowed between two evaluations of one formula.

    Parameters
    ----------
    dtype : str or dtype
        ``float32`` or ``float64``: the less precise of the two evaluations.
    operation : {"pointwise", "reduction", "product"}

    Raises
    ------
    ConfigError
        If there is no such entry.
    """
    name = str(np.dtype(dtype))  # type: ignore[call-overload]
    check_choice("tolerance", "dtype", name, ("float32", "float64"))
    check_choice("tolerance", "operation", operation, _ROUNDINGS)
    return _ROUNDINGS[operation] * float(np.finfo(name).eps)
