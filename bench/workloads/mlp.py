"""The MLP workloads: shapes, loss and the arrays both sides start from. No computing here.

784 values in, two hidden layers relu(dropout(linear)), 10 classes; the teacher is
1200 wide and the student 20 (Hinton, Vinyals, Dean 2015, section 3, with a small
student). A step takes its rows out of a set of uint8 images, converts them, and does
forward, backward and Adam; a distillation step evaluates the teacher first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.workloads.step import draw_data, draw_layer, step_flop

__all__ = [
    "DROPOUT",
    "HARD_WEIGHT",
    "TEMPERATURE",
    "WORKLOADS",
    "MLPWorkload",
]

IN_FEATURES, NUM_CLASSES = 784, 10
DROPOUT = 0.5
TEMPERATURE, HARD_WEIGHT = 4.0, 0.3  # 0.3 CE + 0.7 T² KL, the mean over the batch
_BATCHES = 32


@dataclass(frozen=True)
class MLPWorkload:
    """One training step; see :class:`bench.workloads.step.Workload`.

    Attributes
    ----------
    name : str
    batch_size : int
    width : int
        Of both hidden layers of the network that learns.
    teacher_width : int or None
        With it, the step distils from a frozen teacher.
    """

    name: str
    batch_size: int
    width: int
    teacher_width: int | None = None

    family: ClassVar[str] = "mlp"
    torch_modes: ClassVar[tuple[str, ...]] = ("eager", "compile")
    tolerances: ClassVar[dict[str, float]] = {"float32": 5e-6}  # sums of up to 1,200 products

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Layer widths of each network, from input to output, by its name."""
        networks = {"student": self.width}
        if self.teacher_width is not None:
            networks["teacher"] = self.teacher_width
        return {k: (IN_FEATURES, w, w, NUM_CLASSES) for k, w in networks.items()}

    @property
    def flop(self) -> int:
        """Operations of a step; see :func:`bench.workloads.step.step_flop`."""
        products = {k: [a * b for a, b in pairwise(v)] for k, v in self.widths.items()}
        return step_flop(self.batch_size, products["student"], products.get("teacher", ()))

    def params(self) -> dict[str, NDArray[np.float32]]:
        """Draw ``student.fc1.weight`` and so on, uniform in ±1/√fan_in."""
        rng = np.random.default_rng(1)
        drawn: dict[str, NDArray[np.float32]] = {}
        for network, widths in self.widths.items():
            for i in range(1, len(widths)):
                drawn |= draw_layer(rng, f"{network}.fc{i}", (widths[i], widths[i - 1]))
        return drawn

    def state(self) -> dict[str, NDArray[Any]]:
        """Return nothing: there are no running statistics."""
        return {}

    def data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draw the images, (N, 784), and labels, (N,), of 32 batches."""
        return draw_data(self.batch_size * _BATCHES, (IN_FEATURES,), NUM_CLASSES)


WORKLOADS = (
    MLPWorkload("mlp_student_b32", 32, 20),
    MLPWorkload("mlp_kd_b32", 32, 20, teacher_width=1200),
    MLPWorkload("mlp_kd_b128", 128, 20, teacher_width=1200),
    MLPWorkload("mlp_teacher_b32", 32, 1200),
    MLPWorkload("mlp_teacher_b128", 128, 1200),
)
