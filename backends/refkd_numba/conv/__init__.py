"""Convolution: which algorithm takes which shape, and the scratch memory they need.

Images are channels-last inside: an input that is not is copied, results are views of
channels-last memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.errors import RefkdError
from refkd.ops.im2col import ConvSizes, conv_sizes
from refkd.ops.window import Pair, Size, as_pair
from refkd.threads import worker_threads
from refkd_numba import settings
from refkd_numba.buffers import empty
from refkd_numba.compile import compiled
from refkd_numba.conv import depthwise, direct, strided, winograd
from refkd_numba.layout import as_images, channels_last
from refkd_numba.microkernel import COLUMNS
from refkd_numba.team import share, span

__all__ = [
    "ERROR_FACTORS",
    "KERNELS",
    "algorithm",
    "backward_input",
    "backward_sizes",
    "backward_weight",
    "bias_gradient",
    "forward",
    "forward_sizes",
    "prepare",
    "sizes",
]

# Multiples of the reference's float32 error that Winograd's algorithm may be off by.
ERROR_FACTORS = {
    "conv2d_forward": 40.0,
    "conv2d_backward": 40.0,
    "conv2d_backward_input": 40.0,
    "conv2d_backward_weight": 40.0,
}

# Below these the work is not worth a second thread: products, values to add, and values of a
# weight to transform.
_WORTH, _WORTH_OF_SUMS, _WORTH_OF_WEIGHT = 1 << 20, 1 << 16, 1 << 14
_WINOGRAD_TILES = 32
_WINOGRAD_CHANNELS = 16  # at least a vector
_WINOGRAD_SUMS = 1 << 22  # values of the sums for a weight's gradient, in each thread
_LARGEST = 2**31 - 1  # number by which a window moves: sums of them have 64 bits
_NO_BIAS = np.empty(0, np.float32)


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    g = forward_sizes(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return NotImplemented if g is None else forward(x, weight, bias, g)


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    need_dx: bool = True,
) -> Any:
    g = backward_sizes(
        dy, x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    if g is None:
        return NotImplemented
    gradient = channels_last(dy)
    dweight = backward_weight(gradient, x, g)
    dx = backward_input(gradient, weight, g) if need_dx else None
    return dx, dweight, bias_gradient(gradient)


def conv2d_backward_input(
    dy: Array,
    weight: Array,
    *,
    input_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    size = _as_pair(input_size)
    if size is None or not _are_images(dy, weight) or not isinstance(groups, int):
        return NotImplemented
    x_shape = (dy.shape[0], weight.shape[1] * groups, *size)
    g = sizes((dy, weight), x_shape, weight.shape, stride, padding, dilation, groups)
    if g is None or dy.shape != (g.batch, g.outputs, *g.output_size):
        return NotImplemented
    return backward_input(channels_last(dy), weight, g)


def conv2d_backward_weight(
    dy: Array,
    x: Array,
    *,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    taps = _as_pair(kernel_size)
    if taps is None or not _are_images(dy, x) or not isinstance(groups, int) or groups < 1:
        return NotImplemented
    weight_shape = (dy.shape[1], x.shape[1] // groups, *taps)
    g = sizes((dy, x), x.shape, weight_shape, stride, padding, dilation, groups)
    if g is None or dy.shape != (g.batch, g.outputs, *g.output_size):
        return NotImplemented
    return backward_weight(channels_last(dy), x, g)


def forward_sizes(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> ConvSizes | None:
    """Return the sizes that :func:`forward` takes, or None as :func:`sizes` does."""
    if not _are_images(x, weight):
        return None
    arrays = (x, weight) if bias is None else (x, weight, bias)
    g = sizes(arrays, x.shape, weight.shape, stride, padding, dilation, groups)
    return None if g is None or (bias is not None and bias.shape != (g.outputs,)) else g


def backward_sizes(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> ConvSizes | None:
    """Return the sizes that the backward functions take, or None as :func:`sizes` does."""
    if not _are_images(dy, x, weight):
        return None
    g = sizes((dy, x, weight), x.shape, weight.shape, stride, padding, dilation, groups)
    return None if g is None or dy.shape != (g.batch, g.outputs, *g.output_size) else g


def sizes(
    arrays: tuple[Array, ...],
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> ConvSizes | None:
    """Return the sizes, or None for what the reference serves, or refuses."""
    if any(type(a) is not np.ndarray or a.dtype != np.float32 or a.size == 0 for a in arrays):
        return None
    try:
        g = conv_sizes("", x_shape, weight_shape, stride, padding, dilation, groups)
    except RefkdError:
        return None
    return g if max(*g.stride, *g.padding, *g.dilation) <= _LARGEST else None


def _as_pair(size: Size) -> Pair | None:
    try:
        return as_pair("", "", size, 0)
    except RefkdError:
        return None


def _are_images(*arrays: Array) -> bool:
    return all(getattr(array, "ndim", 0) == 4 for array in arrays)


class _Steps(NamedTuple):
    """The numbers by which a window moves, as the compiled functions take them."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int


