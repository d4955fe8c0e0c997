"""Ways to draw inputs that several files of cases share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["away_from_zero", "batched_shapes", "normal", "normal_like"]

batched_shapes = {
    "1-D": (5,),
    "2-D": (3, 4),
    "3-D": (2, 3, 4),
    "4-D": (2, 3, 2, 3),
    "batch of one": (1, 6),
    "one entry": (1,),
    "0-D": (),
}

Inputs = Callable[[np.random.Generator], dict[str, Any]]


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator], Any]:
    """Draw standard normal entries times ``scale``, as an array even for shape ()."""
    return lambda rng: np.asarray(scale * rng.standard_normal(shape))


def normal_like(scale: float = 1.0, **shapes: tuple[int, ...]) -> Inputs:
    """Draw one normal array for each name."""
    return lambda rng: {name: normal(*s, scale=scale)(rng) for name, s in shapes.items()}


def away_from_zero(*shape: int) -> Callable[[np.random.Generator], Any]:
    """Draw entries of either sign and magnitude in [0.1, 3]: no kink at 0 within reach."""
    return lambda rng: np.asarray(
        rng.uniform(0.1, 3, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    )
