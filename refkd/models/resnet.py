"""Residual networks: those for ImageNet, and the thin deep ones for CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from refkd.errors import ConfigError
from refkd.nn.activation import Flatten, ReLU
from refkd.nn.checks import check_counts
from refkd.nn.conv import Conv2d
from refkd.nn.init import KaimingNormal
from refkd.nn.layer import Layer
from refkd.nn.linear import Linear
from refkd.nn.norm import BatchNorm2d
from refkd.nn.pool import AdaptiveAvgPool2d, MaxPool2d
from refkd.nn.residual import Residual
from refkd.nn.sequential import Sequential
from refkd.nn.shortcut import PaddedShortcut

__all__ = ["cifar_resnet", "resnet"]

Block: TypeAlias = Callable[[int, int, int], Residual]  # of in_channels, width, stride


def resnet(*, num_classes: int, depth: int, in_channels: int = 3) -> Sequential:
    """Return ResNet-18, 34 or 50, in torchvision's form.

    Parameters
    ----------
    num_classes : int
    depth : {18, 34, 50}
    in_channels : int
        Channels of the images.

    Returns
    -------
    Sequential
        From (N, in_channels, H, W), of any size, to logits (N, num_classes), with
        torchvision's parameter names (``layer1.0.conv1.weight``, ``layer2.0.downsample.0.weight``).
        For 1000 classes 11,689,512, 21,797,672 and 25,557,032 parameters.

    Raises
    ------
    ConfigError
        If a number is not a positive integer, or there is no network of that depth.

    Notes
    -----
    The feature ``layer1.0`` is a block's sum, ``layer1.relu0`` what the next block reads. A
    bottleneck strides in its 3×3 convolution, as torchvision's does; in the paper it is the
    first 1×1. Convolutions are initialised by N(0, 2 / fan-out), the linear layer as PyTorch
    does by default.

    References
    ----------
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385,
    Table 1.
    """
    where = "resnet"
    check_counts(where, num_classes=num_classes, depth=depth, in_channels=in_channels)
    if depth not in _DEPTHS:
        raise ConfigError(
            f"{where}: depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth}"
        )
    block, expansion, blocks = _DEPTHS[depth]
    layers: list[tuple[str, Layer]] = [
        ("conv1", _conv(in_channels, 64, 7, stride=2)),
        ("bn1", BatchNorm2d(64)),
        ("relu", ReLU()),
        ("maxpool", MaxPool2d(3, stride=2, padding=1)),
    ]
    channels = 64
    for i, count in enumerate(blocks):
        width = 64 * 2**i
        stage = _stage(block, channels, width, expansion * width, count, stride=2 if i else 1)
        layers.append((f"layer{i + 1}", stage))
        channels = expansion * width
    return Sequential((*layers, *_classifier("fc", channels, num_classes)))


def cifar_resnet(*, num_classes: int, depth: int, in_channels: int = 3) -> Sequential:
    """Return the residual network of depth 6n + 2 that He et al. made for CIFAR-10.

    Parameters
    ----------
    num_classes : int
    depth : int
        6n + 2 for three stages of n blocks: 20, 32, 44, 56 and 110 in the paper.
    in_channels : int
        Channels of the images.

    Returns
    -------
    Sequential
        From (N, in_channels, H, W), of any size, to logits (N, num_classes). For 10 classes
        269,722, 464,154, 658,586, 853,018 and 1,727,962 parameters at those depths.

    Raises
    ------
    ConfigError
        If a number is not a positive integer, or depth is not 6n + 2.

    Notes
    -----
    Where the width doubles, the shortcut is option A: every second row and column, padded
    with channels of zeros, and no parameters. Half of the zeros come before, half after,
    as in the PyTorch implementation [1]_ whose parameter names these are
    (``layer1.0.conv1.weight``, ``linear.weight``); the paper leaves that open. Features and
    initialisation are as in :func:`resnet`.

    References
    ----------
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv:1512.03385, §4.2.

    .. [1] Idelbayev: Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch,
       github.com/akamaster/pytorch_resnet_cifar10.
    """
    where = "cifar_resnet"
    check_counts(where, num_classes=num_classes, depth=depth, in_channels=in_channels)
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise ConfigError(
            f"{where}: depth must be 6n + 2, such as 20, 32, 44, 56 or 110, got {depth}"
        )
    layers: list[tuple[str, Layer]] = [
        ("conv1", _conv(in_channels, 16, 3)),
        ("bn1", BatchNorm2d(16)),
        ("relu", ReLU()),
    ]
    channels = 16
    for i, width in enumerate((16, 32, 64)):
        stage = _stage(_cifar_block, channels, width, width, count, stride=2 if i else 1)
        layers.append((f"layer{i + 1}", stage))
        channels = width
    return Sequential((*layers, *_classifier("linear", channels, num_classes)))


def _stage(
    block: Block, in_channels: int, width: int, out_channels: int, count: int, *, stride: int
) -> Sequential:
    """Return ``count`` blocks, each with its ReLU; the first one strides and widens."""
    layers: list[tuple[str, Layer]] = []
    for i in range(count):
        layers.append((f"{i}", block(in_channels, width, stride)))
        layers.append((f"relu{i}", ReLU()))
        in_channels, stride = out_channels, 1
    return Sequential(tuple(layers))


def _basic_block(in_channels: int, width: int, stride: int) -> Residual:
    body = _basic_body(in_channels, width, stride)
    return Residual(body, _projection(in_channels, width, stride))


def _cifar_block(in_channels: int, width: int, stride: int) -> Residual:
    body = _basic_body(in_channels, width, stride)
    if in_channels == width:
        return Residual(body)
    missing = width - in_channels
    zeros = (missing // 2, missing - missing // 2)
    return Residual(body, PaddedShortcut(stride, zeros), shortcut_name="shortcut")


def _basic_body(in_channels: int, width: int, stride: int) -> Sequential:
    return Sequential(
        (
            ("conv1", _conv(in_channels, width, 3, stride=stride)),
            ("bn1", BatchNorm2d(width)),
            ("relu", ReLU()),
            ("conv2", _conv(width, width, 3)),
            ("bn2", BatchNorm2d(width)),
        )
    )


def _bottleneck(in_channels: int, width: int, stride: int) -> Residual:
    body = Sequential(
        (
            ("conv1", _conv(in_channels, width, 1)),
            ("bn1", BatchNorm2d(width)),
            ("relu1", ReLU()),
            ("conv2", _conv(width, width, 3, stride=stride)),
            ("bn2", BatchNorm2d(width)),
            ("relu2", ReLU()),
            ("conv3", _conv(width, 4 * width, 1)),
            ("bn3", BatchNorm2d(4 * width)),
        )
    )
    return Residual(body, _projection(in_channels, 4 * width, stride))


def _projection(in_channels: int, out_channels: int, stride: int) -> Sequential | None:
    """Return the shortcut of option B, None where the identity fits: no block only strides."""
    if in_channels == out_channels:
        return None
    return Sequential.numbered(
        _conv(in_channels, out_channels, 1, stride=stride), BatchNorm2d(out_channels)
    )


def _classifier(name: str, channels: int, num_classes: int) -> tuple[tuple[str, Layer], ...]:
    return (
        ("avgpool", AdaptiveAvgPool2d(1)),
        ("flatten", Flatten()),
        (name, Linear(channels, num_classes)),
    )


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> Conv2d:
    """Return a convolution that keeps the size but for its stride; batch norm brings the bias."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        initializer=KaimingNormal(),
    )


# The block, its output channels per width, and the blocks of each stage, by depth.
_DEPTHS: dict[int, tuple[Block, int, tuple[int, int, int, int]]] = {
    18: (_basic_block, 1, (2, 2, 2, 2)),
    34: (_basic_block, 1, (3, 4, 6, 3)),
    50: (_bottleneck, 4, (3, 4, 6, 3)),
}
