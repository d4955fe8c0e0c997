"""Windows of pooling, drawn at random and listed one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

__all__ = ["Axis", "Geometry", "channels_last", "geometries"]


class Axis(NamedTuple):
    """Windows along one axis."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil_mode: bool

    def windows(self) -> list[list[int]]:
        """Return the positions each window reads, those in the padding or beyond included."""
        last = self.size - 1 + self.padding
        reach = self.dilation * (self.kernel - 1)
        starts = list(range(-self.padding, last - reach + 1, self.stride))
        following = starts[-1] + self.stride
        if self.ceil_mode and starts[-1] + reach < last and following < self.size:
            starts.append(following)
        return [[s + i * self.dilation for i in range(self.kernel)] for s in starts]

    def inside(self) -> list[list[int]]:
        """Return the positions each window reads in the image."""
        return [[i for i in window if 0 <= i < self.size] for window in self.windows()]


class Geometry(NamedTuple):
    """Windows of images (N, C, H, W)."""

    batch: int
    channels: int
    rows: Axis
    columns: Axis

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the images."""
        return (self.batch, self.channels, self.rows.size, self.columns.size)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """The shape of what pooling returns."""
        counts = len(self.rows.windows()), len(self.columns.windows())
        return (self.batch, self.channels, *counts)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of max-pooling."""
        pairs = {
            name: (getattr(self.rows, short), getattr(self.columns, short))
            for name, short in (
                *(("kernel_size", "kernel"), ("stride", "stride")),
                *(("padding", "padding"), ("dilation", "dilation")),
            )
        }
        return {**pairs, "ceil_mode": self.rows.ceil_mode}

    @property
    def options_without_dilation(self) -> dict[str, Any]:
        """The keyword arguments of average pooling."""
        return {name: value for name, value in self.options.items() if name != "dilation"}


@st.composite
def _axes(draw: st.DrawFn, max_dilation: int, ceil_mode: bool) -> Axis:
    kernel = draw(st.integers(1, 4))
    padding = draw(st.integers(0, kernel // 2))
    dilation = draw(st.integers(1, max_dilation))
    smallest = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    size = draw(st.integers(smallest, smallest + 5))
    return Axis(size, kernel, draw(st.integers(1, 4)), padding, dilation, ceil_mode)


@st.composite
def geometries(draw: st.DrawFn, *, max_dilation: int = 3) -> Geometry:
    """Return a strategy for windows each of which reads some entry of the image."""
    ceil_mode = draw(st.booleans())
    rows, columns = (
        draw(_axes(max_dilation, ceil_mode).filter(lambda axis: all(axis.inside())))
        for _ in range(2)
    )
    return Geometry(draw(st.integers(0, 2)), draw(st.integers(1, 2)), rows, columns)


def channels_last(x: np.ndarray) -> np.ndarray:
    """Return an equal array whose channels are neighbours in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
