"""The VGG workloads: shapes, loss and the arrays both sides start from. No computing here.

32 × 32 pixels in colour, blocks of 3 × 3 convolution → batch norm → relu, each closed by
a 2 × 2 max-pool, then one linear layer; 10 classes. The teacher is VGG-16 with 14,728,266
parameters and the student has 437,034 (labml.ai's distillation on CIFAR-10). Batch norm
uses the statistics of the batch in the network that learns and running ones in the
teacher. A step is what it is in :mod:`bench.workloads.mlp`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.workloads.step import (
    CONVOLUTIONAL_TOLERANCES,
    draw_data,
    draw_layer,
    draw_uniform,
    step_flop,
)

__all__ = [
    "HARD_WEIGHT",
    "NUM_CLASSES",
    "TEMPERATURE",
    "WORKLOADS",
    "Blocks",
    "VGGWorkload",
    "numbered_layers",
]

Blocks = tuple[tuple[int, ...], ...]

IMAGE, NUM_CLASSES = (3, 32, 32), 10
TEMPERATURE, HARD_WEIGHT = 4.0, 0.3  # 0.3 CE + 0.7 T² KL, the mean over the batch
_SMALL = ((32, 32), (64, 64), (128,), (128,), (128,))
_LARGE = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_BATCHES = 16


@dataclass(frozen=True)
class VGGWorkload:
    """One training step; see :class:`bench.workloads.step.Workload`.

    Attributes
    ----------
    name : str
    batch_size : int
    blocks : tuple of tuples of int
        Widths of the convolutions of the network that learns.
    teacher_blocks : tuple of tuples of int, or None
        With it, the step distils from a frozen teacher.
    """

    name: str
    batch_size: int
    blocks: Blocks
    teacher_blocks: Blocks | None = None

    family: ClassVar[str] = "vgg"
    torch_modes: ClassVar[tuple[str, ...]] = ("eager", "channels_last", "compile")
    tolerances: ClassVar[dict[str, float]] = CONVOLUTIONAL_TOLERANCES

    @property
    def networks(self) -> dict[str, Blocks]:
        """The blocks of each network, by its name."""
        networks = {"student": self.blocks}
        if self.teacher_blocks is not None:
            networks["teacher"] = self.teacher_blocks
        return networks

    @property
    def flop(self) -> int:
        """Operations of a step; see :func:`bench.workloads.step.step_flop`."""
        products = {name: _products(blocks) for name, blocks in self.networks.items()}
        return step_flop(self.batch_size, products["student"], products.get("teacher", ()))

    def params(self) -> dict[str, NDArray[np.float32]]:
        """Draw ``student.layers.0.weight`` and so on."""
        rng = np.random.default_rng(1)
        drawn: dict[str, NDArray[np.float32]] = {}
        for network, blocks in self.networks.items():
            width = IMAGE[0]
            for number, kind, channels in numbered_layers(blocks):
                name = f"{network}.layers.{number}"
                if kind == "conv":
                    drawn |= draw_layer(rng, name, (channels, width, 3, 3), gain=math.sqrt(6))
                    width = channels
                elif kind == "norm":
                    drawn[f"{name}.weight"] = draw_uniform(rng, (channels,), 0.5, 1.5)
                    drawn[f"{name}.bias"] = draw_uniform(rng, (channels,), -0.5, 0.5)
            drawn |= draw_layer(rng, f"{network}.fc", (NUM_CLASSES, width))
        return drawn

    def state(self) -> dict[str, NDArray[Any]]:
        """Draw the running statistics, ``student.layers.1.running_mean`` and so on."""
        rng = np.random.default_rng(4)
        drawn: dict[str, NDArray[Any]] = {}
        for network, blocks in self.networks.items():
            for number, kind, channels in numbered_layers(blocks):
                if kind == "norm":
                    name = f"{network}.layers.{number}"
                    drawn[f"{name}.running_mean"] = draw_uniform(rng, (channels,), -0.5, 0.5)
                    drawn[f"{name}.running_var"] = draw_uniform(rng, (channels,), 0.5, 1.5)
                    drawn[f"{name}.num_batches_tracked"] = np.int64(7)
        return drawn

    def data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draw the images, (N, 3, 32, 32), and labels, (N,), of 16 batches."""
        return draw_data(self.batch_size * _BATCHES, IMAGE, NUM_CLASSES)


def numbered_layers(blocks: Blocks) -> Iterator[tuple[int, str, int]]:
    """Yield number, kind and output channels of all modules before the linear layer."""
    number = 0
    for block in blocks:
        for channels in block:
            for kind in ("conv", "norm", "relu"):
                yield number, kind, channels
                number += 1
        yield number, "pool", block[-1]
        number += 1


def _products(blocks: Blocks) -> list[int]:
    """Return what each layer's forward takes for one image."""
    products, (width, size, _) = [], IMAGE
    for _, kind, channels in numbered_layers(blocks):
        if kind == "conv":
            products.append(channels * width * 3**2 * size**2)
            width = channels
        elif kind == "pool":
            size //= 2
    return [*products, width * NUM_CLASSES]


WORKLOADS = (
    VGGWorkload("vgg_student_b64", 64, _SMALL),
    VGGWorkload("vgg_kd_b64", 64, _SMALL, teacher_blocks=_LARGE),
)
