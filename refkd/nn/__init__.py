"""Layers: frozen dataclasses of hyperparameters over the kernels of :mod:`refkd.ops`."""

from refkd.nn.activation import GELU, Flatten, ReLU, Sigmoid, SiLU, Tanh
from refkd.nn.conv import Conv2d
from refkd.nn.dropout import Dropout
from refkd.nn.heads import WithHeads
from refkd.nn.init import Initializer, KaimingNormal, Normal, Uniform
from refkd.nn.layer import Arrays, Layer
from refkd.nn.linear import Linear
from refkd.nn.norm import BatchNorm2d, GroupNorm, LayerNorm
from refkd.nn.parallel import Concat, Parallel
from refkd.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from refkd.nn.residual import Residual
from refkd.nn.sequential import Sequential
from refkd.nn.shortcut import PaddedShortcut

__all__ = [
    "GELU",
    "AdaptiveAvgPool2d",
    "Arrays",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Initializer",
    "KaimingNormal",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Normal",
    "PaddedShortcut",
    "Parallel",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "Uniform",
    "WithHeads",
]
