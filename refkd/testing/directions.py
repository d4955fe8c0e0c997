"""Directions in parameter space: one entry, or random ones that are never stored whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Direction",
    "Point",
    "RandomDirection",
    "Slope",
    "fill",
    "scaled",
    "slope",
    "slopes",
    "total",
    "unit",
]

Point = Mapping[str, NDArray[np.float64]]
Direction = Mapping[str, NDArray[np.float64]]

_BLOCK = 64  # rows, few enough to stay in the cache


class Slope(NamedTuple):
    """A gradient along a direction, and the size of the terms that it is the sum of."""

    value: float
    size: float


class RandomDirection(Mapping[str, NDArray[np.float64]]):
    """A random direction through some parameters, made anew whenever it is asked for.

    Each parameter's part is the outer product a bᵀ of two short random vectors, laid out
    flat: as cheap as a copy, and as good as independent entries, since for any error E
    of a gradient aᵀ E b is zero with probability 0. Every entry is between half and the
    whole of its parameter's largest magnitude (of 1 where that is 0), with a random
    sign: none is so small that an error there is lost, and all parameters move in
    proportion to their size.

    Parameters
    ----------
    point : mapping of float64 arrays
    names : iterable of str
        The parameters that move.
    seed : int
    """

    def __init__(self, point: Point, names: Iterable[str], seed: int) -> None:
        self._shapes = {name: point[name].shape for name in names}
        self._factors = {}
        for k, (name, x) in enumerate(point.items()):
            if name in self._shapes:
                rng = np.random.default_rng((seed, k))
                width = max(1, math.isqrt(x.size))
                rows, columns = _signed(rng, -(-x.size // width)), _signed(rng, width)
                self._factors[name] = rows, columns * (float(_largest(x)) or 1.0)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return the part of ``name``."""
        return self.scaled(name, 1.0)

    def along(self, names: Iterable[str]) -> RandomDirection:
        """Return the same direction through some of its parameters alone."""
        part = copy.copy(self)
        part._shapes = {name: self._shapes[name] for name in names}
        return part

    def scaled(self, name: str, t: Any) -> NDArray[Any]:
        """Return ``t`` times the part of ``name``, in no more passes than without it."""
        rows, columns = self._factors[name]
        shape = self._shapes[name]
        return np.outer(rows * t, columns).ravel()[: math.prod(shape)].reshape(shape)

    def fill(self, out: NDArray[np.float64], name: str, t: float) -> None:
        """Write ``t`` times the part of ``name`` into a flat array, a few rows at a time."""
        rows, columns = self._factors[name]
        for first in range(0, rows.size, _BLOCK):
            block = np.outer(rows[first : first + _BLOCK] * t, columns).ravel()
            part = out[first * columns.size :][: block.size]
            part[...] = block[: part.size]

    def slope(self, name: str, gradient: NDArray[Any]) -> Slope:
        """Return Σ g u and Σ |g u| over the part of ``name``: aᵀ G b and |a|ᵀ |G| |b|."""
        rows, columns = self._factors[name]
        flat = gradient.ravel()
        whole = flat.size // columns.size
        value, size = 0.0, 0.0
        for first in range(0, whole, _BLOCK):
            a = rows[first : min(first + _BLOCK, whole)]
            start = first * columns.size
            block = flat[start : start + a.size * columns.size].reshape(a.size, columns.size)
            value += float(a @ (block @ columns))
            size += float(np.abs(a) @ (np.abs(block) @ np.abs(columns)))
        rest = flat[whole * columns.size :]
        terms = rows[-1:] * columns[: rest.size] * rest
        return Slope(value + float(np.sum(terms)), size + float(np.sum(np.abs(terms))))

    def __contains__(self, name: object) -> bool:
        """Whether the parameter moves."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Return the number of parameters that move."""
        return len(self._shapes)


def slope(gradients: Mapping[str, NDArray[Any]], direction: Direction) -> Slope:
    """Return Σ g_i u_i and Σ |g_i u_i|."""
    return total(slopes(gradients, direction).values())


def slopes(gradients: Mapping[str, NDArray[Any]], direction: Direction) -> dict[str, Slope]:
    """Return Σ g_i u_i and Σ |g_i u_i| over each parameter."""
    return {name: _slope(gradients[name], direction, name) for name in direction}


def total(parts: Collection[Slope]) -> Slope:
    """Return the sum of slopes and of their sizes."""
    return Slope(math.fsum(p.value for p in parts), math.fsum(p.size for p in parts))


def scaled(direction: Direction, name: str, t: Any) -> NDArray[Any]:
    """Return ``t`` times the part of ``name``, a fresh array."""
    if isinstance(direction, RandomDirection):
        return direction.scaled(name, t)
    return np.asarray(direction[name] * t)


def fill(out: NDArray[np.float64], direction: Direction, name: str, t: float) -> None:
    """Write ``t`` times the part of ``name`` into a flat array; no other one is made."""
    if isinstance(direction, RandomDirection):
        direction.fill(out, name, t)
    else:
        np.multiply(direction[name].ravel(), t, out=out)


def unit(shape: tuple[int, ...], flat: int) -> NDArray[np.float64]:
    """Return the array of zeros with a one at the position ``flat``."""
    direction = np.zeros(shape)
    direction[np.unravel_index(flat, shape)] = 1
    return direction


def _slope(gradient: NDArray[Any], direction: Direction, name: str) -> Slope:
    if isinstance(direction, RandomDirection):
        return direction.slope(name, gradient)
    terms = gradient * direction[name]
    return Slope(float(np.sum(terms)), float(np.sum(np.abs(terms))))


def _signed(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Return random numbers between √½ and 1, with random signs."""
    return np.copysign(rng.uniform(math.sqrt(0.5), 1, size=size), rng.uniform(-1, 1, size=size))


def _largest(x: NDArray[np.float64]) -> Any:
    return max(np.max(x, initial=0), -np.min(x, initial=0))
