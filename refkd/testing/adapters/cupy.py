"""Functions of CuPy arrays: the arrays move at the border, all the work stays on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from refkd.errors import DtypeError, import_extra
from refkd.testing.adapters import Subject, flat_gradients
from refkd.testing.structure import flatten, rebuild

__all__ = ["from_function"]


def from_function(
    f: Callable[..., Any], params: Mapping[str, Any], grad: Callable[..., Mapping[str, Any]]
) -> Subject:
    """Return the subject for a function of CuPy arrays and its gradient.

    Parameters
    ----------
    f : callable
        ``f(**params)`` is a scalar or a CuPy array of shape ().
    params : mapping of str to CuPy array
        Also nested; what is no CuPy array reaches ``f`` and ``grad`` as it is.
    grad : callable
        ``grad(**params)`` is a mapping of CuPy arrays that mirrors ``params``.

    Returns
    -------
    Subject
        Each call works on fresh copies on the current device, so a function that writes
        into its arguments is not noticed.

    Raises
    ------
    MissingExtra
        If CuPy cannot be imported.
    DtypeError
        If ``params`` is no mapping.
    """
    cupy = import_extra("cupy", "cuda12", "checking a gradient of CuPy arrays")
    if not isinstance(params, Mapping):
        raise DtypeError(
            f"cupy.from_function: params must be a mapping of names to arrays, "
            f"got {type(params).__name__}"
        )
    leaves = flatten(params)
    names = [path for path, leaf in leaves.items() if isinstance(leaf, cupy.ndarray)]

    def to_host(leaf: Any) -> Any:
        return cupy.asnumpy(leaf) if isinstance(leaf, cupy.ndarray) else leaf

    def on_device(given: Mapping[str, Any]) -> Any:
        for name in names:
            if given[name].dtype.char in "gG":
                raise TypeError(f"CuPy has no {given[name].dtype} arrays")
        return rebuild(params, {**given, **{name: cupy.asarray(given[name]) for name in names}})

    def scalar(**given: Any) -> Any:
        return to_host(f(**on_device(given)))

    def gradient(**given: Any) -> Any:
        returned = flat_gradients(grad(**on_device(given)))
        if not isinstance(returned, Mapping):
            return returned
        return {path: to_host(leaf) for path, leaf in returned.items()}

    return Subject(scalar, {path: to_host(leaf) for path, leaf in leaves.items()}, gradient)
