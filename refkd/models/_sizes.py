"""What the convolutional networks ask of the image size."""

from __future__ import annotations

from collections.abc import Sequence

from refkd.errors import ConfigError, ShapeError
from refkd.nn.conv import Conv2d
from refkd.nn.layer import Layer
from refkd.nn.parallel import Parallel
from refkd.nn.pool import AvgPool2d, MaxPool2d
from refkd.nn.sequential import Sequential
from refkd.ops.window import as_pair, output_size

__all__ = ["side_after"]


def side_after(where: str, image_size: int, layers: Sequence[tuple[str, Layer]]) -> int:
    """Return the side of the square feature map that ``layers`` make of a square image.

    Parameters
    ----------
    where : str
        The network, for the message.
    image_size : int
        Side of the image in pixels.
    layers : sequence of (str, Layer)
        Convolutions, pools and what keeps the size, nested or not.

    Raises
    ------
    ConfigError
        If nothing is left of the image on the way; the message names the layer.
    """
    side = image_size
    for name, layer in layers:
        try:
            side = _side(side, layer)
        except ShapeError as error:
            raise ConfigError(
                f"{where}: image_size must be larger, got {image_size}: only {side} x {side} "
                f"pixels are left of it where {name} needs more"
            ) from error
    return side


def _side(side: int, layer: Layer) -> int:
    match layer:
        case Sequential():
            for _, inner in layer.layers:
                side = _side(side, inner)
            return side
        case Parallel():  # its branches are joined, so they agree
            return _side(side, layer.branches[0][1])
        case Conv2d():
            dilation, ceil_mode = layer.dilation, False
        case MaxPool2d():
            dilation, ceil_mode = layer.dilation, layer.ceil_mode
        case AvgPool2d():
            dilation, ceil_mode = 1, layer.ceil_mode
        case _:
            return side
    stride = layer.kernel_size if layer.stride is None else layer.stride
    window = (layer.kernel_size, stride, layer.padding, dilation)
    kernel, steps, padding, spread = (as_pair("side_after", "window", w, 0) for w in window)
    sides = (side, side)
    return output_size("side_after", sides, kernel, steps, padding, spread, ceil_mode=ceil_mode)[0]
