"""Layers: frozen dataclasses of hyperparameters over the kernels of :mod:`refkd.ops`."""

from refkd.nn.activation import GELU, Flatten, ReLU, Sigmoid, SiLU, Tanh
from refkd.nn.dropout import Dropout
from refkd.nn.layer import Arrays, Layer
from refkd.nn.linear import Linear
from refkd.nn.sequential import Sequential

__all__ = [
    "GELU",
    "Arrays",
    "Dropout",
    "Flatten",
    "Layer",
    "Linear",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
]