class Packed(NamedTuple):
    """A weight as an algorithm reads it, and whether all of it is known to be finite."""

    algorithm: str
    panels: NDArray[Any]
    finite: bool = False


def algorithm(g: ConvSizes) -> str:
    """Return which algorithm serves ``g``; a packed weight depends on nothing else of it."""
    if _is_depthwise(g):
        return "depthwise"
    return "winograd" if _is_winograd(g) else "direct"


def prepare(weight: Array, g: ConvSizes, allocate: Callable[..., Any] = empty) -> Packed:
    """Return ``weight`` packed for the algorithm that serves ``g``.

    What is kept for long should lie in memory of its own, not in a larger block that was
    free just then: ``allocate`` makes an array of a shape in float32.
    """
    served_by = algorithm(g)
    # Depthwise leaves out taps in the padding, where infinity times 0 is NaN.
    if served_by == "depthwise" and np.isfinite(weight).all():
        return Packed(served_by, np.ascontiguousarray(np.moveaxis(weight[:, 0], 0, -1)))
    if served_by == "winograd":
        return _winograd_panels(weight, flipped=False, allocate=allocate)
    return _panels(weight, g.groups, flipped=False, allocate=allocate)


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    g: ConvSizes,
    *,
    relu: bool = False,
    prepared: Packed | None = None,
) -> NDArray[Any]:
    """Return y (N, K, P, Q), or max(y, 0).

    ``prepared`` is what :func:`prepare` made of the weight, which then is not looked at.
    """
    source = channels_last(x)
    y = empty((g.batch, *g.output_size, g.outputs))
    vector = _NO_BIAS if bias is None else np.ascontiguousarray(bias)
    packed = prepare(weight, g) if prepared is None else prepared
    if packed.algorithm == "depthwise":
        of_channel = np.zeros(g.outputs, np.float32) if bias is None else vector
        share(
            depthwise.forward, source, packed.panels, of_channel, y, *_steps(g), relu,
            worth=_is_worth(g),
        )  # fmt: skip
    elif packed.algorithm == "winograd":
        _winograd(source, packed, vector, y, g.padding, relu)
    else:
        _direct(source, packed, vector, y, _steps(g), relu, worth=_is_worth(g))
    return as_images(y)


def backward_input(dy: NDArray[Any], weight: Array, g: ConvSizes) -> NDArray[Any]:
    """Return dx (N, C, H, W) of channels-last dy."""
    dx = empty((g.batch, *g.input_size, g.inputs))
    steps = _steps(g)
    if _is_depthwise(g):
        by_channel = np.ascontiguousarray(np.moveaxis(weight[:, 0], 0, -1))
        share(depthwise.backward_input, dy, by_channel, dx, *steps, worth=_is_worth(g))
        return as_images(dx)
    # The adjoint of a convolution of step 1 is one, with the flipped weight. It pads dy, where
    # infinity times 0 is NaN.
    padding = tuple(
        d * (k - 1) - z for d, k, z in zip(g.dilation, g.kernel_size, g.padding, strict=True)
    )
    if _is_winograd(g):
        _winograd(dy, _winograd_panels(weight, flipped=True), _NO_BIAS, dx, padding, False)
        return as_images(dx)
    packed = _panels(weight, g.groups, flipped=True) if g.stride == (1, 1) else None
    if packed is not None and packed.finite:
        adjoint = steps._replace(pad_h=padding[0], pad_w=padding[1])
        _direct(dy, packed, _NO_BIAS, dx, adjoint, False, worth=_is_worth(g))
    else:
        _scattered(dy, weight, dx, g)
    return as_images(dx)


