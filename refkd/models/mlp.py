"""The multilayer perceptron of the MNIST distillation experiments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from refkd.errors import ConfigError, check_unit_interval
from refkd.nn.activation import Flatten, ReLU
from refkd.nn.checks import check_counts
from refkd.nn.dropout import Dropout
from refkd.nn.layer import Layer
from refkd.nn.linear import Linear
from refkd.nn.sequential import Sequential

__all__ = ["mlp"]


def mlp(
    *, in_features: int, hidden: Sequence[int], num_classes: int, dropout: float = 0.0
) -> Sequential:
    """Return in_features → hidden ... → num_classes, each hidden layer relu(dropout(linear)).

    Parameters
    ----------
    in_features : int
        Values per example; the input is flattened from (N, ...).
    hidden : sequence of int
        Widths of the hidden layers; may be empty.
    num_classes : int
    dropout : float, in [0, 1]
        Drop probability after each hidden linear layer.

    Returns
    -------
    Sequential
        With parameters ``fc1.weight``, ``fc1.bias``, ``fc2.weight``, ...

    Raises
    ------
    ConfigError
        If a width is not a positive integer, or dropout is outside [0, 1].
    """
    if not isinstance(hidden, Sequence):
        raise ConfigError(f"mlp: hidden must be a sequence of widths, got {hidden!r}")
    check_unit_interval("mlp", "dropout", dropout)
    check_counts("mlp", in_features=in_features, num_classes=num_classes)
    check_counts("mlp", **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    widths = (in_features, *hidden, num_classes)
    layers: list[tuple[str, Layer]] = [("flatten", Flatten())]
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        layers.append((f"fc{i}", Linear(fan_in, fan_out)))
        if i <= len(hidden):
            if dropout:
                layers.append((f"dropout{i}", Dropout(dropout)))
            layers.append((f"relu{i}", ReLU()))
    return Sequential(tuple(layers))
