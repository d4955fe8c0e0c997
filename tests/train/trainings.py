"""Small trainings that the tests of this folder share: data, stages, and bitwise comparison."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from refkd.data.dataset import Normalization, Split
from refkd.distill import LogitDistillation, Stage, Supervised
from refkd.losses import KDSpec
from refkd.models import create
from refkd.nn import Dropout, Linear, ReLU, Sequential
from refkd.train.optim import SGD, Adam
from refkd.train.progress import Progress
from refkd.train.schedule import Cosine, WarmUp
from tests.nn.contract_layers import BatchStatistics

FEATURES, CLASSES, EXAMPLES = 6, 3, 22
NORMALIZATION = Normalization(1 / 255)
SPEC = KDSpec.preset("hinton", temperature=3.0, alpha=0.4)
PLAIN = create("mlp", in_features=FEATURES, hidden=(5,), num_classes=CLASSES)
STATEFUL = Sequential(
    (
        ("fc1", Linear(FEATURES, 7)),
        ("norm", BatchStatistics(7)),
        ("relu", ReLU()),
        ("dropout", Dropout(0.3)),
        ("fc2", Linear(7, CLASSES)),
    )
)
"""With dropout, and with running statistics that go on through the stages."""


def split(rows: int = EXAMPLES) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(rows, FEATURES)).astype(np.uint8)
    return Split(images, rng.integers(CLASSES, size=rows))


def two_stages() -> list[Stage]:
    """A teacher, then a student that starts as its copy; a moving average in each stage."""
    return [
        Stage(
            Supervised(STATEFUL, "teacher", label_smoothing=0.1),
            SGD(0.2, momentum=0.9, nesterov=True, weight_decay=1e-2),
            WarmUp(3, Cosine()),
            epochs=2,
            batch_size=8,
            ema_decay=0.8,
        ),
        Stage(
            LogitDistillation(STATEFUL, STATEFUL, SPEC),
            Adam(0.01),
            Cosine(),
            epochs=2,
            batch_size=6,
            clip_norm=0.5,
            ema_decay=0.5,
            start_from={"student": "teacher"},
        ),
    ]


def one_stage(**changes: Any) -> Stage:
    stage = Stage(
        Supervised(PLAIN), SGD(0.1, momentum=0.9), WarmUp(2, Cosine()), epochs=2, batch_size=8
    )
    return dataclasses.replace(stage, **changes)


def snapshot(progress: Progress) -> dict[str, Any]:
    """Return a copy of all that a progress holds, the generator's position included."""
    held = {**vars(progress), "rng": progress.rng.bit_generator.state}
    return copy.deepcopy(held)


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for group in ("params", "state", "optimizer", "average", "best"):
        assert actual[group].keys() == expected[group].keys(), group
        for name, array in expected[group].items():
            got = actual[group][name]
            assert (got.dtype, got.shape) == (array.dtype, array.shape), name
            assert got.tobytes() == array.tobytes(), f"{group}: {name}"
    rest = set(expected) - {"params", "state", "optimizer", "average", "best"}
    assert {k: actual[k] for k in rest} == {k: expected[k] for k in rest}
