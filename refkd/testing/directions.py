"""Directions in parameter space: one entry, or random ones that are never stored whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Direction", "Point", "RandomDirection", "Slope", "slope", "unit"]

Point = Mapping[str, NDArray[np.float64]]
Direction = Mapping[str, NDArray[np.float64]]


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
        shape = self._shapes[name]
        flat = np.outer(*self._factors[name]).ravel()
        return flat[: math.prod(shape)].reshape(shape)

    def __contains__(self, name: object) -> bool:
        """Whether the parameter moves."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Return the number of parameters that move."""
        return len(self._shapes)


class Slope(NamedTuple):
    """A gradient along a direction, and the size of the terms that it is the sum of."""

    value: float
    size: float


def slope(gradients: Mapping[str, NDArray[Any]], direction: Direction) -> Slope:
    """Return Σ g_i u_i and Σ |g_i u_i|."""
    values, sizes = [], []
    for name in direction:
        terms = gradients[name] * direction[name]
        values.append(float(np.sum(terms)))
        sizes.append(float(np.sum(np.abs(terms, out=np.asarray(terms)))))
    return Slope(math.fsum(values), math.fsum(sizes))


def unit(shape: tuple[int, ...], flat: int) -> NDArray[np.float64]:
    """Return the array of zeros with a one at the position ``flat``."""
    direction = np.zeros(shape)
    direction[np.unravel_index(flat, shape)] = 1
    return direction


def _signed(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Return random numbers between √½ and 1, with random signs."""
    return np.copysign(rng.uniform(math.sqrt(0.5), 1, size=size), rng.uniform(-1, 1, size=size))


def _largest(x: NDArray[np.float64]) -> Any:
    return max(np.max(x, initial=0), -np.min(x, initial=0))
