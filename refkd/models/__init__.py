"""Named networks of the literature.

``create(name, **hyperparameters)`` returns a layer; its parameter names are the
``state_dict`` keys of the network's reference implementation in PyTorch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from refkd.errors import check_arguments, check_choice
from refkd.models.googlenet import googlenet
from refkd.models.mlp import mlp
from refkd.models.resnet import cifar_resnet, resnet
from refkd.models.small_cnn import small_cnn
from refkd.models.vgg import vgg
from refkd.nn.layer import Layer

__all__ = [
    "MODELS",
    "cifar_resnet",
    "create",
    "googlenet",
    "mlp",
    "parameter_count",
    "resnet",
    "small_cnn",
    "vgg",
]

MODELS: Mapping[str, Callable[..., Layer]] = {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "googlenet": googlenet,
    "vgg": vgg,
    "resnet": resnet,
    "cifar_resnet": cifar_resnet,
}


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


def hyperparameters(name: str) -> frozenset[str]:
    """Return the names of the hyperparameters of the network ``name``.

    Raises
    ------
    ConfigError
        If there is no such network.
    """
    check_choice("models.hyperparameters", "name", name, MODELS)
    return frozenset(inspect.signature(MODELS[name]).parameters)


def parameter_count(network: Layer) -> int:
    """Return how many numbers the network's parameters hold, without allocating them."""
    shapes, _ = network.shapes()
    return sum(math.prod(shape) for shape in shapes.values())
