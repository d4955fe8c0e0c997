"""NaN or infinity anywhere stops the training before the update, and is named."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from refkd.data.dataset import Split
from refkd.distill import Batch, LogitDistillation, StepResult, Supervised
from refkd.errors import NonFiniteError
from refkd.train.loop import begin, train
from refkd.train.optim import SGD, Adam
from refkd.train.progress import Progress
from refkd.train.schedule import Constant
from tests.train.trainings import CLASSES, NORMALIZATION, PLAIN, SPEC, one_stage, snapshot, split

BAD = [math.nan, math.inf, -math.inf]
PARAMETERS = [f"student.{name}" for name in PLAIN.shapes()[0]]
LOGITS = np.random.default_rng(0).standard_normal((len(split()), CLASSES)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Tampered:
    """A distillation whose fifth step goes wrong: a term, a gradient or the batch."""

    value: float
    term: str | None = None
    gradient: str | None = None
    field: str | None = None
    inner: LogitDistillation = dataclasses.field(
        default_factory=lambda: LogitDistillation(PLAIN, None, SPEC)
    )
    calls: list[int] = dataclasses.field(default_factory=list)

    @property
    def networks(self) -> Any:
        return self.inner.networks

    @property
    def learns(self) -> tuple[str, ...]:
        return self.inner.learns

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        return ()

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        self.calls.append(1)
        if len(self.calls) < 5:
            return self.inner.value_and_grad(params, state, batch, rng)
        if self.field is not None:
            spoiled = getattr(batch, self.field).copy()
            spoiled[0, 1] = self.value
            batch = batch._replace(**{self.field: spoiled})
        with np.errstate(all="ignore"):
            result = self.inner.value_and_grad(params, state, batch, rng)
        if self.term is not None:
            result.terms[self.term] = np.float32(self.value)
        if self.gradient is not None:
            result.grads[self.gradient].flat[-1] = self.value
        return result


class Keep:
    """A monitor that keeps the last state after a step."""

    last: Any = None

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        self.last = snapshot(progress)

    def after_epoch(self, progress: Progress, record: Any) -> None:
        self.last = snapshot(progress)


def run_until_it_stops(objective: Tampered, optimizer: Any, **settings: Any) -> str:
    """Train into the fault; check that nothing moved; return the message."""
    stage = one_stage(objective=objective, optimizer=optimizer, **settings)
    data = Split(split().images, split().labels, LOGITS)
    progress, keep = begin([stage], 0), Keep()
    with pytest.raises(NonFiniteError, match=r"^epoch 2, step 2: ") as caught:
        train([stage], progress, data, normalization=NORMALIZATION, monitor=keep)
    np.testing.assert_equal(snapshot(progress), keep.last)
    assert len(objective.calls) == 5
    return str(caught.value)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("term", ["loss", "hard", "soft"])
def test_a_loss_term_is_named(term: str, value: float) -> None:
    message = run_until_it_stops(Tampered(value, term=term), SGD(0.1, momentum=0.9))
    assert f"loss term {term!r} is {value}" in message


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1, "ema_decay": 0.9}])
def test_the_gradient_of_a_parameter_is_named(name: str, value: float, settings: Any) -> None:
    message = run_until_it_stops(Tampered(value, gradient=name), Adam(0.01), **settings)
    assert f"the gradient of {name!r} holds NaN or infinity" in message
    assert "lower the learning rate" in message


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("field", ["images", "teacher_logits"])
def test_a_batch_with_it_stops_the_training(field: str, value: float) -> None:
    message = run_until_it_stops(Tampered(value, field=field), Adam(0.01))
    assert re.search(r"loss term '(loss|soft)' is nan|the gradient of 'student\.fc1", message)


def test_a_diverging_training_is_stopped_with_finite_parameters() -> None:
    stage = one_stage(objective=Supervised(PLAIN), optimizer=SGD(1e30), schedule=Constant())
    progress = begin([stage], 0)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="epoch 1, step"):
        train([stage], progress, split(), normalization=NORMALIZATION)


@dataclasses.dataclass(frozen=True)
class Huge:
    """An objective with finite gradients whose squares overflow float32."""

    size: float

    @property
    def networks(self) -> Any:
        return {"student": PLAIN}

    @property
    def learns(self) -> tuple[str, ...]:
        return ("student",)

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        return ()

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        grads = {name: np.full_like(p, self.size) for name, p in params.items()}
        return StepResult({"loss": np.float32(1)}, grads, dict(state))


@pytest.mark.parametrize("size", [1e25, -3e38])
def test_a_huge_but_finite_gradient_is_not_called_non_finite(size: float) -> None:
    stage = one_stage(objective=Huge(size), optimizer=SGD(1e-30), schedule=Constant(), epochs=1)
    progress = begin([stage], 0)
    before = snapshot(progress)["params"]
    train([stage], progress, split(), normalization=NORMALIZATION)
    for name, array in progress.params.items():
        expected = before[name] - 3 * np.float32(1e-30 * size)
        np.testing.assert_allclose(array, expected, rtol=1e-5)


def test_a_huge_gradient_is_clipped_to_the_norm_and_not_to_nothing() -> None:
    stage = one_stage(
        objective=Huge(1e30), optimizer=SGD(1.0), schedule=Constant(), epochs=1, clip_norm=1.0
    )
    progress = begin([stage], 0)
    before = snapshot(progress)["params"]
    train([stage], progress, split(), normalization=NORMALIZATION)
    moved = np.concatenate([(before[n] - a).ravel() for n, a in progress.params.items()])
    assert np.linalg.norm(moved) == pytest.approx(3, rel=1e-4)
