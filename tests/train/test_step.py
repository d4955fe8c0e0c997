"""A step: loss, gradients, a check, then the update; and who takes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import current_backend
from refkd.distill import Batch, LogitDistillation, Supervised
from refkd.errors import NonFiniteError
from refkd.train import step as step_module
from refkd.train.loop import begin, initialise, train
from refkd.train.optim import SGD, Adam, clip_by_global_norm
from refkd.train.step import EagerStep, check_gradients, check_terms, training_step
from tests.train.trainings import (
    CLASSES,
    FEATURES,
    NORMALIZATION,
    PLAIN,
    SPEC,
    STATEFUL,
    assert_same_bits,
    one_stage,
    snapshot,
    split,
    two_stages,
)


def batch(rows: int = 8) -> Batch:
    rng = np.random.default_rng(rows)
    images = rng.standard_normal((rows, FEATURES)).astype(np.float32)
    logits = rng.standard_normal((rows, CLASSES)).astype(np.float32)
    return Batch(images, rng.integers(CLASSES, size=rows), logits, rows)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_a_step_is_the_gradient_and_the_update_bit_for_bit(clip_norm: float | None) -> None:
    objective, optimizer = LogitDistillation(STATEFUL, None, SPEC), Adam(0.1)
    stage = one_stage(objective=objective, optimizer=optimizer)
    params, state = initialise([stage], 0)
    expected = {name: array.copy() for name, array in params.items()}
    moments, expected_moments = optimizer.init(params), optimizer.init(params)

    step = EagerStep(objective, optimizer, clip_norm)
    terms, after = step(
        params, state, moments, batch(), np.random.default_rng(1), lr=0.02, where="here"
    )

    result = objective.value_and_grad(expected, state, batch(), np.random.default_rng(1))
    grads = result.grads
    if clip_norm is not None:
        grads, norm = clip_by_global_norm(grads, clip_norm)
        assert norm > clip_norm
    optimizer.update(expected, grads, expected_moments, lr=0.02)
    assert terms == {name: float(term) for name, term in result.terms.items()}
    np.testing.assert_equal(after, result.state)
    np.testing.assert_equal(params, expected)
    np.testing.assert_equal(moments, expected_moments)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_named_with_its_value_and_place(value: float) -> None:
    check_terms({"loss": 1e38, "soft": -1e38}, "epoch 1, step 2")
    with pytest.raises(NonFiniteError, match=f"^epoch 1, step 2: loss term 'soft' is {value}; "):
        check_terms({"loss": 1.0, "soft": value}, "epoch 1, step 2")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_gradient_that_is_not_finite_is_named(value: float) -> None:
    grads = {name: np.full((2, 3), -3e38, np.float32) for name in ("a", "b", "c")}
    check_gradients(grads, "here")
    for name in ("c", "b"):
        grads[name][1, 2] = value
        with pytest.raises(NonFiniteError, match=f"^here: the gradient of '{name}' holds NaN or"):
            check_gradients(grads, "here")


def test_nothing_is_written_before_the_check() -> None:
    objective, optimizer = Supervised(PLAIN), SGD(0.1, momentum=0.9)
    params, state = initialise([one_stage()], 0)
    moments = optimizer.init(params)
    before = {name: array.copy() for name, array in (params | moments).items()}
    spoiled = batch()
    spoiled.images[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"^here: loss term 'loss' is nan"):
        EagerStep(objective, optimizer)(
            params, state, moments, spoiled, np.random.default_rng(0), lr=1.0, where="here"
        )
    np.testing.assert_equal(params | moments, before)


@dataclasses.dataclass
class Compiler:
    """Stands in for a backend; it keeps what it was asked for."""

    answer: Callable[[Any, Any], Any]
    asked: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def compile_step(self, objective: Any, optimizer: Any) -> Any:
        self.asked.append((objective, optimizer))
        return self.answer(objective, optimizer)


@pytest.fixture
def select(monkeypatch: pytest.MonkeyPatch) -> Callable[[Compiler], None]:
    def select(compiler: Compiler) -> None:
        backend = dataclasses.replace(current_backend(), compile_step=compiler.compile_step)
        monkeypatch.setattr(step_module, "current_backend", lambda: backend)

    return select


def test_the_selected_backend_may_have_a_step(select: Any) -> None:
    stage, own = one_stage(), object()
    compiler = Compiler(lambda objective, optimizer: own)
    select(compiler)
    assert training_step(stage) is own
    assert compiler.asked == [(stage.objective, stage.optimizer)]


def test_a_backend_that_has_none_leaves_it_to_the_kernels(select: Any) -> None:
    stage = one_stage()
    select(Compiler(lambda objective, optimizer: None))
    assert training_step(stage) == EagerStep(stage.objective, stage.optimizer)


def test_clipping_needs_all_gradients_first_so_no_backend_is_asked(select: Any) -> None:
    stage = one_stage(clip_norm=0.5)
    compiler = Compiler(lambda objective, optimizer: pytest.fail("asked"))
    select(compiler)
    assert training_step(stage) == EagerStep(stage.objective, stage.optimizer, 0.5)


def test_a_training_asks_once_a_stage_and_takes_every_step_by_the_answer(select: Any) -> None:
    stages = [dataclasses.replace(stage, clip_norm=None) for stage in two_stages()]
    expected = train(stages, begin(stages, 0), split(), normalization=NORMALIZATION)
    places: list[str] = []

    def compile_step(objective: Any, optimizer: Any) -> Any:
        eager = EagerStep(objective, optimizer)

        def step(*arguments: Any, lr: float, where: str) -> Any:
            places.append(where)
            return eager(*arguments, lr=lr, where=where)

        return step

    compiler = Compiler(compile_step)
    select(compiler)
    trained = train(stages, begin(stages, 0), split(), normalization=NORMALIZATION)
    assert compiler.asked == [(stage.objective, stage.optimizer) for stage in stages]
    first = [f"epoch {epoch}, step {step}" for epoch in (1, 2) for step in (1, 2, 3)]
    second = [f"epoch {epoch}, step {step}" for epoch in (1, 2) for step in (1, 2, 3, 4)]
    assert places == first + second
    assert_same_bits(snapshot(trained), snapshot(expected))