def backward_weight(dy: NDArray[Any], x: Array, g: ConvSizes) -> NDArray[Any]:
    """Return dW (K, C / groups, kH, kW) of channels-last dy."""
    source = channels_last(x)
    shape = (g.outputs, g.inputs // g.groups, *g.kernel_size)
    threads = _threads(g)
    # As in the forward: what is not finite in dy meets the zeros of the padding elsewhere.
    if _is_depthwise(g) and np.isfinite(dy.sum()):
        sums = empty((threads, *g.kernel_size, g.inputs))
        share(depthwise.backward_weight, source, dy, sums, *_steps(g), threads=threads)
        return np.ascontiguousarray(np.moveaxis(sums.sum(axis=0), -1, 0)).reshape(shape)
    dweight = empty(shape)
    if _is_winograd(g) and winograd.POINTS * g.inputs * g.outputs <= _WINOGRAD_SUMS:
        _winograd_weight(source, dy, dweight, g)
        return dweight
    if g.kernel_size == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0):
        source, dy = (_as_rows(a, source.shape[3]) for a in (source, dy))
    block = direct.block_of_gradient(*dy.shape[1:3])
    padded = -(-(g.outputs // g.groups) // COLUMNS) * COLUMNS
    sums = empty((threads, g.groups, *g.kernel_size, shape[1], padded))
    scratch = _input_rows(threads, block, source.shape[2], shape[1], g.kernel_size, _steps(g))
    columns = empty((threads, block * dy.shape[2], COLUMNS))
    share(
        direct.backward_weight, source, dy, sums, g.groups, *_steps(g), block, scratch, columns,
        threads=threads,
    )  # fmt: skip
    parts = dweight.reshape(g.groups, -1, *shape[1:])
    share(_add_parts, sums, parts, worth=sums.size > _WORTH_OF_SUMS)
    return dweight


def bias_gradient(dy: NDArray[Any]) -> NDArray[Any]:
    """Return Σ dy over all pixels of channels-last dy, (K,)."""
    pixels = dy.reshape(-1, dy.shape[-1])
    threads = worker_threads() if pixels.size > _WORTH_OF_SUMS else 1
    sums = np.zeros((threads, pixels.shape[1]))
    share(_column_sums, pixels, sums, threads=threads)
    return sums.sum(axis=0).astype(np.float32)


def _direct(
    x: NDArray[Any], packed: Packed, bias: NDArray[Any], y: NDArray[Any], steps: _Steps,
    relu: bool, *, worth: bool,
) -> None:  # fmt: skip
    panels = packed.panels
    kernel = panels.shape[2:4]
    if kernel == (1, 1) and steps[:4] == (1, 1, 0, 0):
        x, y = (_as_rows(a, x.shape[3]) for a in (x, y))
    groups, inputs = panels.shape[0], panels.shape[4]
    block = direct.rows_at_a_time(y.shape[1], x.shape[2] * inputs, steps.stride_h)
    threads = worker_threads() if worth else 1
    scratch = _input_rows(threads, block, x.shape[2], inputs, kernel, steps)
    tails = empty((threads, block * y.shape[2], COLUMNS))
    share(
        direct.forward, x, panels, bias, y, groups, *steps, block, relu, packed.finite,
        scratch, tails, threads=threads,
    )  # fmt: skip


def _scattered(dy: NDArray[Any], weight: Array, dx: NDArray[Any], g: ConvSizes) -> None:
    """Write dx by products with dy that are scattered over the pixels they come from."""
    grouped = np.moveaxis(weight, 1, -1).reshape(g.groups, -1, *g.kernel_size, weight.shape[1])
    block = strided.block_rows(*g.output_size, g.taps)
    threads = _threads(g)
    columns = empty((threads, block * g.output_size[1], *grouped.shape[2:]))
    share(
        strided.backward_input, dy, np.ascontiguousarray(grouped), dx, *_steps(g), block, columns,
        threads=threads,
    )  # fmt: skip


def _winograd(
    x: NDArray[Any], packed: Packed, bias: NDArray[Any], y: NDArray[Any],
    padding: tuple[int, ...], relu: bool,
) -> None:  # fmt: skip
    panels = packed.panels
    padded = panels.shape[1] * COLUMNS
    block = winograd.tiles_at_a_time(max(x.shape[3], padded))
    threads = worker_threads()
    inputs, products = (_points(threads, block, channels) for channels in (x.shape[3], padded))
    share(
        winograd.forward, x, panels, bias, y, *padding, relu, inputs, products, threads=threads
    )  # fmt: skip


def _winograd_weight(
    x: NDArray[Any], dy: NDArray[Any], dweight: NDArray[Any], g: ConvSizes
) -> None:
    padded = -(-g.outputs // COLUMNS) * COLUMNS
    block = winograd.tiles_at_a_time(max(g.inputs, padded))
    threads = worker_threads()
    inputs, gradients = (_points(threads, block, channels) for channels in (g.inputs, padded))
    sums = empty((threads, winograd.POINTS, g.inputs, padded))
    share(winograd.weight_sums, x, dy, *g.padding, inputs, gradients, sums, threads=threads)
    share(winograd.weight_gradient, sums, dweight)


def _points(threads: int, block: int, channels: int) -> NDArray[Any]:
    """Return scratch for transformed tiles."""
    return empty((threads, winograd.POINTS, block * channels + winograd.SPARE))


def _panels(
    weight: Array, groups: int, *, flipped: bool, allocate: Callable[..., Any] = empty
) -> Packed:
    outputs, inputs, *taps = weight.shape
    inputs, outputs = (outputs // groups, inputs) if flipped else (inputs, outputs // groups)
    panels = allocate((groups, -(-outputs // COLUMNS), *taps, inputs, COLUMNS))
    finite = direct.pack(np.ascontiguousarray(weight), panels, groups, flipped)
    return Packed("direct", panels, finite)


def _winograd_panels(
    weight: Array, *, flipped: bool, allocate: Callable[..., Any] = empty
) -> Packed:
    outputs, inputs = weight.shape[:2]
    inputs, outputs = (outputs, inputs) if flipped else (inputs, outputs)
    panels = allocate((winograd.POINTS, -(-outputs // COLUMNS), inputs, COLUMNS))
    share(
        winograd.transform_weight, np.ascontiguousarray(weight), panels, flipped,
        worth=weight.size > _WORTH_OF_WEIGHT,
    )  # fmt: skip
    return Packed("winograd", panels)


def _input_rows(
    threads: int, block: int, width: int, inputs: int, kernel: tuple[int, ...], steps: _Steps
) -> NDArray[Any]:
    """Return scratch for the padded input rows that ``block`` output rows see."""
    seen = (block - 1) * steps.stride_h + (kernel[0] - 1) * steps.dilation_h + 1
    return empty((threads, seen, max(1, width + 2 * steps.pad_w), inputs))


def _as_rows(x: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return images (N, H, W, C) with some rows in one: to a 1 × 1 kernel all pixels are alike.

    As many as leave a row of ``channels`` in the level-2 cache, and its panel in level 1.
    """
    batch, height, width, _ = x.shape
    pixels = min(_ROW_PIXELS, _ROW_VALUES // channels)
    together = max(
        h for h in range(1, height + 1) if height % h == 0 and h * width <= max(width, pixels)
    )
    return x.reshape(batch, height // together, together * width, -1)


_ROW_PIXELS, _ROW_VALUES = 256, 1 << 16


def _steps(g: ConvSizes) -> _Steps:
    return _Steps(*g.stride, *g.padding, *g.dilation)


def _threads(g: ConvSizes) -> int:
    return worker_threads() if _is_worth(g) else 1


def _is_worth(g: ConvSizes) -> bool:
    return g.batch * g.positions * g.outputs * g.taps > _WORTH


def _is_depthwise(g: ConvSizes) -> bool:
    return g.groups > 1 and g.groups == g.inputs == g.outputs


def _is_winograd(g: ConvSizes) -> bool:
    return (
        settings.winograd
        and g.kernel_size == (3, 3)
        and g.stride == g.dilation == (1, 1)
        and g.groups == 1
        and max(g.padding) <= 2
        and min(g.inputs, g.outputs) >= _WINOGRAD_CHANNELS
        and min(g.output_size) > 2
        and _tiles(g.batch, g.output_size) >= _WINOGRAD_TILES
    )


def _tiles(batch: int, size: tuple[int, int]) -> int:
    return batch * -(-size[0] // winograd.TILE) * -(-size[1] // winograd.TILE)


@compiled
def _add_parts(sums, dweight, thread, threads):
    """Write Σ_threads sums (threads, g, kH, kW, C, padded K) into dweight (g, K, C, kH, kW)."""
    groups, outputs, inputs, height, width = dweight.shape
    total = np.empty(outputs, np.float32)
    for row in range(
        groups * inputs * thread // threads, groups * inputs * (thread + 1) // threads
    ):
        g = row // inputs
        c = row - g * inputs
        for i in range(height):
            for j in range(width):
                for k in range(outputs):
                    total[k] = sums[0, g, i, j, c, k]
                for part in range(1, sums.shape[0]):
                    for k in range(outputs):
                        total[k] += sums[part, g, i, j, c, k]
                for k in range(outputs):
                    dweight[g, k, c, i, j] = total[k]


@compiled
def _column_sums(pixels, sums, thread, threads):
    """Add the rows of pixels (M, K) into float64 sums (threads, K)."""
    mine = pixels[span(pixels.shape[0], thread, threads)]
    block = np.empty(pixels.shape[1], np.float32)
    total = sums[thread]
    for first in range(0, mine.shape[0], 64):
        block[:] = np.float32(0)
        for row in range(first, min(first + 64, mine.shape[0])):
            source = mine[row]
            for k in range(block.size):
                block[k] += source[k]
        for k in range(block.size):
            total[k] += block[k]


KERNELS = {
    "conv2d_forward": conv2d_forward,
    "conv2d_backward": conv2d_backward,
    "conv2d_backward_input": conv2d_backward_input,
    "conv2d_backward_weight": conv2d_backward_weight,
}
