"""Wrong backwards made of right ones by spoiling what they return, or what they are given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = ["GradientMutant", "gradient_mutants", "spoiled", "swapped"]

Backward = Callable[..., Any]
Change = Callable[[Any], Any]


class GradientMutant(NamedTuple):
    """A wrong backward.

    Attributes
    ----------
    kind : str
        What was done.
    where : str
        To which of the returned gradients.
    function : callable
        In the place of the backward.
    """

    kind: str
    where: str
    function: Backward


def gradient_mutants(backward: Backward, names: tuple[str | None, ...]) -> list[GradientMutant]:
    """Return all mutants of the gradients that ``backward`` returns.

    Parameters
    ----------
    backward : callable
        Returns an array, or a tuple of arrays and None.
    names : tuple of str or None
        Of the returned gradients; one without a name is left alone.
    """
    positions = [k for k, name in enumerate(names) if name is not None]
    mutants = [
        GradientMutant(kind, f"d{names[k]}", spoiled(backward, k, change))
        for k in positions
        for kind, change in _CHANGES.items()
    ]
    mutants += [
        GradientMutant("gradients swapped", f"d{names[i]}, d{names[j]}", swapped(backward, i, j))
        for i, j in _pairs(positions)
    ]
    mutants.append(GradientMutant("first example alone", "all", _with_the_first_example(backward)))
    return mutants


def spoiled(backward: Backward, position: int, change: Change) -> Backward:
    """Return ``backward`` with ``change`` applied to one of its gradients, unless that is None."""

    @functools.wraps(backward)
    def mutant(*args: Any, **kwargs: Any) -> Any:
        returned = backward(*args, **kwargs)
        if not isinstance(returned, tuple):
            return change(np.asarray(returned))
        gradients = list(returned)
        if gradients[position] is not None:
            gradients[position] = change(np.asarray(gradients[position]))
        return tuple(gradients)

    return mutant


def swapped(backward: Backward, i: int, j: int) -> Backward:
    """Return ``backward`` with two gradients exchanged where they have one shape."""

    @functools.wraps(backward)
    def mutant(*args: Any, **kwargs: Any) -> Any:
        gradients = list(backward(*args, **kwargs))
        if np.shape(gradients[i]) == np.shape(gradients[j]):
            gradients[i], gradients[j] = gradients[j], gradients[i]
        return tuple(gradients)

    return mutant


def _with_the_first_example(backward: Backward) -> Backward:
    """Return ``backward`` for a cotangent that is zero beyond the first example."""
    cotangent = next(iter(inspect.signature(backward).parameters))

    @functools.wraps(backward)
    def mutant(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(backward).bind(*args, **kwargs)
        dy = np.array(given.arguments[cotangent])
        if dy.ndim > 0:
            dy[1:] = 0
        given.arguments[cotangent] = dy
        return backward(*given.args, **given.kwargs)

    return mutant


def _pairs(positions: list[int]) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in positions for j in positions if i < j)


def _rows(g: Any) -> int:
    return max(1, g.shape[0]) if g.ndim else 1


def _columns(g: Any) -> int:
    return max(1, g.shape[-1]) if g.ndim else 1


def _along(reduce: Callable[..., Any], axis: int) -> Change:
    """Return a change that replaces all entries along ``axis`` by their sum or mean."""

    def change(g: Any) -> Any:
        if not g.size or g.ndim == 0:
            return g
        return np.broadcast_to(reduce(g, axis=axis, keepdims=True), g.shape).copy()

    return change


def _rolled(axis: int) -> Change:
    return lambda g: np.roll(g, 1, axis=axis) if g.ndim else g


def _square_transposed(g: Any) -> Any:
    square = g.ndim >= 2 and g.shape[-1] == g.shape[-2]
    return np.swapaxes(g, -1, -2).copy() if square else g


# A change that does not fit a gradient's shape returns it as it is: not different, not counted.
_CHANGES: dict[str, Change] = {
    "sign": lambda g: -g,
    "factor 2": lambda g: 2 * g,
    "mean for sum: 1/N": lambda g: g / _rows(g),
    "sum for mean: N": lambda g: g * _rows(g),
    "mean over the classes: 1/C": lambda g: g / _columns(g),
    "shifted along the first axis": _rolled(0),
    "shifted along the last axis": _rolled(-1),
    "reversed": lambda g: g[..., ::-1].copy() if g.ndim else g,
    "transposed": _square_transposed,
    "summed along the first axis": _along(np.sum, 0),
    "summed along the last axis": _along(np.sum, -1),
    "averaged along the first axis": _along(np.mean, 0),
    "averaged along the last axis": _along(np.mean, -1),
    "an axis summed away": lambda g: g.sum(axis=0) if g.ndim else g,
    "first row alone": lambda g: np.concatenate([g[:1], 0 * g[1:]]) if g.ndim else g,
    "zero": np.zeros_like,
}
