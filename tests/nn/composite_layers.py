"""Composite layers in the ways that networks of the literature use them, but small."""

from __future__ import annotations

from refkd.nn import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    GroupNorm,
    Linear,
    MaxPool2d,
    Parallel,
    Residual,
    Sequential,
    SiLU,
    Tanh,
    WithHeads,
)

IMAGES = (2, 3, 4, 3)
"""The shape of a batch that all layers here take."""

INCEPTION = Parallel(
    (
        ("branch1", Conv2d(3, 2, 1)),
        ("branch2", Sequential.numbered(Conv2d(3, 2, 1), Tanh(), Conv2d(2, 3, 3, padding=1))),
        ("branch3", Sequential.numbered(MaxPool2d(3, 1, padding=1), Conv2d(3, 1, 1))),
        ("pool", AvgPool2d(3, 1, padding=1)),
    )
)

DOWNSAMPLING = Residual(
    Sequential(
        (
            ("conv1", Conv2d(3, 4, 3, stride=2, padding=1, bias=False)),
            ("bn1", BatchNorm2d(4)),
            ("tanh", Tanh()),
            ("conv2", Conv2d(4, 2, 3, padding=1, bias=False)),
            ("bn2", BatchNorm2d(2)),
        )
    ),
    Sequential.numbered(Conv2d(3, 2, 1, stride=2, bias=False), BatchNorm2d(2)),
)

IDENTITY = Residual(
    Sequential((("conv", Conv2d(3, 3, 3, padding=1)), ("norm", GroupNorm(3, 3)), ("silu", SiLU())))
)

PROJECTION = Residual(Sequential((("norm", BatchNorm2d(3)),)), Conv2d(3, 3, 1), "projection")
"""Its shortcut is a single layer, which must never see that there is no cotangent."""

TWO_HEADS = WithHeads(
    Sequential(
        (
            ("stem", IDENTITY),
            ("block", DOWNSAMPLING),
            ("tanh", Tanh()),
            (
                "fork",
                Parallel((("left", Conv2d(2, 1, 1)), ("right", Sequential.numbered(Tanh())))),
            ),
            ("join", Concat()),
            ("pool", AdaptiveAvgPool2d(1)),
            ("flatten", Flatten()),
            ("fc", Linear(3, 4)),
        )
    ),
    (
        # Out of the order in which the trunk computes what they read.
        ("aux2", "fork", Sequential((("join", Concat()), ("norm", BatchNorm2d(3))))),
        (
            "aux1",
            "block.downsample.0",
            Sequential((("pool", AdaptiveAvgPool2d(1)), ("f", Flatten()), ("fc", Linear(2, 3)))),
        ),
        ("last", "fc", Linear(4, 2)),
    ),
)

COMPOSITES = {
    "inception": INCEPTION,
    "downsampling": DOWNSAMPLING,
    "identity": IDENTITY,
    "projection": PROJECTION,
    "two_heads": TWO_HEADS,
}
