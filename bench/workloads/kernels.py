"""What a kernel is that is measured alone, its arrays, and how a call is timed.

A call's arrays come from a ring of copies that together exceed the last-level cache, so
that neither side finds its inputs in the cache because it has just read them. (There are
limits: of a kernel that reads 10 KB a thousand copies do not. In a training it would find
them there, too.) Which kernels there are is in :mod:`bench.workloads.kernel_families`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYOUTS", "Call", "Kernel", "RingSide"]

LAYOUTS = ("contiguous", "channels_last")
_RING_BYTES = 1 << 27
_MOST_COPIES = 1024
_POISONED_BLOCKS = 4
_INTEGERS = ("indices", "labels")
_CLASSES = 10  # that the labels are of; all logits here have at least as many

Arrays = dict[str, NDArray[Any]]
Call = Callable[[], Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One kernel of refkd on arrays of given shapes.

    Arrays have the names of the parameters of refkd's kernel; those of its results are
    what other kernels' parameters call them. A cotangent ``dx`` has the shape of ``x``.

    Attributes
    ----------
    operation, direction : str
        ``layer_norm`` and ``backward``: refkd's kernel is ``layer_norm_backward``.
    label : str
        What tells it from other rows of the same kernel: ``8,197,192``.
    shapes : mapping of str to tuple of int
        Of all arrays but the cotangents.
    reads, writes : tuple of str
        The arrays that a call takes, and its results, in order, or what it writes in place.
    settings : mapping of str to object
        The other parameters, and those of PyTorch's counterpart; each takes what it knows.
    forward : Kernel or None
        Whose results are among ``reads``.
    flop : int
        Additions and products of the direct algorithm, whatever a side computes; 0 where
        the work is counted in bytes.
    tolerance : float
        Of refkd's float32 against PyTorch's float64, relative to an array's largest entry.
        PyTorch's own float32 is up to 1.2e-5 off, where a weight's gradient is a sum of
        100,000 products.
    winograd_tolerance : float or None
        The same for a backend that uses Winograd's algorithm; None where it cannot.
    layouts : tuple of str
        Orders of memory to try, of ``LAYOUTS``.
    """

    operation: str
    direction: str
    label: str
    shapes: Mapping[str, Shape]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    forward: Kernel | None = None
    flop: int = 0
    tolerance: float = 5e-6
    winograd_tolerance: float | None = None
    layouts: tuple[str, ...] = LAYOUTS

    @property
    def kernel(self) -> str:
        """Name of refkd's kernel."""
        return f"{self.operation}_{self.direction}"

    @property
    def name(self) -> str:
        """Name of the row: ``layer_norm_backward:8,197,192``."""
        return f"{self.kernel}:{self.label}"

    @property
    def nbytes(self) -> int:
        """Bytes that must move: every array that is read, once, and every one written."""
        return self._nbytes(self.reads) + self._nbytes(self.writes)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The arrays that are drawn: what is read here or by the forward, but for its results."""
        if self.forward is None:
            return self.reads
        names = dict.fromkeys((*self.forward.reads, *self.reads))
        return tuple(name for name in names if name not in self.forward.writes)

    def shape_of(self, name: str) -> Shape:
        """Return the shape of an array or a cotangent."""
        return self.shapes[name] if name in self.shapes else self.shapes[name.removeprefix("d")]

    def ring(self, layout: str, dtype: str) -> Iterator[Arrays]:
        """Draw copies of the arrays, at least two, in one of ``LAYOUTS``: float32 values."""
        rng = np.random.default_rng(1)
        copies = -(-_RING_BYTES // self._nbytes(self.reads))
        for _ in range(min(max(copies, 2), _MOST_COPIES)):
            yield {
                name: _in_layout(_draw(rng, name, self.shape_of(name), dtype), layout)
                for name in self.drawn
            }

    def _nbytes(self, names: tuple[str, ...]) -> int:
        itemsizes = (8 if name in _INTEGERS else 4 for name in names)
        return sum(n * math.prod(self.shape_of(k)) for n, k in zip(itemsizes, names, strict=True))


def _draw(rng: np.random.Generator, name: str, shape: Shape, dtype: str) -> NDArray[Any]:
    if name == "labels":
        return rng.integers(0, _CLASSES, shape)
    values = rng.standard_normal(shape, np.float32)
    return np.asarray(values**2 if name == "exp_avg_sq" else values).astype(dtype)


def _in_layout(array: NDArray[Any], layout: str) -> NDArray[Any]:
    if layout == "channels_last" and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return array


class RingSide:
    """One implementation of a kernel.

    Parameters
    ----------
    kernel : Kernel
    layout : str
    make : callable
        ``make(arrays)`` returns the call on one set of arrays, without arguments.
    named : callable
        ``named(output)`` returns what a call has returned, as NumPy arrays by name. Not
        asked where it has returned None: then it has written in place.
    """

    def __init__(
        self,
        kernel: Kernel,
        layout: str,
        make: Callable[[Arrays], Call],
        named: Callable[[Any], Arrays],
    ) -> None:
        self.kernel, self.layout = kernel, layout
        self.make, self.named = make, named
        self.ring: itertools.cycle[Call] | None = None

    def verify(self, dtype: str) -> Arrays:
        """Return the outputs of two calls, the first looked at after the second.

        The heap is full of NaN before each, so that memory taken for zeros shows, and so
        does a buffer that is used again while its result is still in use.
        """
        sets = list(itertools.islice(self.kernel.ring(self.layout, dtype), 2))
        calls = [self.make(arrays) for arrays in sets]
        outputs = []
        for call in calls:
            self._poison(dtype)
            outputs.append(call())
        return {
            f"{name} {i}": value
            for i, (arrays, output) in enumerate(zip(sets, outputs, strict=True))
            for name, value in self._results(arrays, output).items()
        }

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

    def _results(self, arrays: Arrays, output: Any) -> Arrays:
        if output is None:
            return {name: arrays[name] for name in self.kernel.writes}
        return self.named(output)

    def _poison(self, dtype: str) -> None:
        for name in (*self.kernel.reads, *self.kernel.writes):
            shape = self.kernel.shape_of(name)
            blocks = [np.full(shape, np.nan, dtype) for _ in range(_POISONED_BLOCKS)]
            del blocks
