"""VGG networks with batch normalisation for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refkd.errors import ConfigError, check_unit_interval
from refkd.models._sizes import side_after
from refkd.nn.activation import Flatten, ReLU
from refkd.nn.checks import check_counts, check_switch
from refkd.nn.conv import Conv2d
from refkd.nn.dropout import Dropout
from refkd.nn.layer import Layer
from refkd.nn.linear import Linear
from refkd.nn.norm import BatchNorm2d
from refkd.nn.pool import MaxPool2d
from refkd.nn.sequential import Sequential

__all__ = ["vgg"]


def vgg(
    *,
    num_classes: int,
    blocks: Sequence[Sequence[int]],
    dropout: float = 0.0,
    track_running_stats: bool = True,
    in_channels: int = 3,
    image_size: int = 32,
) -> Sequential:
    """Return blocks of (dropout → conv 3×3 → batch norm → relu) and a 2×2 max-pool, then linear.

    Parameters
    ----------
    num_classes : int
    blocks : sequence of sequences of int
        The widths of the convolutions of each block.
    dropout : float, in [0, 1]
        Drop probability before every convolution.
    track_running_stats : bool
        False keeps no running statistics: batch normalisation then uses those of the batch
        in evaluation too, and a prediction depends on the other images of its batch.
    in_channels : int
        Channels of the images.
    image_size : int
        Side of the square images in pixels. Each block halves it; what is left is
        flattened, one pixel for five blocks and 32.

    Returns
    -------
    Sequential
        From (N, in_channels, image_size, image_size) to logits (N, num_classes), initialised
        as PyTorch does by default.

    Raises
    ------
    ConfigError
        If a number is not a positive integer, a block or the sequence of blocks is empty,
        dropout is outside [0, 1], or nothing is left of images that small.

    Notes
    -----
    The parameters are ``layers.N.weight`` and so on, N counting all the modules of all
    blocks in a row, and ``fc.*``: the names of the reference implementation [1]_, where
    there is a dropout module to count only where something is dropped. Its own batch
    normalisation calls ``scale`` and ``shift`` what is ``weight`` and ``bias`` here and in
    ``torch.nn.BatchNorm2d``.

    The teacher there has blocks ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    and dropout .1: VGG-16 with one linear layer, 14,728,266 parameters for 10 classes. The
    student ((32, 32), (64, 64), (128,), (128,), (128,)) has 437,034.

    References
    ----------
    .. [1] labml.ai: annotated deep learning paper implementations, ``distillation/large.py``,
       ``distillation/small.py`` and ``experiments/cifar10.py``.

    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
    arXiv:1409.1556.
    """
    where = "vgg"
    check_counts(where, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    _check_blocks(blocks)
    check_unit_interval(where, "dropout", dropout)
    check_switch(where, "track_running_stats", track_running_stats)
    modules: list[Layer] = []
    width = in_channels
    for block in blocks:
        for out_channels in block:
            if dropout:
                modules.append(Dropout(dropout))
            modules += [
                Conv2d(width, out_channels, 3, padding=1),
                BatchNorm2d(out_channels, track_running_stats=track_running_stats),
                ReLU(),
            ]
            width = out_channels
        modules.append(MaxPool2d(2, stride=2))
    layers = Sequential.numbered(*modules)
    side = side_after(where, image_size, [(f"layers.{name}", m) for name, m in layers.layers])
    return Sequential(
        (
            ("layers", layers),
            ("flatten", Flatten()),
            ("fc", Linear(width * side * side, num_classes)),
        )
    )


def _check_blocks(blocks: Any) -> None:
    filled = _is_filled_sequence(blocks) and all(map(_is_filled_sequence, blocks))
    if not filled:
        raise ConfigError(
            f"vgg: blocks must be a sequence of blocks, each a sequence of widths, and none "
            f"of them empty, such as ((32, 32), (64, 64)); got {blocks!r}"
        )
    for i, block in enumerate(blocks):
        check_counts("vgg", **{f"blocks[{i}][{j}]": width for j, width in enumerate(block)})


def _is_filled_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0
