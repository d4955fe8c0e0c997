"""The GoogLeNet workloads: shapes, loss and the arrays both sides start from. No computing here.

224 × 224 pixels in colour, 5 classes. ``googlenet_teacher_b8`` trains GoogLeNet without
batch norm and with its two auxiliary classifiers, 10,318,655 parameters, on the
cross-entropies of the three heads; ``googlenet_kd_b32`` trains a network of two
convolutions, 41,029 parameters, on the labels and on the three heads of a frozen
GoogLeNet. A step is what it is in :mod:`bench.workloads.mlp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.workloads.step import CONVOLUTIONAL_TOLERANCES, draw_data, draw_layer, step_flop

__all__ = [
    "AUX_DROPOUT",
    "DROPOUT",
    "HARD_WEIGHT",
    "HEAD_WEIGHTS",
    "INCEPTIONS",
    "NUM_CLASSES",
    "SOFT_WEIGHT",
    "STUDENT_WIDTH",
    "TEMPERATURE",
    "WORKLOADS",
    "GoogLeNetWorkload",
]

IMAGE, NUM_CLASSES = (3, 224, 224), 5
DROPOUT, AUX_DROPOUT = 0.4, 0.5
HEAD_WEIGHTS = (1.0, 0.3, 0.3)  # of the logits, aux2 and aux1
# .55 CE + .45 Σ_h w_h KL_h, the mean over the batch, without T²
TEMPERATURE, HARD_WEIGHT, SOFT_WEIGHT = 5.0, 0.55, 0.45
STUDENT_WIDTH = 32
# Input; 1 × 1; 3 × 3 reduce, 3 × 3; 5 × 5 reduce, 5 × 5; projection of the pooled input.
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
_BATCHES = 4


@dataclass(frozen=True)
class GoogLeNetWorkload:
    """One training step; see :class:`bench.workloads.step.Workload`.

    Attributes
    ----------
    name : str
    batch_size : int
    distils : bool
        Whether GoogLeNet is the frozen teacher of a small network, or what learns.
    """

    name: str
    batch_size: int
    distils: bool

    family: ClassVar[str] = "googlenet"
    torch_modes: ClassVar[tuple[str, ...]] = ("eager", "channels_last", "compile")
    tolerances: ClassVar[dict[str, float]] = CONVOLUTIONAL_TOLERANCES

    @property
    def flop(self) -> int:
        """Operations of a step; see :func:`bench.workloads.step.step_flop`."""
        large = _products(_googlenet_shapes(), _SIZES)
        if not self.distils:
            return step_flop(self.batch_size, large)
        return step_flop(self.batch_size, _products(_STUDENT_SHAPES, _STUDENT_SIZES), large)

    def params(self) -> dict[str, NDArray[np.float32]]:
        """Draw ``student.conv1.conv.weight`` and so on."""
        rng = np.random.default_rng(1)
        shapes = {f"student.{k}": v for k, v in _googlenet_shapes().items()}
        if self.distils:
            shapes = {f"teacher.{k}": v for k, v in _googlenet_shapes().items()}
            shapes |= {f"student.{k}": v for k, v in _STUDENT_SHAPES.items()}
        drawn: dict[str, NDArray[np.float32]] = {}
        for name, shape in shapes.items():
            gain = math.sqrt(6) if len(shape) == 4 else 1.0
            drawn |= draw_layer(rng, name, shape, gain=gain)
        return drawn

    def state(self) -> dict[str, NDArray[Any]]:
        """Return nothing: there is no batch norm."""
        return {}

    def data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draw the images, (N, 3, 224, 224), and labels, (N,), of 4 batches."""
        return draw_data(self.batch_size * _BATCHES, IMAGE, NUM_CLASSES)


def _googlenet_shapes() -> dict[str, tuple[int, ...]]:
    """Return the weights' shapes by layer, with torchvision's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.conv": (64, 3, 7, 7),
        "conv2.conv": (64, 64, 1, 1),
        "conv3.conv": (192, 64, 3, 3),
    }
    for module, (width, one, three_in, three, five_in, five, pool) in INCEPTIONS.items():
        name = f"inception{module}"
        shapes |= {
            f"{name}.branch1.conv": (one, width, 1, 1),
            f"{name}.branch2.0.conv": (three_in, width, 1, 1),
            f"{name}.branch2.1.conv": (three, three_in, 3, 3),
            f"{name}.branch3.0.conv": (five_in, width, 1, 1),
            f"{name}.branch3.1.conv": (five, five_in, 5, 5),
            f"{name}.branch4.1.conv": (pool, width, 1, 1),
        }
    shapes["fc"] = (NUM_CLASSES, 1024)
    for name, width in (("aux1", 512), ("aux2", 528)):
        shapes |= {
            f"{name}.conv.conv": (128, width, 1, 1),
            f"{name}.fc1": (1024, 2048),
            f"{name}.fc2": (NUM_CLASSES, 1024),
        }
    return shapes


_STUDENT_SHAPES: dict[str, tuple[int, ...]] = {
    "conv1": (STUDENT_WIDTH, 3, 7, 7),
    "conv2": (STUDENT_WIDTH, STUDENT_WIDTH, 3, 3),
    "fc": (NUM_CLASSES, STUDENT_WIDTH * 13 * 13),
}

# Height and width of what the convolutions return, by the beginning of their names.
_SIZES = {
    "conv1": 112,
    "conv2": 56,
    "conv3": 56,
    "inception3": 28,
    "inception4": 14,
    "inception5": 7,
    "aux": 4,
}
_STUDENT_SIZES = {"conv1": 112, "conv2": 28}


def _products(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> list[int]:
    """Return what each layer's forward takes for one image."""
    products = []
    for name, shape in shapes.items():
        size = 1
        if len(shape) == 4:
            (size,) = (size for prefix, size in sizes.items() if name.startswith(prefix))
        products.append(math.prod(shape) * size**2)
    return products


WORKLOADS = (
    GoogLeNetWorkload("googlenet_teacher_b8", 8, distils=False),
    GoogLeNetWorkload("googlenet_kd_b32", 32, distils=True),
)
