"""The kernels that are measured alone: shapes, arrays, and how a call is timed.

A call's arrays come from a ring of copies that together exceed the last-level cache, so
that neither side finds its inputs in the cache because it has just read them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIRECTIONS", "KERNELS", "LAYOUTS", "ConvKernel", "RingSide"]

DIRECTIONS = ("forward", "backward_input", "backward_weight")
LAYOUTS = ("contiguous", "channels_last")
_RING_BYTES = 1 << 27
_POISONED_BLOCKS = 4


@dataclass(frozen=True)
class ConvKernel:
    """One direction of a square two-dimensional convolution, with padding (R − 1)//2.

    Attributes
    ----------
    direction : {"forward", "backward_input", "backward_weight"}
    batch, channels, size : int
        N, C and H = W of the input.
    filters, kernel_size, stride : int
        K, R = S and the step.
    """

    direction: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel_size: int
    stride: int

    # Of refkd's float32 against PyTorch's float64. PyTorch's own float32 is up to 1.2e-5 off,
    # where a weight's gradient is a sum of 100,000 products.
    tolerance: ClassVar[float] = 5e-6

    @property
    def name(self) -> str:
        """The kernel and N,C,H,K,R,stride: ``conv2d_forward:64,3,32,64,3,1``."""
        return f"conv2d_{self.direction}:{','.join(map(str, self.shape))}"

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H, K, R and the stride."""
        return tuple(v for k, v in asdict(self).items() if k != "direction")

    @property
    def padding(self) -> int:
        """Zeros on every side of the input."""
        return (self.kernel_size - 1) // 2

    @property
    def output_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * self.padding - self.kernel_size) // self.stride + 1

    @property
    def flop(self) -> int:
        """2·N·K·C·R·R·P·P: the additions and products of direct convolution."""
        window = self.channels * self.kernel_size**2
        return 2 * self.batch * self.filters * window * self.output_size**2

    def array_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``x``, ``weight``, ``bias`` and ``dy``."""
        return {
            "x": (self.batch, self.channels, self.size, self.size),
            "weight": (self.filters, self.channels, self.kernel_size, self.kernel_size),
            "bias": (self.filters,),
            "dy": (self.batch, self.filters, self.output_size, self.output_size),
        }

    def ring(self, layout: str, dtype: str) -> list[dict[str, NDArray[Any]]]:
        """Draw copies of the arrays, at least two, in one of ``LAYOUTS``: float32 values."""
        rng = np.random.default_rng(1)
        shapes = self.array_shapes()
        one = np.dtype(dtype).itemsize * sum(math.prod(shape) for shape in shapes.values())
        return [
            {name: _in_layout(_draw(rng, shape, dtype), layout) for name, shape in shapes.items()}
            for _ in range(max(2, -(-_RING_BYTES // one)))
        ]


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _in_layout(array: NDArray[Any], layout: str) -> NDArray[Any]:
    if layout == "channels_last" and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return array


class RingSide:
    """One implementation of a kernel.

    Parameters
    ----------
    kernel : ConvKernel
    layout : str
    make : callable
        ``make(arrays)`` returns the call on one set of arrays, without arguments.
    to_numpy : callable
        Of an output.
    """

    def __init__(
        self,
        kernel: ConvKernel,
        layout: str,
        make: Callable[[dict[str, NDArray[Any]]], Callable[[], Any]],
        to_numpy: Callable[[Any], NDArray[Any]] = np.asarray,
    ) -> None:
        self.kernel, self.layout = kernel, layout
        self.make, self.to_numpy = make, to_numpy
        self.ring: itertools.cycle[Callable[[], Any]] | None = None

    def verify(self, dtype: str) -> dict[str, NDArray[Any]]:
        """Return the outputs of two calls, the first looked at after the second.

        The heap is full of NaN before each, so that memory taken for zeros shows, and so
        does a buffer that is used again while its result is still in use.
        """
        calls = [self.make(arrays) for arrays in self.kernel.ring(self.layout, dtype)[:2]]
        outputs = []
        for call in calls:
            self._poison(dtype)
            outputs.append(call())
        return {f"output {i}": self.to_numpy(output) for i, output in enumerate(outputs)}

    def run(self, steps: int) -> list[float]:
        """Return the seconds of each of ``steps`` calls."""
        if self.ring is None:
            calls = [self.make(arrays) for arrays in self.kernel.ring(self.layout, "float32")]
            self.ring = itertools.cycle(calls)
        seconds = []
        for call in itertools.islice(self.ring, steps):
            begin = time.perf_counter()
            output = call()
            seconds.append(time.perf_counter() - begin)
            del output
        return seconds

    def _poison(self, dtype: str) -> None:
        for shape in self.kernel.array_shapes().values():
            blocks = [np.full(shape, np.nan, dtype) for _ in range(_POISONED_BLOCKS)]
            del blocks


KERNELS = tuple(
    ConvKernel(direction, *shape)
    for shape in (
        (64, 3, 32, 64, 3, 1),
        (64, 64, 32, 64, 3, 1),
        (64, 128, 16, 128, 3, 1),
        (16, 512, 4, 512, 3, 1),
        (8, 3, 224, 64, 7, 2),
        (8, 192, 28, 96, 1, 1),
        (8, 64, 56, 192, 3, 1),
        (8, 16, 28, 32, 5, 1),
    )
    for direction in DIRECTIONS
)
