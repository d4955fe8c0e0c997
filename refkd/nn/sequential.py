"""Layers in a row, named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import Array
from refkd.errors import ConfigError
from refkd.nn.checks import as_children, check_names
from refkd.nn.composite import backward_through, init_children, next_states, shapes_of_children
from refkd.nn.layer import (
    Arrays,
    Layer,
    Shapes,
    add_prefix,
    check_no_taps,
    split_by_prefix,
)

__all__ = ["Sequential", "check_sequential"]


class SequentialCache(NamedTuple):
    children: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Sequential(Layer):
    """Apply the layers in order; the feature ``name`` is what the layer ``name`` returns.

    Attributes
    ----------
    layers : tuple of (str, Layer)
        Names are unique and hold no dot. A layer without parameters keeps its name
        out of the ``state_dict``.

    Raises
    ------
    ConfigError
        On construction, for a name that is repeated, empty or dotted, and for what is no
        tuple of names and layers.
    """

    layers: tuple[tuple[str, Layer], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_children("Sequential", "layers", self.layers, "name"))
        check_names("Sequential", [name for name, _ in self.layers])

    @classmethod
    def numbered(cls, *layers: Layer) -> Sequential:
        """Name the layers "0", "1", ... as ``torch.nn.Sequential`` does."""
        return cls(tuple((str(i), layer) for i, layer in enumerate(layers)))

    def shapes(self) -> tuple[Shapes, Shapes]:
        return shapes_of_children(self.layers)

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        return init_children(self.layers, rng, dtype=dtype)

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Any,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Any, SequentialCache]:
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        caches, outputs = [], []
        for name, layer in self.layers:
            x, cache = layer.forward(
                params_of.get(name, {}), state_of.get(name, {}), x, train=train, rng=rng
            )
            caches.append(cache)
            outputs.append(x)
        return x, SequentialCache(tuple(caches), tuple(outputs))

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Any) -> Any:
        params_of, state_of = split_by_prefix(params), split_by_prefix(state)
        for name, layer in self.layers:
            x = layer.infer(params_of.get(name, {}), state_of.get(name, {}), x)
        return x

    def backward(
        self,
        params: Mapping[str, Array],
        cache: SequentialCache,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        """Walk the layers in reverse.

        Notes
        -----
        For y = f_n(... f_1(x)) the chain rule hands each layer the cotangent of its
        output and takes that of its input. A tap adds to the cotangent of the feature
        it names. A layer behind which neither dy nor a tap lies is not on any path to
        the loss: its gradient is zero, and it is skipped.
        """
        names = [name for name, _ in self.layers]
        check_no_taps(self, taps, known=names)
        params_of, taps_of = split_by_prefix(params), split_by_prefix(taps or {})
        grads: Arrays = {}
        # Before the first layer with parameters a cotangent serves nobody but the caller.
        first = next(
            (i for i, (n, _) in enumerate(self.layers) if n in params_of), len(self.layers)
        )
        for i, (name, layer) in reversed(list(enumerate(self.layers))):
            dy, layer_grads = backward_through(
                layer,
                params_of.get(name, {}),
                cache.children[i],
                dy,
                need_dx=need_dx or i > first,
                taps=taps_of.get(name, {}),
            )
            grads = add_prefix(name, layer_grads) | grads
        return dy if need_dx else None, grads

    def next_state(self, state: Mapping[str, Array], cache: SequentialCache) -> Arrays:
        return next_states(self.layers, state, cache.children)

    def features(self, cache: SequentialCache) -> Iterator[tuple[str, Array]]:
        for (name, layer), layer_cache, output in zip(
            self.layers, cache.children, cache.outputs, strict=True
        ):
            yield from ((f"{name}.{path}", y) for path, y in layer.features(layer_cache))
            yield name, output


def check_sequential(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value``, whose layers a composite names, is a Sequential."""
    if not isinstance(value, Sequential):
        raise ConfigError(
            f"{where}: {name} must be a Sequential, got {value!r}; Sequential.numbered(...) "
            f"makes one of layers"
        )
