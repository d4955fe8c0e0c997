"""Networks that show what the Numba backend rewrites, and how to compare what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refkd import models
from refkd.nn.layer import Layer

__all__ = ["NETWORKS", "assert_same", "distance", "exact", "network", "outcome"]

NETWORKS = {
    "small_cnn": ({"num_classes": 5, "image_size": 32, "dropout": 0.0}, (3, 32, 32)),
    "vgg": ({"num_classes": 5, "blocks": ((20, 17), (18,)), "image_size": 16}, (3, 16, 16)),
    "cifar_resnet": ({"num_classes": 5, "depth": 8}, (3, 16, 16)),
    "googlenet": (
        {"num_classes": 5, "image_size": 128, "dropout": 0.0, "aux_dropout": 0.0},
        (3, 128, 128),
    ),
}


def network(name: str) -> tuple[Layer, dict[str, Any], dict[str, Any], Any, Any]:
    """Return a network, its parameters, its state with some history, images and labels."""
    hyperparameters, shape = NETWORKS[name]
    layer = models.create(name, **hyperparameters)
    rng = np.random.default_rng(0)
    params, state = layer.init(rng)
    params = {
        key: p if p.ndim > 1 else p + 0.05 * rng.standard_normal(p.shape).astype(p.dtype)
        for key, p in params.items()
    }
    images = rng.standard_normal((6, *shape)).astype(np.float32)
    for _ in range(9):  # so that the running statistics are not far from the batch's
        _, cache = layer.forward(params, state, images, train=True, rng=rng)
        state = layer.next_state(state, cache)
    return layer, params, state, images, rng.integers(5, size=6)


def exact(arrays: dict[str, Any]) -> dict[str, Any]:
    return {k: a.astype(np.float64) if a.dtype.kind == "f" else a for k, a in arrays.items()}


def distance(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-20))


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns, or what it says is wrong."""
    with np.errstate(all="ignore"):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def assert_same(actual: Any, expected: Any) -> None:
    """Compare two outcomes: the words of an error, or numbers up to the rounding of float32."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, tuple):
        assert isinstance(actual, tuple), actual
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert isinstance(actual, np.ndarray), actual
        assert actual.dtype == expected.dtype
        scale = np.abs(expected).max(initial=0.1)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale)
    elif isinstance(expected, float):
        assert abs(actual - expected) < 1e-4 * max(abs(expected), 0.1)
    else:
        assert actual == expected
