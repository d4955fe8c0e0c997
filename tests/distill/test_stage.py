"""A stage is checked when it is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from refkd.distill import Stage, Supervised
from refkd.errors import ConfigError
from refkd.models import create
from refkd.train.optim import SGD
from refkd.train.schedule import Constant

NETWORK = create("mlp", in_features=2, hidden=(), num_classes=2)
STAGE = Stage(Supervised(NETWORK), SGD(0.1), Constant(), epochs=1, batch_size=1)


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_counts_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"Stage: {name} must be an integer >= 1"):
        dataclasses.replace(STAGE, **{name: value})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_clip_norm_must_be_positive_and_finite(value: Any) -> None:
    with pytest.raises(ConfigError, match="Stage: clip_norm"):
        dataclasses.replace(STAGE, clip_norm=value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "0.9"])
def test_ema_decay_must_be_a_fraction(value: Any) -> None:
    with pytest.raises(ConfigError, match="Stage: ema_decay"):
        dataclasses.replace(STAGE, ema_decay=value)


def test_a_stage_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        STAGE.epochs = 2  # type: ignore[misc]
