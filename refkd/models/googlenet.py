"""GoogLeNet (Inception v1) without batch normalisation, with two auxiliary classifiers."""

from __future__ import annotations

from refkd.errors import check_unit_interval
from refkd.models._sizes import side_after
from refkd.nn.activation import Flatten, ReLU
from refkd.nn.checks import check_counts, check_switch
from refkd.nn.conv import Conv2d
from refkd.nn.dropout import Dropout
from refkd.nn.heads import WithHeads
from refkd.nn.init import KaimingNormal, Normal
from refkd.nn.layer import Layer
from refkd.nn.linear import Linear
from refkd.nn.parallel import Concat, Parallel
from refkd.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from refkd.nn.sequential import Sequential

__all__ = ["googlenet"]

# Table 1 of the paper: 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; pool proj.
_INCEPTIONS = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
_POOL_AFTER = {"3b": "maxpool3", "4e": "maxpool4"}
# The auxiliary classifiers in the order of the outputs, and which module each one reads.
_HEADS = {"aux2": "4d", "aux1": "4a"}


def googlenet(
    *,
    num_classes: int,
    dropout: float = 0.4,
    aux_dropout: float = 0.5,
    aux_logits: bool = True,
    image_size: int = 224,
    in_channels: int = 3,
) -> Layer:
    """Return GoogLeNet: 22 layers with parameters, nine inception modules.

    Parameters
    ----------
    num_classes : int
    dropout : float, in [0, 1]
        Drop probability before the last linear layer.
    aux_dropout : float, in [0, 1]
        Drop probability before each of the two linear layers of an auxiliary classifier.
    aux_logits : bool
        Whether there are auxiliary classifiers, at inception 4d and 4a.
    image_size : int
        Side of the square images in pixels. The network takes any size that is large
        enough; the auxiliary classifiers are made for this one.
    in_channels : int
        Channels of the images.

    Returns
    -------
    Layer
        From (N, in_channels, image_size, image_size) to ``(logits, aux2, aux1)``, each
        (N, num_classes), in training and in evaluation alike; to the logits alone without
        auxiliary classifiers. For 5 classes it has 10,318,655 parameters with them, 5,978,677
        without.

    Raises
    ------
    ConfigError
        If a number is not a positive integer, a probability is outside [0, 1], aux_logits is
        neither true nor false, or nothing is left of images that small on the way.

    Notes
    -----
    The parameters have torchvision's names, ``inception3a.branch2.0.conv.weight``, but its
    convolutions have batch norm in the place of a bias. Its 5×5 convolutions are 3×3 and its
    last max-pool is 2×2; both are here as in the paper. The auxiliary classifiers drop out
    before each linear layer, in the paper only before the second; and there is none of the
    paper's local response normalisation.

    torchvision returns the auxiliary logits in training only: whoever distils from them in
    evaluation mode finds them gone, and whoever leaves the teacher in training mode to keep
    them distils from its dropout.

    The feature after an inception module is ``concat4a``; ``inception4a`` is the tuple of
    its branches.

    Convolutions are initialised by N(0, 2 / fan-out), linear layers by N(0, .01²), biases
    by zero.

    References
    ----------
    Szegedy et al.: Going Deeper with Convolutions, arXiv:1409.4842.
    """
    where = "googlenet"
    check_counts(where, num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    check_unit_interval(where, "dropout", dropout)
    check_unit_interval(where, "aux_dropout", aux_dropout)
    check_switch(where, "aux_logits", aux_logits)
    features = _features(in_channels)
    side_after(where, image_size, features)  # refuses images that are too small
    trunk = Sequential(
        (
            *features,
            ("avgpool", AdaptiveAvgPool2d(1)),
            ("flatten", Flatten()),
            ("dropout", Dropout(dropout)),
            ("fc", _linear(_channels_after("5b"), num_classes)),
        )
    )
    if not aux_logits:
        return trunk
    names = [name for name, _ in features]
    heads = []
    for name, module in _HEADS.items():
        feature, pool = f"concat{module}", AvgPool2d(5, stride=3)
        path = [*features[: names.index(feature) + 1], (f"the pool of {name}", pool)]
        side = side_after(where, image_size, path)
        head = _head(pool, _channels_after(module), side, num_classes, aux_dropout)
        heads.append((name, feature, head))
    return WithHeads(trunk, tuple(heads))


def _features(in_channels: int) -> list[tuple[str, Layer]]:
    """Return everything before the global pool, by torchvision's names."""
    layers: list[tuple[str, Layer]] = [
        ("conv1", _conv(in_channels, 64, 7, stride=2, padding=3)),
        ("maxpool1", _halve()),
        ("conv2", _conv(64, 64, 1)),
        ("conv3", _conv(64, 192, 3, padding=1)),
        ("maxpool2", _halve()),
    ]
    channels = 192
    for module in _INCEPTIONS:
        layers.append((f"inception{module}", _inception(channels, module)))
        layers.append((f"concat{module}", Concat(axis=1)))
        channels = _channels_after(module)
        if module in _POOL_AFTER:
            layers.append((_POOL_AFTER[module], _halve()))
    return layers


def _inception(channels: int, module: str) -> Parallel:
    one, (three_reduce, three), (five_reduce, five), pool_proj = _INCEPTIONS[module]
    branches = (
        _conv(channels, one, 1),
        Sequential.numbered(
            _conv(channels, three_reduce, 1), _conv(three_reduce, three, 3, padding=1)
        ),
        Sequential.numbered(
            _conv(channels, five_reduce, 1), _conv(five_reduce, five, 5, padding=2)
        ),
        Sequential.numbered(MaxPool2d(3, stride=1, padding=1), _conv(channels, pool_proj, 1)),
    )
    return Parallel(tuple((f"branch{i}", branch) for i, branch in enumerate(branches, start=1)))


def _channels_after(module: str) -> int:
    one, (_, three), (_, five), pool_proj = _INCEPTIONS[module]
    return one + three + five + pool_proj


def _head(
    pool: AvgPool2d, channels: int, side: int, num_classes: int, dropout: float
) -> Sequential:
    """Return an auxiliary classifier, ``side`` being that of its pooled feature map."""
    return Sequential(
        (
            ("pool", pool),
            ("conv", _conv(channels, 128, 1)),
            ("flatten", Flatten()),
            ("dropout1", Dropout(dropout)),
            ("fc1", _linear(128 * side * side, 1024)),
            ("relu", ReLU()),
            ("dropout2", Dropout(dropout)),
            ("fc2", _linear(1024, num_classes)),
        )
    )


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
) -> Sequential:
    """Return a convolution and its ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        initializer=KaimingNormal(),
    )
    return Sequential((("conv", conv), ("relu", ReLU())))


def _halve() -> MaxPool2d:
    return MaxPool2d(3, stride=2, ceil_mode=True)


def _linear(in_features: int, out_features: int) -> Linear:
    return Linear(in_features, out_features, initializer=Normal(0.01))
