"""A few training steps on the CuPy backend, by its kernels or captured."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import get_backend, use_backend
from refkd.distill import Batch, LogitDistillation, Supervised, select
from refkd.losses import KDSpec
from refkd.models import create
from refkd.nn.layer import add_prefix

__all__ = ["trained"]


def trained(name: str, optimizer: Any, make: Any, steps: int = 6) -> Any:
    """Return terms, parameters, state and moments after some steps, and the step itself.

    ``name`` is "mlp", "dropout", "kd" or "vgg", and ``make`` a class of steps.
    """
    layer, shape = _network(name)
    teacher = create("mlp", in_features=9, hidden=(24,), num_classes=5)
    move = get_backend("cupy").asarray
    rng = np.random.default_rng(0)
    networks = {"student": layer} | ({"teacher": teacher} if name == "kd" else {})
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for prefix, of in networks.items():
        drawn = of.init(rng)
        params |= add_prefix(prefix, {k: move(v) for k, v in drawn[0].items()})
        state |= add_prefix(prefix, {k: move(v) for k, v in drawn[1].items()})
    objective: Any = Supervised(layer)
    if name == "kd":
        spec = KDSpec.preset("hinton", temperature=3.0, alpha=0.4)
        objective = LogitDistillation(layer, teacher, spec)
    moments = optimizer.init(add_prefix("student", select(params, "student")))
    step, terms = make(objective, optimizer), []
    with use_backend("cupy"):
        for k in range(steps):
            size = 12 if k % 3 else 20
            images = move(rng.standard_normal((size, *shape)).astype("float32"))
            batch = Batch(images, move(rng.integers(5, size=size)), None, 20, 0, k)
            found, state = step(params, state, moments, batch, rng, lr=0.05, where="here")
            terms.append(found)
    return terms, params, state, moments, step


def _network(name: str) -> tuple[Any, tuple[int, ...]]:
    if name == "vgg":
        return create("vgg", num_classes=5, blocks=((8,), (16,)), image_size=16), (3, 16, 16)
    options = {"in_features": 9, "hidden": (32, 16), "num_classes": 5}
    return create("mlp", dropout=0.5 if name == "dropout" else 0.0, **options), (9,)
