"""A body of layers with a shortcut around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError, check_same_shape
from refkd.nn.checks import check_layer, check_names
from refkd.nn.composite import backward_through, split_off
from refkd.nn.layer import Arrays, Layer, Shapes, add_cotangents, add_prefix, check_no_taps
from refkd.nn.sequential import Sequential, check_sequential

__all__ = ["Residual"]


class ResidualCache(NamedTuple):
    body: Any
    shortcut: Any  # None without a shortcut layer, as the next
    shortcut_output: Array | None


@dataclass(frozen=True)
class Residual(Layer):
    """y = body(x) + shortcut(x).

    The features, parameters and state of the body have the names they have in the body;
    those of the shortcut stand under its name.

    Attributes
    ----------
    body : Sequential
    shortcut : Layer or None
        None is the identity.
    shortcut_name : str
        As in torchvision. No layer of the body has this name.

    Raises
    ------
    ConfigError
        On construction, if the body is no Sequential or the shortcut no layer, or if the
        name of the shortcut is no string, empty, dotted, or taken.

    References
    ----------
    He et al.: Deep residual learning for image recognition, CVPR 2016.
    """

    body: Sequential
    shortcut: Layer | None = None
    shortcut_name: str = "downsample"

    def __post_init__(self) -> None:
        check_sequential("Residual", "body", self.body)
        if self.shortcut is not None:
            check_layer("Residual", "shortcut", self.shortcut)
            if not isinstance(self.shortcut_name, str):
                raise ConfigError(
                    f"Residual: shortcut_name must be a string, got {self.shortcut_name!r}"
                )
        check_names("Residual", self._names())

    def shapes(self) -> tuple[Shapes, Shapes]:
        params, state = self.body.shapes()
        if self.shortcut is None:
            return params, state
        own_params, own_state = self.shortcut.shapes()
        name = self.shortcut_name
        return params | add_prefix(name, own_params), state | add_prefix(name, own_state)

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        params, state = self.body.init(rng, dtype=dtype)
        if self.shortcut is None:
            return params, state
        own_params, own_state = self.shortcut.init(rng, dtype=dtype)
        name = self.shortcut_name
        return params | add_prefix(name, own_params), state | add_prefix(name, own_state)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Array,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, ResidualCache]:
        body_params, own_params = self._split(params)
        body_state, own_state = self._split(state)
        y, cache = self.body.forward(body_params, body_state, x, train=train, rng=rng)
        around, own_cache = x, None
        if self.shortcut is not None:
            around, own_cache = self.shortcut.forward(
                own_params, own_state, x, train=train, rng=rng
            )
        check_same_shape("Residual.forward", body=y, shortcut=around)
        output = None if self.shortcut is None else around
        return y + around, ResidualCache(cache, own_cache, output)

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Array) -> Array:
        body_params, own_params = self._split(params)
        body_state, own_state = self._split(state)
        y = self.body.infer(body_params, body_state, x)
        around = x if self.shortcut is None else self.shortcut.infer(own_params, own_state, x)
        check_same_shape("Residual.infer", body=y, shortcut=around)
        return y + around

    def backward(
        self,
        params: Mapping[str, Array],
        cache: ResidualCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        """Hand dy to the body and to the shortcut.

        Notes
        -----
        For y = f(x) + g(x), both f and g receive dy, and dx is the sum of what they
        return; the identity returns dy itself.
        """
        check_no_taps(self, taps, known=self._names())
        body_params, own_params = self._split(params)
        body_taps, own_taps = self._split(taps or {})
        dx, grads = self.body.backward(body_params, cache.body, dy, need_dx=need_dx, taps=body_taps)
        if self.shortcut is None:
            return add_cotangents(dx, dy) if need_dx else None, grads
        own_dx, own_grads = backward_through(
            self.shortcut, own_params, cache.shortcut, dy, need_dx=need_dx, taps=own_taps
        )
        return add_cotangents(dx, own_dx), grads | add_prefix(self.shortcut_name, own_grads)

    def next_state(self, state: Mapping[str, Array], cache: ResidualCache) -> Arrays:
        body_state, own_state = self._split(state)
        updated = self.body.next_state(body_state, cache.body)
        if self.shortcut is None:
            return updated
        own = self.shortcut.next_state(own_state, cache.shortcut)
        return updated | add_prefix(self.shortcut_name, own)

    def features(self, cache: ResidualCache) -> Iterator[tuple[str, Array]]:
        yield from self.body.features(cache.body)
        if self.shortcut is not None:
            name = self.shortcut_name
            own = self.shortcut.features(cache.shortcut)
            yield from ((f"{name}.{path}", y) for path, y in own)
            yield name, cache.shortcut_output

    def _names(self) -> list[str]:
        names = [name for name, _ in self.body.layers]
        return names if self.shortcut is None else [*names, self.shortcut_name]

    def _split(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.shortcut is None:
            return dict(arrays), {}
        rest, own = split_off(arrays, [self.shortcut_name])
        return rest, own[self.shortcut_name]
