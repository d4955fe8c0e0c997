"""Distributions that initial weights and biases are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refkd.errors import check_positive
from refkd.nn.layer import Arrays

__all__ = ["Initializer", "KaimingNormal", "Normal", "Uniform", "draw_as"]


class Initializer(Protocol):
    """How a layer with a weight (out, in, ...) and perhaps a bias begins."""

    def draw(self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """Return float64 arrays of these shapes: ``weight`` and, where it is asked for, ``bias``.

        Parameters
        ----------
        rng : numpy.random.Generator
        shapes : mapping of str to tuple of int
            ``weight`` (out, in[, kernel height, kernel width]), ``bias`` (out,).
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Weight and bias uniform in ±1/√fan_in, as PyTorch's linear and convolution layers.

    Notes
    -----
    fan_in is the number of inputs that one output sums: in · kernel height · kernel
    width. PyTorch arrives at this bound by ``kaiming_uniform_(a=√5)``: √(6/(1 + 5)) = 1.
    """

    def draw(self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """See :class:`Initializer`."""
        bound = 1 / math.sqrt(math.prod(shapes["weight"][1:]))
        return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class KaimingNormal:
    """Weight normal with standard deviation √(2/fan_out), bias zero: for layers before a ReLU.

    Notes
    -----
    fan_out = out · kernel height · kernel width, the number of outputs that one input
    reaches at stride 1: the backward pass then keeps the variance of cotangents, of which a
    ReLU stops half. As ``torch.nn.init.kaiming_normal_(mode="fan_out",
    nonlinearity="relu")``, which too counts the outputs of all groups.

    References
    ----------
    He et al.: Delving deep into rectifiers, ICCV 2015, equation 14.
    """

    def draw(self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """See :class:`Initializer`."""
        out, _, *kernel = shapes["weight"]
        return _normal(rng, shapes, math.sqrt(2 / (out * math.prod(kernel))))


@dataclass(frozen=True)
class Normal:
    """Weight normal with mean zero, bias zero.

    Attributes
    ----------
    std : float, above 0
        The standard deviation.

    Raises
    ------
    ConfigError
        On construction, if ``std`` is no finite number above 0.
    """

    std: float

    def __post_init__(self) -> None:
        check_positive("Normal", "std", self.std)

    def draw(self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """See :class:`Initializer`."""
        return _normal(rng, shapes, self.std)


def draw_as(
    dtype: type[np.floating[Any]],
    initializer: Initializer,
    rng: np.random.Generator,
    shapes: Mapping[str, tuple[int, ...]],
) -> Arrays:
    """Draw in float64 and cast, so that one seed gives the same weights in either precision."""
    return {name: a.astype(dtype) for name, a in initializer.draw(rng, shapes).items()}


def _normal(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], std: float) -> Arrays:
    return {
        name: rng.normal(0.0, std, shape) if name == "weight" else np.zeros(shape)
        for name, shape in shapes.items()
    }
