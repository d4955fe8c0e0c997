"""Compiling ahead: all that a backend has, on small inputs, so that no training waits for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd import models
from refkd.data.dataset import Normalization, Split
from refkd.dispatch import Backend, use_backend
from refkd.distill import LogitDistillation, Objective, Stage, Supervised
from refkd.distill.stage import Optimizer
from refkd.losses import KDSpec
from refkd.nn.layer import add_prefix
from refkd.testing.pairs import PairCase, all_cases, backward, forward
from refkd.train.evaluate import evaluate_logits
from refkd.train.loop import begin, train
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.schedule import Constant

__all__ = ["warm_up"]

_CLASSES = 10
_BATCH = 8
_NORMALIZATION = Normalization(1 / 255, mean=(0.5,), std=(0.25,))
_BY_CHANNEL = Normalization(1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
_SPEC = KDSpec.preset("hinton", temperature=4.0, alpha=0.1)
# Of each family a network with all its kinds of layers, large enough for what serves large ones.
_NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"in_features": 3 * 32 * 32, "hidden": (20, 20), "dropout": 0.1},
    "small_cnn": {"image_size": 32},
    "vgg": {"blocks": ((32, 32), (64, 64)), "image_size": 32, "dropout": 0.1},
    "cifar_resnet": {"depth": 8},
    "resnet": {"depth": 18},
    "googlenet": {"image_size": 96},
}
_OPTIMIZERS: tuple[Optimizer, ...] = (
    Adam(1e-3),
    AdamW(1e-3, weight_decay=1e-2),
    SGD(1e-3),
    SGD(1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4),
)


def warm_up(backend: Backend) -> float:
    """Compile what ``backend`` has, and delete what it compiled once and has no use for.

    Every kernel that it has runs in all of :mod:`refkd.testing.cases`, in float32 and in
    two layouts, and a network of each family is trained, alone and distilled. A backend
    that compiles says so itself.

    Returns
    -------
    seconds : float
        How long it took.
    """
    begun = time.perf_counter()
    with use_backend(backend.name):
        for case in all_cases():
            if {f"{case.pair}_forward", f"{case.pair}_backward"} & backend.kernels.keys():
                _run(backend, case)
        for name in _NETWORKS:
            _train(name)
    if backend.prune_cache is not None:
        backend.prune_cache()
    return time.perf_counter() - begun


def _run(backend: Backend, case: PairCase) -> None:
    rng = case.generator()
    drawn = case.inputs(rng)
    for lay in (np.copy, _channels_last):

        def given(value: Any, lay: Any = lay) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            single = value.astype(np.float32) if value.dtype == np.float64 else value
            return backend.asarray(lay(single))

        inputs = {name: given(value) for name, value in drawn.items()}
        outputs = forward(case, inputs)
        cotangent = np.asarray(rng.standard_normal(np.shape(outputs[0])))
        backward(case, given(cotangent), inputs, outputs)


def _channels_last(x: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(np.array(np.moveaxis(x, 1, -1), order="C"), -1, 1) if x.ndim > 2 else x


def _train(name: str) -> None:
    network = models.create(name, num_classes=_CLASSES, **_NETWORKS[name])
    student, size = network, 32
    head_weights: tuple[float, ...] = ()
    if name == "googlenet":  # whose three heads only a network of one head learns from
        size, head_weights = 96, (1.0, 0.3, 0.3)
        student = models.create("small_cnn", num_classes=_CLASSES, image_size=size)
    objectives: tuple[Objective, ...] = (
        Supervised(network, head_weights=head_weights),
        LogitDistillation(student, network, _SPEC, head_weights=head_weights, exact=False),
    )
    normalization = _NORMALIZATION if name == "mlp" else _BY_CHANNEL
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_BATCH + 3, 3, size, size)).astype(np.uint8)
    split = Split(images, rng.integers(_CLASSES, size=len(images)))
    params, state = network.init(rng)
    for objective in objectives:
        # A small network may be one compiled piece together with its optimiser.
        for optimizer in _OPTIMIZERS if name in ("mlp", "small_cnn") else _OPTIMIZERS[:1]:
            stage = Stage(objective, optimizer, Constant(), 1, _BATCH, ema_decay=0.9)
            progress = begin(
                [stage],
                0,
                frozen_params=add_prefix("teacher", params),
                frozen_state=add_prefix("teacher", state),
            )
            train([stage], progress, split, normalization=normalization)
    evaluate_logits(network, params, state, images, normalization=normalization)
