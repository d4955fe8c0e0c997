"""A picture of the filters that look at the image first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.report.attachments import Filters
from refkd.report.palette import LIGHT
from refkd.report.svg import WIDTH, Picture, add_axes, inline_svg, new_figure
from refkd.report.words import clipped, networks

__all__ = ["first_filters", "mosaic"]

_ACROSS = 16
_MOST_SHOWN = 8 * _ACROSS
_TITLE = 20.0  # points


def first_filters(result: Mapping[str, Any], filters: Sequence[Filters]) -> Picture | None:
    """Draw the first filters of every network that has some, each one a little picture."""
    if not filters:
        return None
    roles = {n.key: (n.name, n.role) for n in networks(result)}
    blocks = [_block(f.weight) for f in filters]
    figure = new_figure(sum(b.height + _TITLE for b in blocks) + 10 * (len(blocks) - 1))
    top, words = 0.0, []
    for block, (network, parameter, weight) in zip(blocks, filters, strict=True):
        name, role = roles[network]
        top += _TITLE
        below = 72 * figure.get_figheight() - top - block.height
        axes = add_axes(figure, left=0, right=WIDTH - block.width, top=top, bottom=below)
        axes.imshow(block.pixels, interpolation="none", aspect="auto")
        axes.set_axis_off()
        count, _, height, width = weight.shape
        words.append(f"{name}: {_shown(count)} of {height}×{width}")
        axes.set_title(f"{words[-1]}, {clipped(parameter, 32)}", color=LIGHT[role], pad=5)
        top += block.height + 10
    colours = (
        "A filter on colour images is drawn in their colours, grey being zero."
        if any(f.weight.shape[1] == 3 for f in filters)
        else "Grey is zero, bright positive, dark negative."
    )
    return Picture(
        name="filters",
        title="First-layer filters",
        caption="What the first convolution looks for, in the order the network keeps it. Each "
        f"filter is scaled by its own largest magnitude. {colours}",
        svg=inline_svg(figure, "filters", "First-layer filters. " + "; ".join(words)),
    )


def _shown(count: int) -> str:
    if count > _MOST_SHOWN:
        return f"the first {_MOST_SHOWN} of {count:,} filters"
    return f"{count} filters" if count != 1 else "1 filter"


class _Block(NamedTuple):
    """The mosaic of one network's filters and its size in points."""

    pixels: NDArray[np.uint8]
    width: float
    height: float


def _block(weight: NDArray[Any]) -> _Block:
    across = min(_ACROSS, len(weight))
    pixels = mosaic(weight[:_MOST_SHOWN], across)
    rows, columns = pixels.shape[:2]
    width = WIDTH * across / _ACROSS
    return _Block(pixels, width, width * rows / columns)


def mosaic(weight: NDArray[Any], across: int) -> NDArray[np.uint8]:
    """Lay filters out in rows, with transparent joints.

    Parameters
    ----------
    weight : array, shape (N, C, h, w), C of 1 or 3
    across : int
        Filters in a row.

    Returns
    -------
    array of uint8, shape (H, W, 4)
        Red, green, blue and opacity. Of a filter that is scaled by its largest magnitude,
        zero is 128, and 1 and 255 are the largest and its negative.
    """
    count, channels, height, width = weight.shape
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.divide(weight, largest, out=np.zeros_like(weight), where=largest > 0)
    colours = np.rint(128 + 127 * scaled).astype(np.uint8)
    zoom = max(1, 24 // max(height, width))
    joint = 3
    tall, wide = zoom * height + joint, zoom * width + joint
    rows = math.ceil(count / across)
    picture = np.zeros((rows * tall - joint, across * wide - joint, 4), np.uint8)
    for i, colour in enumerate(colours):
        y, x = i // across * tall, i % across * wide
        tile = picture[y : y + tall - joint, x : x + wide - joint]
        shown = np.repeat(colour, 3, axis=0) if channels == 1 else colour
        tile[..., :3] = np.moveaxis(shown, 0, -1).repeat(zoom, axis=0).repeat(zoom, axis=1)
        tile[..., 3] = 255
    return picture
