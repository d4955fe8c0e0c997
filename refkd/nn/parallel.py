"""Branches side by side on one input, and their outputs joined along an axis."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError, ShapeError
from refkd.nn.checks import as_children, check_names
from refkd.nn.composite import (
    backward_through,
    cotangents_of,
    init_children,
    next_states,
    shapes_of_children,
)
from refkd.nn.layer import (
    Arrays,
    Layer,
    Shapes,
    add_cotangents,
    add_prefix,
    check_no_taps,
    split_by_prefix,
)
from refkd.ops.join import concatenate_backward, concatenate_forward

__all__ = ["Concat", "Parallel"]


class ParallelCache(NamedTuple):
    children: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Parallel(Layer):
    """Hand x to every branch; y is the tuple of their outputs.

    The feature ``name`` is what the branch ``name`` returns.

    Attributes
    ----------
    branches : tuple of (str, Layer)
        Names are unique and hold no dot. A branch without parameters keeps its name out
        of the ``state_dict``.

    Raises
    ------
    ConfigError
        On construction, for a name that is repeated, empty or dotted, for no branch, and
        for what is no tuple of names and layers.
    """

    branches: tuple[tuple[str, Layer], ...]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "branches", as_children("Parallel", "branches", self.branches, "name")
        )
        check_names("Parallel", [name for name, _ in self.branches])
        if not self.branches:
            raise ConfigError("Parallel: branches must hold at least one layer, got none")

    def shapes(self) -> tuple[Shapes, Shapes]:
        return shapes_of_children(self.branches)

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return init_children(self.branches, rng, dtype=dtype)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Any,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[tuple[Any, ...], ParallelCache]:
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        caches, outputs = [], []
        for name, layer in self.branches:
            y, cache = layer.forward(
                params_of.get(name, {}), state_of.get(name, {}), x, train=train, rng=rng
            )
            caches.append(cache)
            outputs.append(y)
        return tuple(outputs), ParallelCache(tuple(caches), tuple(outputs))

    def infer(
        self, params: Mapping[str, Array], state: Mapping[str, Array], x: Any
    ) -> tuple[Any, ...]:
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        return tuple(
            layer.infer(params_of.get(name, {}), state_of.get(name, {}), x)
            for name, layer in self.branches
        )

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ParallelCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        """Hand each branch its part of dy.

        Notes
        -----
        x is copied into the branches, y_b = f_b(x), and the adjoint of copying is the
        sum: dx = Σ_b (∂f_b/∂x)ᵀ dy_b.
        """
        names = [name for name, _ in self.branches]
        check_no_taps(self, taps, known=names)
        dys = cotangents_of("Parallel.backward", dy, len(names))
        params_of, taps_of = split_by_prefix(params), split_by_prefix(taps or {})
        dxs = []
        grads: Arrays = {}
        for (name, layer), layer_cache, branch_dy in zip(
            self.branches, cache.children, dys, strict=True
        ):
            dx, layer_grads = backward_through(
                layer,
                params_of.get(name, {}),
                layer_cache,
                branch_dy,
                need_dx=need_dx,
                taps=taps_of.get(name, {}),
            )
            dxs.append(dx)
            grads |= add_prefix(name, layer_grads)
        return functools.reduce(self.added, dxs), grads

    def added(self, a: Any, b: Any) -> Any:
        """Return the sum of two cotangents of x, where None stands for zero."""
        return add_cotangents(a, b)

    def next_state(self, state: Mapping[str, Array], cache: ParallelCache) -> Arrays:
        return next_states(self.branches, state, cache.children)

    def features(self, cache: ParallelCache) -> Iterator[tuple[str, Array]]:
        for (name, layer), layer_cache, output in zip(
            self.branches, cache.children, cache.outputs, strict=True
        ):
            yield from ((f"{name}.{path}", y) for path, y in layer.features(layer_cache))
            yield name, output


class ConcatCache(NamedTuple):
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Concat(Layer):
    """Join a tuple of arrays along an axis.

    Attributes
    ----------
    axis : int
        1 joins channels.

    Raises
    ------
    ConfigError
        On construction, if the axis is no integer.
    """

    axis: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.axis, int) or isinstance(self.axis, bool):
            raise ConfigError(f"Concat: axis must be an integer, got {self.axis!r}")

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: tuple[Array, ...],
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ConcatCache]:
        if not isinstance(x, tuple):
            raise ShapeError(
                f"Concat.forward: x must be a tuple of arrays, as Parallel returns it, "
                f"got {type(x).__name__}"
            )
        y = concatenate_forward(x, axis=self.axis)
        return y, ConcatCache(tuple(int(part.shape[self.axis]) for part in x))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ConcatCache,
        dy: Array,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[tuple[Array, ...] | None, Arrays]:
        check_no_taps(self, taps)
        if not need_dx:
            return None, {}
        return concatenate_backward(dy, sizes=cache.sizes, axis=self.axis), {}
