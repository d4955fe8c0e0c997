"""Named networks of the literature.

``create(name, **hyperparameters)`` returns a layer; its parameter names are the
``state_dict`` keys of the network's reference implementation in PyTorch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from refkd.errors import ConfigError, check_choice, suggest
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
    accepted = inspect.signature(MODELS[name]).parameters
    for key in hyperparameters:
        if key not in accepted:
            raise ConfigError(
                f"models.create({name!r}): unknown hyperparameter {key!r}, expected "
                f"{', '.join(accepted)}{suggest(key, accepted)}"
            )
    missing = [k for k, p in accepted.items() if p.default is p.empty and k not in hyperparameters]
    if missing:
        raise ConfigError(f"models.create({name!r}): missing {', '.join(missing)}")
    return MODELS[name](**hyperparameters)


def parameter_count(network: Layer) -> int:
    """Return how many numbers the network's parameters hold, without allocating them."""
    shapes, _ = network.shapes()
    return sum(math.prod(shape) for shape in shapes.values())
