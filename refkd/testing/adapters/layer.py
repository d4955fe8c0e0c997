"""Layers and networks that follow the protocol of :mod:`refkd.nn.layer`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from refkd.errors import ConfigError
from refkd.testing.adapters import (
    Subject,
    cotangent_generator,
    cotangents_like,
    draw_cotangents,
    flat_gradients,
    in_precision_of,
    inner_product,
)
from refkd.testing.structure import flatten, rebuild

__all__ = ["from_layer"]


def from_layer(
    layer: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    x: Any,
    *,
    train: bool,
    rng: int | np.random.Generator = 0,
) -> Subject:
    """Return the subject Σ dy · y for the outputs y of a layer and random cotangents dy.

    Parameters
    ----------
    layer : object
        Its ``forward(params, state, x, *, train, rng)`` is (y, cache) and its
        ``backward(params, cache, dy)`` is (dx, grads); dx mirrors x with None for
        integer inputs. Any network of :func:`refkd.models.create` is one.
    params, state : mapping of str to array
        As ``layer.init`` returns them; the state is the same for every call.
    x : array, or tuple of arrays
        Called ``x``, or ``x[0]`` and so on, in the report; what is not floating is not
        differentiated.
    train : bool
        Whether dropout drops and batch statistics are used.
    rng : int or numpy.random.Generator
        Draws the cotangents; the layer gets a generator that draws the same numbers in
        every call.

    Raises
    ------
    ConfigError
        If a parameter has the name of an input.

    Examples
    --------
    >>> from refkd.nn import Linear
    >>> from refkd.testing import check_grad
    >>> layer, rng = Linear(3, 2), np.random.default_rng(0)
    >>> params, state = layer.init(rng, dtype=np.float64)
    >>> x = rng.standard_normal((4, 3))
    >>> check_grad(*from_layer(layer, params, state, x, train=True)).ok
    True
    """
    rng = cotangent_generator(rng)
    draws = np.random.default_rng(rng.integers(2**63))
    inputs = flatten({"x": x})
    taken = sorted(inputs.keys() & params.keys())
    if taken:
        raise ConfigError(
            f"from_layer: {type(layer).__name__} has a parameter called {taken[0]}, which is "
            f"the name of the input; rename the parameter"
        )

    def forward(given: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        own = {name: given[name] for name in params}
        y, cache = layer.forward(
            own,
            in_precision_of(given, state),
            rebuild({"x": x}, given)["x"],
            train=train,
            rng=copy.deepcopy(draws),
        )
        return own, y, cache

    point = {**inputs, **params}
    cotangents = draw_cotangents(forward(point)[1], rng)

    def scalar(**given: Any) -> Any:
        return inner_product(forward(given)[1], cotangents)

    def gradient(**given: Any) -> dict[str, Any]:
        own, y, cache = forward(given)
        dx, grads = layer.backward(own, cache, cotangents_like(y, cotangents))
        return {**flat_gradients({"x": dx}), **grads}

    return Subject(scalar, point, gradient)
