"""What layers made of layers share: their children's names, cotangents and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from refkd.dispatch import Array, namespace
from refkd.errors import ShapeError
from refkd.nn.layer import Arrays, Layer, Shapes, add_cotangents, add_prefix, split_by_prefix

__all__ = [
    "backward_through",
    "cotangents_of",
    "init_children",
    "next_states",
    "shapes_of_children",
    "split_off",
]

Named = Iterable[tuple[str, Layer]]


def shapes_of_children(children: Named) -> tuple[Shapes, Shapes]:
    """Return the shapes of parameters and state of all children, under their names."""
    params: Shapes = {}
    state: Shapes = {}
    for name, layer in children:
        layer_params, layer_state = layer.shapes()
        params |= add_prefix(name, layer_params)
        state |= add_prefix(name, layer_state)
    return params, state


def init_children(
    children: Named, rng: np.random.Generator, *, dtype: type[np.floating[Any]]
) -> tuple[Arrays, Arrays]:
    """Draw the parameters of all children in turn; return them and the state, under their names."""
    params: Arrays = {}
    state: Arrays = {}
    for name, layer in children:
        layer_params, layer_state = layer.init(rng, dtype=dtype)
        params |= add_prefix(name, layer_params)
        state |= add_prefix(name, layer_state)
    return params, state


def next_states(children: Named, state: Mapping[str, Array], caches: Iterable[Any]) -> Arrays:
    """Return the state of all children after a training forward, under their names."""
    state_of = split_by_prefix(state)
    updated: Arrays = {}
    for (name, layer), cache in zip(children, caches, strict=True):
        if name in state_of:
            updated |= add_prefix(name, layer.next_state(state_of[name], cache))
    return updated


def split_off(
    arrays: Mapping[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the arrays of a child whose names carry no prefix, and of the named others.

    ``{"a.b": v, "c.d": w, "c": z}`` and ``["c"]`` give
    ``{"a.b": v}`` and ``{"c": {"d": w, "": z}}``.
    """
    rest: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for path, value in arrays.items():
        head, _, tail = path.partition(".")
        if head in own:
            own[head][tail] = value
        else:
            rest[path] = value
    return rest, own


def cotangents_of(where: str, dy: Any, count: int) -> tuple[Any, ...]:
    """Return the cotangents of ``count`` outputs, None for those that nothing used.

    Raises
    ------
    ShapeError
        If dy is neither None nor a tuple of that many.
    """
    if dy is None:
        return (None,) * count
    if not isinstance(dy, tuple) or len(dy) != count:
        given = f"a tuple of {len(dy)}" if isinstance(dy, tuple) else type(dy).__name__
        raise ShapeError(
            f"{where}: dy must be None or a tuple of {count} cotangents, one for each output "
            f"and None for an unused one, got {given}"
        )
    return dy


def backward_through(
    layer: Layer,
    params: Mapping[str, Array],
    cache: Any,
    dy: Any,
    *,
    need_dx: bool,
    taps: Mapping[str, Any],
) -> tuple[Any, Arrays]:
    """Return dx and the gradients of a child, zeros where no cotangent reaches it.

    Parameters
    ----------
    layer, params, cache, need_dx
        As for :meth:`refkd.nn.Layer.backward`.
    dy : array, tuple or None
    taps : mapping of str to array or tuple
        By path inside the child; the one with the empty path is added to dy.
    """
    dy = add_cotangents(dy, taps.get("", None))
    inner = {path: tap for path, tap in taps.items() if path}
    if dy is None and not inner:
        return None, {name: namespace(p).zeros_like(p) for name, p in params.items()}
    return layer.backward(params, cache, dy, need_dx=need_dx, taps=inner)
