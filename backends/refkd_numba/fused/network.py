"""Rewriting a network: the same parameters and results, with units in the place of layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.nn import BatchNorm2d, Concat, Conv2d, MaxPool2d, Parallel, ReLU, Sequential, WithHeads
from refkd.nn.composite import backward_through
from refkd.nn.layer import Arrays, Layer, add_prefix, check_no_taps, split_by_prefix
from refkd_numba import pool
from refkd_numba.fused.branches import FusedConcat, FusedParallel
from refkd_numba.fused.max_pool import FusedMaxPool2d
from refkd_numba.fused.units import ConvNorm, ConvReLU, Kept, Norm

__all__ = ["FusedSequential", "all_in", "fuse", "parts"]


class FusedCache(NamedTuple):
    units: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Unit(NamedTuple):
    """A layer in the place of those named; what it returns is the feature of the last name."""

    names: tuple[str, ...]
    layer: Layer


@dataclass(frozen=True)
class FusedSequential(Sequential):
    """A Sequential whose layers are taken two or three at a time where a unit serves them.

    The outputs inside a unit are no features.

    Attributes
    ----------
    frozen : bool
        Whether it does not learn, so that what is made of its arrays may be kept.
    """

    frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "units", _units(self.layers, self.frozen))

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Any,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Any, FusedCache]:
        caches, outputs = [], []
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        for unit in self.units:
            x, cache = unit.layer.forward(
                _of(unit, params_of), _of(unit, state_of), x, train=train, rng=rng
            )
            caches.append(cache)
            outputs.append(x)
        return x, FusedCache(tuple(caches), tuple(outputs))

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Any) -> Any:
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        for unit in self.units:
            x = unit.layer.infer(_of(unit, params_of), _of(unit, state_of), x)
        return x

    def backward(
        self,
        params: Mapping[str, Array],
        cache: FusedCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        check_no_taps(self, taps, known=[unit.names[-1] for unit in self.units])
        params_of, taps_of = split_by_prefix(params), split_by_prefix(taps or {})
        grads: Arrays = {}
        learning = [any(name in params_of for name in unit.names) for unit in self.units]
        first = learning.index(True) if True in learning else len(learning)
        for i, unit in reversed(list(enumerate(self.units))):
            dy, unit_grads = backward_through(
                unit.layer,
                _of(unit, params_of),
                cache.units[i],
                dy,
                need_dx=need_dx or i > first,
                taps=taps_of.get(unit.names[-1], {}),
            )
            grads = _named(unit, unit_grads) | grads
        return dy if need_dx else None, grads

    def next_state(self, state: Mapping[str, Array], cache: FusedCache) -> Arrays:
        state_of, updated = split_by_prefix(state), {}
        for unit, unit_cache in zip(self.units, cache.units, strict=True):
            own = _of(unit, state_of)
            if own:
                updated |= _named(unit, unit.layer.next_state(own, unit_cache))
        return updated

    def features(self, cache: FusedCache) -> Iterator[tuple[str, Array]]:
        for unit, unit_cache, output in zip(self.units, cache.units, cache.outputs, strict=True):
            name = unit.names[-1]
            if len(unit.names) == 1:
                yield from ((f"{name}.{path}", y) for path, y in unit.layer.features(unit_cache))
            yield name, output


def fuse(layer: Any, *, frozen: bool = False) -> Any:
    """Return ``layer`` with everything in it that can be fused.

    Parameters
    ----------
    layer : Layer, or a tuple that holds layers
    frozen : bool
        Whether it does not learn: then packed weights are kept.
    """
    if isinstance(layer, tuple):
        return tuple(fuse(item, frozen=frozen) for item in layer)
    if not _is_layer(layer) or type(layer).__module__.partition(".")[0] != "refkd":
        return layer  # how to make one anew is known of refkd's own layers only
    values = {
        f.name: fuse(getattr(layer, f.name), frozen=frozen) for f in dataclasses.fields(layer)
    }
    if type(layer) is Sequential:
        return FusedSequential(**values, frozen=frozen)
    for kind, fused in ((Parallel, FusedParallel), (Concat, FusedConcat)):
        if type(layer) is kind:
            return fused(**values)
    if type(layer) is WithHeads and _hides(values["trunk"], layer.heads):
        values["trunk"] = layer.trunk
    if type(layer) is MaxPool2d and math.prod(layer.kernel_size) <= pool.MOST_TAPS:
        return FusedMaxPool2d(**values)
    return dataclasses.replace(layer, **values)


def all_in(networks: Iterable[Layer]) -> Iterator[Any]:
    """Yield the networks and all that they are made of."""
    waiting: list[Any] = list(networks)
    while waiting:
        layer = waiting.pop()
        yield layer
        waiting += parts(layer)


def parts(layer: Any) -> list[Any]:
    """Return what a layer, or a tuple, is made of."""
    if isinstance(layer, tuple):
        return list(layer)
    if _is_layer(layer):
        return [getattr(layer, f.name) for f in dataclasses.fields(layer)]
    return []


def _hides(trunk: Layer, heads: Iterable[tuple[str, str, Layer]]) -> bool:
    """Return whether a head may read what is inside a unit of a fused trunk."""
    sequentials = (layer for layer in all_in([trunk]) if isinstance(layer, FusedSequential))
    hidden = {name for each in sequentials for unit in each.units for name in unit.names[:-1]}
    return any(not hidden.isdisjoint(path.split(".")) for _, path, _ in heads)


def _is_layer(value: Any) -> bool:
    return Layer in type(value).__mro__ and dataclasses.is_dataclass(value)


def _units(layers: tuple[tuple[str, Layer], ...], frozen: bool) -> tuple[Unit, ...]:
    units, i = [], 0
    while i < len(layers):
        unit = _unit_at(layers[i : i + 3], frozen)
        units.append(unit)
        i += len(unit.names)
    return tuple(units)


def _unit_at(ahead: tuple[tuple[str, Layer], ...], frozen: bool) -> Unit:
    """Return the longest unit that serves the next layers."""
    names = tuple(name for name, _ in ahead)
    kinds = tuple(type(layer) for _, layer in ahead)
    layers: list[Any] = [layer for _, layer in ahead]
    kept = Kept() if frozen else None
    if kinds[:2] == (Conv2d, BatchNorm2d):
        relu = kinds[2:] == (ReLU,)
        norm = Norm(names[1], layers[1], relu)
        return Unit(names[: 2 + relu], ConvNorm(names[0], layers[0], norm, kept))
    if kinds[:2] == (Conv2d, ReLU):
        return Unit(names[:2], ConvReLU(names[0], layers[0], kept))
    if kinds[:2] == (BatchNorm2d, ReLU):
        return Unit(names[:2], Norm(names[0], layers[0], relu=True))
    return Unit(names[:1], layers[0])


def _of(unit: Unit, arrays: Mapping[str, dict[str, Array]]) -> dict[str, Array]:
    """Return a unit's arrays, by the names it knows them by."""
    if len(unit.names) == 1:
        return arrays.get(unit.names[0], {})
    own: dict[str, Array] = {}
    for name in unit.names:
        own |= add_prefix(name, arrays.get(name, {}))
    return own


def _named(unit: Unit, arrays: Arrays) -> Arrays:
    return add_prefix(unit.names[0], arrays) if len(unit.names) == 1 else arrays
