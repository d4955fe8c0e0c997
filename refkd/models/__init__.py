"""Named networks of the literature.

``create(name, **hyperparameters)`` returns a layer; its parameter names are the
``state_dict`` keys of the network's reference implementation in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from refkd.errors import check_arguments, check_choice
from refkd.models.mlp import mlp
from refkd.nn.layer import Layer

__all__ = ["MODELS", "create", "mlp", "parameter_count"]

MODELS: Mapping[str, Callable[..., Layer]] = {"mlp": mlp}


def create(name: str, **hyperparameters: Any) -> Layer:
    """Return the network ``name``.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`.
    **hyperparameters
        Arguments of the function of that name.

    Raises
    ------
    ConfigError
        If the name or a hyperparameter is unknown or missing.

    Examples
    --------
    >>> student = create("mlp", in_features=784, hidden=(20, 20), num_classes=10)
    >>> parameter_count(student)
    16330
    """
    check_choice("models.create", "name", name, MODELS)
    where = f"models.create({name!r})"
    check_arguments(where, "hyperparameter", MODELS[name], hyperparameters)
    return MODELS[name](**hyperparameters)


def parameter_count(network: Layer) -> int:
    """Return how many numbers the network's parameters hold, without allocating them."""
    shapes, _ = network.shapes()
    return sum(math.prod(shape) for shape in shapes.values())
