"""Functions that return their value and gradient together, as SciPy's ``jac=True`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refkd.errors import ConfigError, DtypeError
from refkd.testing.adapters import Subject

__all__ = ["from_value_and_grad"]


def from_value_and_grad(fun: Callable[..., tuple[Any, Any]], params: Any) -> Subject:
    """Return the subject whose function and gradient are the two returns of ``fun``.

    Parameters
    ----------
    fun : callable
        ``fun(**params)`` is (value, mapping of gradients); for a single array,
        ``fun(x)`` is (value, gradient).
    params : mapping of str to array, or array
        A single array is called ``"x"`` in the report.

    Returns
    -------
    Subject
        Its calls raise ConfigError if ``fun`` returns no pair.

    Raises
    ------
    DtypeError
        If ``params`` is neither.

    Examples
    --------
    >>> from refkd.testing import check_grad
    >>> fun = lambda x: ((x**2).sum(), 2 * x)
    >>> check_grad(*from_value_and_grad(fun, np.array([1.0, 2.0]))).ok
    True
    """
    if isinstance(params, Mapping):
        return Subject(
            lambda **given: _pair(fun(**given))[0], params, lambda **given: _pair(fun(**given))[1]
        )
    if not isinstance(params, (np.ndarray, np.generic)):
        raise DtypeError(
            f"from_value_and_grad: params must be an array or a mapping of names to arrays, "
            f"got {type(params).__name__}"
        )
    return Subject(lambda x: _pair(fun(x))[0], {"x": params}, lambda x: {"x": _pair(fun(x))[1]})


def _pair(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ConfigError(
            f"from_value_and_grad: fun must return (value, gradient), got {type(returned).__name__}"
        )
    return returned[0], returned[1]
