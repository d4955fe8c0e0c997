"""The small student of the GoogLeNet distillation experiments: two convolutions, one linear."""

from __future__ import annotations

from refkd.errors import check_unit_interval
from refkd.models._sizes import side_after
from refkd.nn.activation import Flatten, ReLU
from refkd.nn.checks import check_counts
from refkd.nn.conv import Conv2d
from refkd.nn.dropout import Dropout
from refkd.nn.layer import Layer
from refkd.nn.linear import Linear
from refkd.nn.pool import MaxPool2d
from refkd.nn.sequential import Sequential

__all__ = ["small_cnn"]

_WIDTH = 32


def small_cnn(
    *, num_classes: int, image_size: int = 224, in_channels: int = 3, dropout: float = 0.4
) -> Sequential:
    """Return conv 7×7/2 → relu → pool → conv 3×3/2 → relu → pool → dropout → linear.

    Parameters
    ----------
    num_classes : int
    image_size : int
        Side of the square images in pixels; 224 leave 32 maps of 13 × 13, 5408 features.
    in_channels : int
        Channels of the images.
    dropout : float, in [0, 1]
        Drop probability before the linear layer.

    Returns
    -------
    Sequential
        From (N, in_channels, image_size, image_size) to logits (N, num_classes), with the
        parameters ``conv1.weight``, ``conv1.bias``, ``conv2.*`` and ``fc.*``, initialised as
        PyTorch does by default. 41,029 of them at 224 pixels and 5 classes: 160 KiB in float32.

    Raises
    ------
    ConfigError
        If a number is not a positive integer, dropout is outside [0, 1], or nothing is left
        of images that small.
    """
    where = "small_cnn"
    check_counts(where, num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    check_unit_interval(where, "dropout", dropout)
    convolutions: list[tuple[str, Layer]] = [
        ("conv1", Conv2d(in_channels, _WIDTH, 7, stride=2, padding=3)),
        ("relu1", ReLU()),
        ("maxpool1", MaxPool2d(3, stride=2)),
        ("conv2", Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1)),
        ("relu2", ReLU()),
        ("maxpool2", MaxPool2d(3, stride=2)),
    ]
    side = side_after(where, image_size, convolutions)
    return Sequential(
        (
            *convolutions,
            ("flatten", Flatten()),
            ("dropout", Dropout(dropout)),
            ("fc", Linear(_WIDTH * side * side, num_classes)),
        )
    )
