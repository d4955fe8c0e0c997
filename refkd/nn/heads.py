"""A network with further outputs: heads that read features inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError, suggest
from refkd.nn.checks import as_children, check_names
from refkd.nn.composite import (
    backward_through,
    cotangents_of,
    init_children,
    shapes_of_children,
    split_off,
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
from refkd.nn.sequential import Sequential, check_sequential

__all__ = ["WithHeads"]


class WithHeadsCache(NamedTuple):
    trunk: Any
    heads: tuple[Any, ...]
    head_outputs: tuple[Any, ...]


@dataclass(frozen=True)
class WithHeads(Layer):
    """y = (what the trunk returns, what the first head returns, ...).

    The features, parameters and state of the trunk have the names they have in the
    trunk; those of a head stand under its name.

    Attributes
    ----------
    trunk : Sequential
    heads : tuple of (str, str, Layer)
        Name of the head, path of the feature of the trunk that it reads (see
        :meth:`refkd.nn.Layer.features`), and the head. No layer of the trunk has the
        name of a head.

    Raises
    ------
    ConfigError
        On construction, if the trunk is no Sequential, if heads are no such tuples, or if
        the name of a head is empty, dotted, or taken; in ``forward``, if the trunk has no
        feature of that path.

    References
    ----------
    Szegedy et al.: Going deeper with convolutions, CVPR 2015, section 5.
    """

    trunk: Sequential
    heads: tuple[tuple[str, str, Layer], ...]

    def __post_init__(self) -> None:
        check_sequential("WithHeads", "trunk", self.trunk)
        heads = as_children("WithHeads", "heads", self.heads, "name", "feature path")
        object.__setattr__(self, "heads", heads)
        check_names("WithHeads", self._names())

    def shapes(self) -> tuple[Shapes, Shapes]:
        params, state = self.trunk.shapes()
        head_params, head_state = shapes_of_children(self._named_heads())
        return params | head_params, state | head_state

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        params, state = self.trunk.init(rng, dtype=dtype)
        head_params, head_state = init_children(self._named_heads(), rng, dtype=dtype)
        return params | head_params, state | head_state

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Any,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[tuple[Any, ...], WithHeadsCache]:
        trunk_params, params_of = self._split(params)
        trunk_state, state_of = self._split(state)
        y, cache = self.trunk.forward(trunk_params, trunk_state, x, train=train, rng=rng)
        features = dict(self.trunk.features(cache))
        caches, outputs = [], []
        for name, path, head in self.heads:
            if path not in features:
                raise ConfigError(
                    f"WithHeads.forward: head {name!r} reads {path!r}, which is no feature of "
                    f"the trunk{suggest(path, features)}"
                )
            output, head_cache = head.forward(
                params_of[name], state_of[name], features[path], train=train, rng=rng
            )
            caches.append(head_cache)
            outputs.append(output)
        return (y, *outputs), WithHeadsCache(cache, tuple(caches), tuple(outputs))

    def infer(
        self, params: Mapping[str, Array], state: Mapping[str, Array], x: Any
    ) -> tuple[Any, ...]:
        if not {path for _, path, _ in self.heads} <= {name for name, _ in self.trunk.layers}:
            # A feature inside a layer of the trunk: only a cache gives that away.
            y, _ = self.forward(params, state, x, train=False)
            return y
        trunk_params, params_of = self._split(params)
        trunk_state, state_of = self._split(state)
        layer_params, layer_state = split_by_prefix(trunk_params), split_by_prefix(trunk_state)
        outputs = {}
        for layer_name, layer in self.trunk.layers:
            x = layer.infer(layer_params.get(layer_name, {}), layer_state.get(layer_name, {}), x)
            for name, path, head in self.heads:
                if path == layer_name:
                    outputs[name] = head.infer(params_of[name], state_of[name], x)
        return (x, *(outputs[name] for name, _, _ in self.heads))

    def backward(
        self,
        params: Mapping[str, Array],
        cache: WithHeadsCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        """Walk the heads, then the trunk with what they return as taps.

        Notes
        -----
        A feature z that a head h reads goes two ways, on through the trunk and into the
        head: its cotangent is the sum of what comes back from both, dz + (∂h/∂z)ᵀ dy_h.
        The second term is what a tap at the feature's path adds.
        """
        check_no_taps(self, taps, known=self._names())
        dy_trunk, *dy_heads = cotangents_of("WithHeads.backward", dy, 1 + len(self.heads))
        trunk_params, params_of = self._split(params)
        trunk_taps, taps_of = self._split(taps or {})
        head_grads: Arrays = {}
        for (name, path, head), head_cache, dy_head in zip(
            self.heads, cache.heads, dy_heads, strict=True
        ):
            dz, grads = backward_through(
                head,
                params_of[name],
                head_cache,
                dy_head,
                need_dx=need_dx or bool(trunk_params),
                taps=taps_of[name],
            )
            head_grads |= add_prefix(name, grads)
            if dz is not None:
                trunk_taps[path] = add_cotangents(trunk_taps.get(path), dz)
        dx, trunk_grads = self.trunk.backward(
            trunk_params, cache.trunk, dy_trunk, need_dx=need_dx, taps=trunk_taps
        )
        return dx, trunk_grads | head_grads

    def next_state(self, state: Mapping[str, Array], cache: WithHeadsCache) -> Arrays:
        trunk_state, state_of = self._split(state)
        updated = self.trunk.next_state(trunk_state, cache.trunk)
        for (name, _, head), head_cache in zip(self.heads, cache.heads, strict=True):
            updated |= add_prefix(name, head.next_state(state_of[name], head_cache))
        return updated

    def features(self, cache: WithHeadsCache) -> Iterator[tuple[str, Array]]:
        yield from self.trunk.features(cache.trunk)
        for (name, _, head), head_cache, output in zip(
            self.heads, cache.heads, cache.head_outputs, strict=True
        ):
            yield from ((f"{name}.{path}", y) for path, y in head.features(head_cache))
            yield name, output

    def _named_heads(self) -> list[tuple[str, Layer]]:
        return [(name, head) for name, _, head in self.heads]

    def _names(self) -> list[str]:
        return [name for name, _ in self.trunk.layers] + [name for name, _, _ in self.heads]

    def _split(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        return split_off(arrays, [name for name, _, _ in self.heads])
