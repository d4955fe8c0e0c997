"""What the taps of a pooling kernel read, along one axis at a time. No kernel is defined here.

Pooling over kH x kW windows is pooling over rows and over columns, one after the other, so
that one axis is all a loop needs to know. There is no padded copy: a tap is left out of
the windows where it falls into the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from refkd.dispatch import Array
from refkd.errors import ConfigError, ShapeError, check_float_dtypes
from refkd.ops.window import Pair, Size, as_image_shape, as_pair, check_images, output_size

__all__ = [
    "Tap",
    "Windows",
    "check_padding",
    "image_plane",
    "input_plane",
    "part",
    "pooling_windows",
    "window_sizes",
]

_ROWS, _COLUMNS = 2, 3


class Tap(NamedTuple):
    """One entry of the kernel: the windows it serves, and what each of them reads."""

    number: int
    windows: slice
    entries: slice


@dataclass(frozen=True)
class Windows:
    """The windows along one axis; window o begins at entry o · stride − padding."""

    axis: int
    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    count: int

    def taps(self) -> list[Tap]:
        """Return the taps in order; those that read nothing but padding are left out.

        Tap i of window o reads entry o · stride + i · dilation − padding. It exists for a
        range of windows, whose ends both move to the left, or stay, from tap to tap.
        """
        taps = []
        for i in range(self.kernel):
            shift = i * self.dilation - self.padding
            first = max(0, -(shift // self.stride))
            last = min(self.count - 1, (self.size - 1 - shift) // self.stride)
            if first <= last:
                begin, end = first * self.stride + shift, last * self.stride + shift
                taps.append(Tap(i, slice(first, last + 1), slice(begin, end + 1, self.stride)))
        return taps

    def lengths(self, *, padded: bool) -> list[int]:
        """Return the entries of each window of dilation 1, with or without those in padding."""
        beyond = self.padding if padded else 0
        starts = [o * self.stride - self.padding for o in range(self.count)]
        return [
            min(start + self.kernel, self.size + beyond) - max(start, -beyond) for start in starts
        ]


def part(axis: int, entries: slice) -> tuple[slice, ...]:
    """Return the index that takes ``entries`` of ``axis`` and everything of the others."""
    return (*axis * (slice(None),), entries)


def pooling_windows(
    where: str,
    plane: Pair,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size = 1,
    *,
    ceil_mode: bool,
) -> tuple[Windows, Windows]:
    """Return the windows along the rows and along the columns of images of ``plane`` (H, W).

    Raises
    ------
    ConfigError
        If a size is no integer or pair within its range, or padding exceeds half the kernel.
    ShapeError
        If the kernel does not fit, or a window would read nothing but padding.
    """
    check_padding(where, kernel_size, padding)
    kernel = as_pair(where, "kernel_size", kernel_size, 1)
    step = kernel if stride is None else as_pair(where, "stride", stride, 1)
    pad = as_pair(where, "padding", padding, 0)
    spread = as_pair(where, "dilation", dilation, 1)
    count = output_size(where, plane, kernel, step, pad, spread, ceil_mode=ceil_mode)
    rows, columns = (
        Windows(*of_axis)
        for of_axis in zip((_ROWS, _COLUMNS), plane, kernel, step, pad, spread, count, strict=True)
    )
    for windows in (rows, columns):
        served = {o for t in windows.taps() for o in range(t.windows.start, t.windows.stop)}
        if len(served) < windows.count:
            raise ShapeError(
                f"{where}: a window of kernel_size={kernel_size!r} with dilation={dilation!r} "
                f"and padding={padding!r} on images of {plane} reads nothing but padding"
            )
    return rows, columns


def check_padding(where: str, kernel_size: Size, padding: Size) -> None:
    """Raise ConfigError unless both are such sizes, and padding is at most half the kernel."""
    kernel = as_pair(where, "kernel_size", kernel_size, 1)
    pad = as_pair(where, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
        raise ConfigError(
            f"{where}: padding must be at most half the kernel, got padding={padding!r} with "
            f"kernel_size={kernel_size!r}"
        )


def window_sizes(xp: Any, like: Array, heights: list[int], widths: list[int]) -> Any:
    """Return the number of entries in each window, one number where all have the same."""
    if len({*heights}) == len({*widths}) == 1:
        return heights[0] * widths[0]
    sizes = [[height * width for width in widths] for height in heights]
    return xp.asarray(sizes, dtype=like.real.dtype)


def image_plane(where: str, name: str, x: Array) -> Pair:
    """Return (H, W) of ``x``, a floating batch of images that are not empty.

    Raises
    ------
    ShapeError, DtypeError
        If it is not.
    """
    check_float_dtypes(where, **{name: x})
    check_images(where, name, x)
    return _plane(where, name, x.shape)


def input_plane(where: str, dy: Array, input_shape: Any) -> Pair:
    """Return (H, W) of ``input_shape``, which must be one of the images that dy belongs to.

    Raises
    ------
    ShapeError, DtypeError
        If dy is no floating batch of images, or ``input_shape`` no (N, C, H, W) or one with
        another N or C.
    """
    check_float_dtypes(where, dy=dy)
    check_images(where, "dy", dy)
    shape = as_image_shape(where, "input_shape", input_shape)
    if shape[:2] != tuple(dy.shape[:2]):
        raise ShapeError(
            f"{where}: input_shape must be (N, C, H, W) with N and C of dy {tuple(dy.shape)}, "
            f"got {shape}"
        )
    return _plane(where, "input_shape", shape)


def _plane(where: str, name: str, shape: tuple[int, ...]) -> Pair:
    """Return (H, W) of a shape (N, C, H, W).

    Raises
    ------
    ShapeError
        If images of that shape hold no pixel.
    """
    height, width = int(shape[2]), int(shape[3])
    if not height or not width:
        raise ShapeError(f"{where}: {name} must hold images with pixels, got {tuple(shape)}")
    return height, width
