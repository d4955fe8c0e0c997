"""What the training steps of all families share: settings and draws. No computing here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONVOLUTIONAL_TOLERANCES",
    "LEARNING_RATE",
    "SCALE",
    "VERIFY_EPS",
    "VERIFY_LEARNING_RATE",
    "Workload",
    "draw_data",
    "draw_layer",
    "draw_uniform",
    "step_flop",
]

LEARNING_RATE = 1e-4
SCALE = 1 / 255
# Adam's first step is lr g/(|g| + eps). With the usual eps = 1e-8 the sign of a rounding
# error decides where g is about 0. These settings move a parameter by at most as much as
# its gradient, and do not make an error of the gradient larger.
VERIFY_LEARNING_RATE, VERIFY_EPS = 0.1, 0.1
# In float64 two convolutional networks that are the same agree to 1e-13. In float32 they
# round differently, and of millions of activations a few are so close to zero, or to their
# neighbour in a pooling window, that a gradient takes another way: an entry of a weight's
# gradient then lacks one of its terms, some thousandths of it. Measured: up to 3e-3.
CONVOLUTIONAL_TOLERANCES = {"float64": 1e-11, "float32": 1e-2}


class Workload(Protocol):
    """One training step: what both sides start from.

    Attributes
    ----------
    name : str
    batch_size : int
    family : str
        ``bench.workloads.FAMILY_refkd`` and ``FAMILY_torch`` compute it.
    torch_modes : tuple of str
        The ways PyTorch may run it, the fastest of which is the peer.
    tolerances : mapping of str to float
        By dtype, how far the sides may be apart; see
        :func:`bench.harness.check_agreement`.
    flop : int
        Operations of a step; see :func:`step_flop`.
    """

    name: str
    batch_size: int
    family: str
    torch_modes: tuple[str, ...]
    tolerances: Mapping[str, float]

    @property
    def flop(self) -> int: ...

    def params(self) -> dict[str, NDArray[np.float32]]:
        """Draw the parameters of all networks: ``student.fc1.weight`` and so on."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Draw the running statistics of all networks."""
        ...

    def data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draw the images, one batch after the other, and their labels."""
        ...


def step_flop(batch_size: int, learning: Sequence[int], frozen: Sequence[int] = ()) -> int:
    """Return the additions and products of a step's linear layers and direct convolutions.

    Parameters
    ----------
    batch_size : int
    learning, frozen : sequence of int
        Products that a layer's forward takes for one example, layer by layer, of the
        network that learns and of the one that is evaluated.

    Notes
    -----
    The gradients of weight and input take as many each, and the first layer's input needs
    none. Nothing else is counted.
    """
    return 2 * batch_size * (3 * sum(learning) - learning[0] + sum(frozen))


def draw_uniform(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> NDArray[np.float32]:
    """Draw float32 values uniform in [low, high)."""
    return (high - low) * rng.random(shape, np.float32) + low


def draw_layer(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], *, gain: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """Draw ``name.weight`` of that shape, uniform in ±gain/√fan_in, and ``name.bias``.

    A gain of √6 keeps the variance of a deep network's activations behind ReLUs; with
    less its logits would be the last layer's biases, whatever the images are.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return {
        f"{name}.weight": draw_uniform(rng, shape, -gain * bound, gain * bound),
        f"{name}.bias": draw_uniform(rng, shape[:1], -bound, bound),
    }


def draw_data(
    rows: int, shape: tuple[int, ...], num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw ``rows`` uint8 images of that shape, and as many labels."""
    rng = np.random.default_rng(2)
    images: NDArray[Any] = rng.integers(0, 256, (rows, *shape), np.uint8)
    return images, rng.integers(0, num_classes, rows)
