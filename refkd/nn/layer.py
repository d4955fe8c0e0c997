"""The layer contract, and the handling of parameter names that layers share.

A layer is a frozen dataclass of hyperparameters. It owns no arrays: parameters and
state are flat dictionaries whose keys are PyTorch ``state_dict`` keys, and they are
arguments of every method. Nothing here differentiates; that is what the kernels do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from refkd.dispatch import Array
from refkd.errors import CheckpointError, ConfigError, check_same_shape, suggest

__all__ = [
    "Arrays",
    "Layer",
    "Shapes",
    "add_cotangents",
    "add_prefix",
    "check_no_taps",
    "split_by_prefix",
]

Arrays: TypeAlias = dict[str, Array]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


class Layer(Protocol):
    """What every layer and network does. Subclasses override what they have use for.

    x and y are an array or a tuple of arrays. A cotangent mirrors what it belongs to:
    dy has the structure of y with None for outputs that nothing used, dx that of x
    with None for integer inputs.
    """

    def shapes(self) -> tuple[Shapes, Shapes]:
        """Return the shapes of the parameters and of the state, by name."""
        return {}, {}

    def init(
        self, rng: np.random.Generator, *, dtype: type[np.floating[Any]] = np.float32
    ) -> tuple[Arrays, Arrays]:
        """Draw initial parameters and return them with the initial state.

        Random numbers are drawn in float64 and then cast, so one seed gives the same
        network in either precision.
        """
        return {}, {}

    def forward(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        x: Any,
        *,
        train: bool,
        rng: np.random.Generator | None = None,
    ) -> tuple[Any, Any]:
        """Return y and the cache that :meth:`backward` needs; mutate nothing.

        Parameters
        ----------
        params, state : mapping of str to array
        x : array or tuple of arrays
        train : bool
            Whether dropout drops and batch statistics are used.
        rng : numpy.random.Generator, optional
            Needed in training mode by layers that draw.
        """
        ...

    def infer(self, params: Mapping[str, Array], state: Mapping[str, Array], x: Any) -> Any:
        """Return the y of :meth:`forward` in evaluation, and keep nothing of the way there.

        A network then takes the memory of its largest layers, not that of all.
        """
        y, _ = self.forward(params, state, x, train=False)
        return y

    def backward(
        self,
        params: Mapping[str, Array],
        cache: Any,
        dy: Any,
        *,
        need_dx: bool = True,
        taps: Mapping[str, Array] | None = None,
    ) -> tuple[Any, Arrays]:
        """Return dx and the gradients of all parameters, freshly allocated.

        Parameters
        ----------
        params, cache
            As given to and returned by :meth:`forward`.
        dy : array, tuple or None
            Cotangent of y.
        need_dx : bool
            False may skip the work for dx, which is then None.
        taps : mapping of str to array, optional
            Cotangents added at the features of these paths (see :meth:`features`).

        Returns
        -------
        dx : array, tuple or None
        grads : dict of str to array
            With the keys of ``params``, zeros where no cotangent arrived.
        """
        ...

    def next_state(self, state: Mapping[str, Array], cache: Any) -> Arrays:
        """Return the state after a training forward: running statistics, updated."""
        return dict(state)

    def features(self, cache: Any) -> Iterator[tuple[str, Array]]:
        """Yield (path, array) for the outputs inside this network that a tap can reach."""
        return iter(())

    def split_state_dict(self, state_dict: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        """Split a PyTorch-style ``state_dict`` into parameters and state, strictly.

        Raises
        ------
        CheckpointError
            If a name is missing or unexpected, or a shape differs; all are listed.
        """
        shapes, state_shapes = self.shapes()
        expected = shapes | state_shapes
        problems = [f"missing {name}" for name in expected if name not in state_dict]
        problems += [
            f"unexpected {name}{suggest(name, expected)}"
            for name in state_dict
            if name not in expected
        ]
        problems += [
            f"{name} has shape {tuple(state_dict[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in state_dict and tuple(state_dict[name].shape) != shape
        ]
        if problems:
            listed = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
            raise CheckpointError(
                f"{type(self).__name__}.split_state_dict: the arrays belong to another model "
                f"({len(problems)} differences): {listed}"
            )
        return (
            {name: state_dict[name] for name in shapes},
            {name: state_dict[name] for name in state_shapes},
        )

    def merge_state_dict(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> Arrays:
        """Return parameters and state as one PyTorch-style ``state_dict``."""
        return {**params, **state}


def split_by_prefix(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group ``{"a.b.c": v}`` by the first component: ``{"a": {"b.c": v}}``."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    return groups


def add_prefix(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``prefix.`` before every name; the empty name becomes ``prefix`` itself."""
    return {f"{prefix}.{name}" if name else prefix: value for name, value in arrays.items()}


def add_cotangents(a: Any, b: Any) -> Any:
    """Add two cotangents where None stands for zero; tuples add element by element."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tuple):
        return tuple(add_cotangents(x, y) for x, y in zip(a, b, strict=True))
    check_same_shape("backward", cotangent=a, tap=b)  # a + b would broadcast
    return a + b


def check_no_taps(
    layer: Layer, taps: Mapping[str, Array] | None, known: Iterable[str] = ()
) -> None:
    """Raise ConfigError if a tap names a feature that ``layer`` does not have."""
    known = list(known)
    for path in taps or {}:
        if path.partition(".")[0] not in known:
            raise ConfigError(
                f"{type(layer).__name__}.backward: tap {path!r} names no feature of this layer"
                f"{suggest(path, known)}"
            )
