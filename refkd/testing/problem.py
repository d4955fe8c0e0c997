"""A function, its gradient and a point, as the checker calls them.

The reader's parameters may be nested, of any layout, float32, and partly constants;
inside there is a flat dict of float64 arrays. Every call goes through here: arrays are
copied so that nothing of the reader's is ever overwritten, generators are copied so
that each call draws the same numbers, calls are counted, and what a call did to its
arguments is remembered.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from refkd.errors import ConfigError, DtypeError
from refkd.testing.structure import flatten, rebuild

__all__ = ["Leaves", "Problem", "copy_in_layout"]

Leaves = Mapping[str, NDArray[Any]]
_FLOATS = ("float32", "float64")


class Problem:
    """A function and its gradient at a point.

    Parameters
    ----------
    where : str
        The public function, for messages.
    f, grad : callable
        Of the reader's keyword arguments.
    params : mapping
        As :func:`refkd.testing.check_grad` takes them.
    names : tuple of str
        What the reader calls f and grad.

    Attributes
    ----------
    leaves : dict of str to object
        All leaves of ``params`` by path.
    given : dict of str to array
        The float32 and float64 leaves of ``params`` by path, as they are.
    dtypes : dict of str to str
        Of the leaves, as given.
    point : dict of str to float64 array
        The same in float64; nothing is copied that is float64 and contiguous already.
    writes : str
        Which function wrote into which argument ("f writes into x"), or empty.
    lenient : bool
        Whether an exception of a function of real arrays counts as NaN: at points that
        the reader never gave, a value may be out of the function's domain.
    replayed : bool
        Whether the global random generators are reset before every call.

    Raises
    ------
    ConfigError, DtypeError
        If there is nothing to differentiate, or a leaf has a dtype that cannot be.
    """

    def __init__(
        self,
        where: str,
        f: Callable[..., Any],
        grad: Callable[..., Any],
        params: Mapping[str, Any],
        names: tuple[str, str] = ("f", "grad"),
    ) -> None:
        self.names = names
        for name, function in zip(names, (f, grad), strict=True):
            if not callable(function):
                raise ConfigError(
                    f"{where}: {name} must be a function of the parameters, "
                    f"got {type(function).__name__}"
                )
        if not isinstance(params, Mapping):
            raise DtypeError(
                f"{where}: params must be a mapping of names to arrays, such as "
                f"{{'x': x}}, got {type(params).__name__}"
            )
        self._f, self._grad, self._params = f, grad, params
        self.leaves = leaves = flatten(params)
        self.given = {
            path: np.asarray(x) for path, x in leaves.items() if _is_float(where, path, x)
        }
        if not self.given:
            raise ConfigError(f"{where}: nothing to differentiate; {_hint(leaves)}")
        self.point = {name: _float64(x) for name, x in self.given.items()}
        self.dtypes = {name: x.dtype.name for name, x in self.given.items()}
        self.lenient = False
        self._constants = {p: x for p, x in leaves.items() if p not in self.given}
        self._generators = [
            path
            for path, x in self._constants.items()
            if isinstance(x, (np.random.Generator, np.random.RandomState, random.Random))
        ]
        self._calls = [0]
        self.writes = ""
        self.replayed = False
        self._states = (random.getstate(), np.random.get_state())  # noqa: NPY002

    @property
    def calls(self) -> int:
        """Calls of f and of grad so far."""
        return self._calls[0]

    @property
    def plain(self) -> bool:
        """Whether the arrays as given are the point: float64, contiguous, native byte order."""
        return all(self.given[name] is x for name, x in self.point.items())

    @property
    def entries(self) -> int:
        """Number of entries of all parameters."""
        return sum(x.size for x in self.point.values())

    def at(self, point: Leaves) -> Problem:
        """Return the same problem at another point; calls there are counted here too."""
        there = copy.copy(self)
        there.given = there.point = dict(point)
        return there

    def f(self, leaves: Leaves) -> Any:
        """Return f at ``leaves``, which it may write into."""
        try:
            return self._call(self._f, leaves)
        except Exception:
            if not self.lenient or any(np.iscomplexobj(x) for x in leaves.values()):
                raise
            return math.nan

    def grad(self, leaves: Leaves) -> Any:
        """Return what grad returns at copies of ``leaves``."""
        return self._call(self._grad, {name: copy_in_layout(x) for name, x in leaves.items()})

    def gradients(self, leaves: Leaves) -> dict[str, NDArray[Any]]:
        """Return grad at copies of ``leaves`` as a flat dict, in the order of the parameters."""
        try:
            return self.flat(self.grad(leaves))
        except Exception:
            if not self.lenient:
                raise
            return {name: np.full(x.shape, math.nan) for name, x in leaves.items()}

    def flat(self, gradients: Any) -> dict[str, NDArray[Any]]:
        """Return what grad returned as a flat dict, in the order of the parameters."""
        found = flatten(gradients, self.leaves)
        return {name: np.asarray(found[name]) for name in self.point}

    def watched(self, name: str, leaves: Leaves) -> tuple[Any, dict[str, NDArray[Any]]]:
        """Call ``"f"`` or ``"grad"`` on copies of the same layout; note what it writes into.

        Returns
        -------
        result : object
            What it returned.
        arguments : dict of arrays
            What it was called with.
        """
        constants = {p: x.copy() for p, x in self._constants.items() if isinstance(x, np.ndarray)}
        arguments = {path: copy_in_layout(x) for path, x in leaves.items()}
        try:
            result = self._call({"f": self._f, "grad": self._grad}[name], arguments)
        except Exception as error:
            shapes = ", ".join(f"{p}: {x.dtype} {x.shape}" for p, x in self.given.items())
            called = self.names[name == "grad"]
            error.add_note(f"raised by {called}(**params) at the given point, with {shapes}")
            raise
        written = [p for p, x in arguments.items() if not np.array_equal(x, leaves[p])]
        for path, before in constants.items():
            now = self._constants[path]
            if not np.array_equal(now, before, equal_nan=before.dtype.kind in "fc"):
                written.append(path)
                now[...] = before
        if written and not self.writes:
            self.writes = f"{self.names[name == 'grad']} writes into {', '.join(written)}"
        return result, arguments

    @contextmanager
    def seeds_restored(self) -> Iterator[None]:
        """Leave the global random generators as they were found, if they were replayed."""
        try:
            yield
        finally:
            if self.replayed:
                self._reset_seeds()

    def _call(self, function: Callable[..., Any], leaves: Leaves) -> Any:
        self._calls[0] += 1
        if self.replayed:
            self._reset_seeds()
        fresh = {path: copy.deepcopy(self._constants[path]) for path in self._generators}
        if self.writes:
            arrays = {p: x for p, x in self._constants.items() if isinstance(x, np.ndarray)}
            fresh |= {path: x.copy() for path, x in arrays.items()}
        if self.leaves.keys() == self._params.keys():
            return function(**{**self._params, **leaves, **fresh})
        return function(**rebuild(self._params, {**leaves, **fresh}))

    def _reset_seeds(self) -> None:
        python, numpy = self._states
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _is_float(where: str, path: str, leaf: Any) -> bool:
    """Whether a leaf is differentiated; DtypeError for floats that cannot be."""
    if not isinstance(leaf, (np.ndarray, np.generic)) or leaf.dtype.kind not in "fc":
        return False
    if isinstance(leaf, np.ma.MaskedArray):
        raise DtypeError(
            f"{where}: parameter {path} is a masked array; pass its data, and the mask as a "
            f"boolean array"
        )
    if leaf.dtype.name not in _FLOATS:
        raise DtypeError(
            f"{where}: parameter {path} must be float64 or float32, got {leaf.dtype}; convert it, "
            f"or leave it out of params if it is a constant"
        )
    return True


def _hint(leaves: Mapping[str, Any]) -> str:
    floats = [path for path, leaf in leaves.items() if isinstance(leaf, float)]
    if floats:
        return f"{floats[0]} is a Python float, and so a constant: write numpy.array({floats[0]})"
    arrays = [f"{p} is {x.dtype}" for p, x in leaves.items() if isinstance(x, np.ndarray)]
    if arrays:
        return f"{', '.join(arrays)}, and so constant: write .astype(float)"
    names = ", ".join(leaves) or "the (empty) params"
    return f"expected a float64 or float32 array among {names}"


def _float64(x: NDArray[Any]) -> NDArray[np.float64]:
    if x.dtype == np.float64 and x.dtype.isnative and x.flags.c_contiguous:
        return x
    return np.array(x, dtype=np.float64, order="C")


def copy_in_layout(x: NDArray[Any]) -> NDArray[Any]:
    """Return a writable copy with the same strides; NaN lies between its entries."""
    if x.size == 0 or x.flags.c_contiguous or x.flags.f_contiguous or 0 in x.strides:
        return np.array(x, order="K")
    low, high = byte_bounds(x)
    buffer = np.full(high - low, 0xFF, dtype=np.uint8)
    start = x.__array_interface__["data"][0] - low
    y: NDArray[Any] = np.ndarray(x.shape, x.dtype, buffer, start, x.strides)
    y[...] = x
    return y
