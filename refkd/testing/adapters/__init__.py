"""What is to be checked, in the form :func:`refkd.testing.check_grad` takes.

Each file here turns one way of writing a function with its gradient into a
:class:`Subject`, so that ``check_grad(*subject)`` is the whole call: NumPy pairs
(``pair``), layers (``layer``), functions that return value and gradient
(``value_and_grad``), CuPy (``cupy``) and PyTorch (``torch``). The file that is used is
imported, and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.errors import ConfigError, DtypeError
from refkd.testing.structure import flatten, rebuild

__all__ = [
    "Subject",
    "adapt",
    "cotangent_generator",
    "cotangents_like",
    "draw_cotangents",
    "flat_gradients",
    "in_precision_of",
    "inner_product",
    "is_floating",
]


class Subject(NamedTuple):
    """A scalar function and its gradient, as NumPy sees them.

    Attributes
    ----------
    f : callable
        ``f(**params)`` is a scalar.
    params : mapping of str to array
        Where the gradient is checked.
    grad : callable
        ``grad(**params)`` is a mapping with an array for each of ``params``.
    """

    f: Callable[..., Any]
    params: Mapping[str, Any]
    grad: Callable[..., Mapping[str, Any]]


def adapt(
    f: Callable[..., Any],
    params: Mapping[str, Any],
    grad: Callable[..., Mapping[str, Any]] | None,
) -> Subject | None:
    """Return the subject for ``params`` that hold PyTorch tensors or CuPy arrays, else None.

    Parameters
    ----------
    f, params, grad
        As in :func:`refkd.testing.check_grad`. ``grad=None`` asks for autograd's
        gradient, which tensors have.

    Raises
    ------
    DtypeError
        If arrays of more than one library are to be differentiated.
    ConfigError
        If ``grad`` is None for CuPy arrays.
    """
    found: dict[str, str] = {}
    for path, leaf in flatten(params).items():
        found.setdefault(_library(leaf), path)
    found.pop("", None)
    if not found.keys() & {"torch", "cupy"}:
        return None
    if len(found) > 1:
        given = ", ".join(f"{path} is {_KINDS[library]}" for library, path in found.items())
        raise DtypeError(
            f"check_grad: the parameters must belong to one library, but {given}; convert "
            f"them, and leave what is a constant to f itself"
        )
    if "torch" in found:
        from refkd.testing.adapters.torch import from_function

        return from_function(f, params, grad)
    if grad is None:
        raise ConfigError(
            f"check_grad: grad is missing; {found['cupy']} is a CuPy array, and only PyTorch "
            f"tensors have a gradient of their own"
        )
    from refkd.testing.adapters import cupy

    return cupy.from_function(f, params, grad)


_KINDS = {
    "torch": "a PyTorch tensor",
    "cupy": "a CuPy array",
    "numpy": "a floating NumPy array",
}


def _library(leaf: Any) -> str:
    """Name the library of an array by its type alone: nothing is imported to find out."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return "numpy" if leaf.dtype.kind in "fc" else ""
    for kind in type(leaf).__mro__:
        root = kind.__module__.partition(".")[0]
        if (root, kind.__name__) in {("torch", "Tensor"), ("cupy", "ndarray")}:
            return root
    return ""


def is_floating(leaf: Any) -> bool:
    """Whether ``leaf`` is a real floating NumPy array or scalar."""
    return isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind == "f"


def cotangent_generator(rng: int | np.random.Generator) -> np.random.Generator:
    """Return ``rng`` itself, or a generator of its own for a seed.

    Inputs are often the first draws of ``default_rng(0)``. A cotangent that equals its
    input hides errors: ``dy.T @ x`` would be symmetric.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    return np.random.default_rng((rng, zlib.crc32(b"cotangent")))


def draw_cotangents(outputs: Any, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return a standard normal cotangent for each floating array in ``outputs``, by its path."""
    return {
        path: np.asarray(rng.standard_normal(np.shape(y)))
        for path, y in flatten(outputs).items()
        if is_floating(y)
    }


def cotangents_like(outputs: Any, cotangents: Mapping[str, NDArray[np.float64]]) -> Any:
    """Return ``cotangents`` in the structure and dtypes of ``outputs``, else None."""
    return rebuild(
        outputs,
        {
            path: cotangents[path].astype(y.dtype) if path in cotangents else None
            for path, y in flatten(outputs).items()
        },
    )


def inner_product(outputs: Any, cotangents: Mapping[str, NDArray[np.float64]]) -> Any:
    """Return Σ y · dy over the outputs that have a cotangent."""
    leaves = flatten(outputs)
    return sum(np.sum(leaves[path] * dy) for path, dy in cotangents.items())


def flat_gradients(returned: Any) -> Any:
    """Return nested gradients by path, without those that are None.

    What is no mapping is returned as it is: to complain is the checker's business.
    """
    if not isinstance(returned, Mapping):
        return returned
    return {path: leaf for path, leaf in flatten(returned).items() if leaf is not None}


def in_precision_of(params: Mapping[str, Any], constants: Any) -> Any:
    """Return ``constants`` with floating arrays in float32 where ``params`` are, else float64.

    A function of float32 arrays is also called with float64 ones, and its constants must
    fit in with them.
    """
    characters = {x.dtype.char for x in params.values() if isinstance(x, (np.ndarray, np.generic))}
    real = np.float32 if "f" in characters else np.float64
    return rebuild(
        constants,
        {
            path: leaf.astype(real, copy=False)
            for path, leaf in flatten(constants).items()
            if is_floating(leaf)
        },
    )
