"""Schedules: their values at the start, the middle, the end and where they turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.train.schedule import Constant, Cosine, Linear, Step, WarmUp

TOTAL = 100


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "last"),
    [
        (Constant(), 1, 1, 1),
        (Linear(), 1, 0.5, 0.01),
        (Linear(end=0.2), 1, 0.6, 0.208),
        (Cosine(), 1, 0.5, (1 + math.cos(0.99 * math.pi)) / 2),
        (Cosine(end=0.2), 1, 0.6, 0.2 + 0.4 * (1 + math.cos(0.99 * math.pi))),
        (Step((0.5, 0.75)), 1, 0.1, 0.01),
        (Step(()), 1, 1, 1),
    ],
    ids=repr,
)
def test_values_at_the_first_the_middle_and_the_last_step(
    schedule: Any, start: float, middle: float, last: float
) -> None:
    factors = [schedule.factor(step, TOTAL) for step in (0, 50, 99)]
    assert factors == pytest.approx([start, middle, last], rel=1e-12)


@pytest.mark.parametrize("schedule", [Linear(0.3), Cosine(0.3)])
def test_the_end_is_where_the_next_step_would_be(schedule: Any) -> None:
    assert schedule.factor(TOTAL, TOTAL) == pytest.approx(0.3, rel=1e-15)


@given(percent=st.integers(0, 100), total=st.sampled_from([100, 200, 1000, 60_000]))
def test_a_milestone_at_a_whole_step_takes_effect_at_that_step(percent: int, total: int) -> None:
    schedule, step = Step((percent / 100,), gamma=0.5), percent * total // 100
    assert schedule.factor(step, total) == 0.5
    if step:
        assert schedule.factor(step - 1, total) == 1


def test_a_milestone_between_steps_takes_effect_at_the_next() -> None:
    schedule = Step((0.25,), gamma=0.5)
    assert [schedule.factor(step, 7) for step in range(4)] == [1, 1, 0.5, 0.5]


def test_warm_up_rises_by_equal_parts_to_one_and_then_hands_over() -> None:
    schedule = WarmUp(4, Linear())
    factors = [schedule.factor(step, 12) for step in range(12)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, *(1 - k / 8 for k in range(8))])


def test_warm_up_never_starts_at_zero() -> None:
    assert WarmUp(1000).factor(0, 2000) == 0.001


def test_warm_up_is_followed_by_a_constant_unless_told_otherwise() -> None:
    assert [WarmUp(2).factor(step, 5) for step in range(5)] == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("total", [1, 3, 4])
def test_a_stage_may_be_shorter_than_its_warm_up(total: int) -> None:
    schedule = WarmUp(4, Cosine())
    assert [schedule.factor(k, total) for k in range(total)] == [(k + 1) / 4 for k in range(total)]


@given(
    schedule=st.sampled_from([Constant(), Linear(0.1), Cosine(), Step((0.3, 0.6))]),
    warmup=st.integers(1, 50),
    total=st.integers(1, 300),
)
def test_factors_lie_between_zero_and_one_and_fall_after_the_warm_up(
    schedule: Any, warmup: int, total: int
) -> None:
    factors = [WarmUp(warmup, schedule).factor(step, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step((0.5,), gamma=0.0), "Step: gamma"),
        (lambda: Step((0.5, 1.5)), "Step: milestones"),
        (lambda: Step((-0.1,)), "Step: milestones"),
        (lambda: Step((0.7, 0.5)), "Step: milestones must ascend"),
        (lambda: Linear(end=-0.1), "Linear: end"),
        (lambda: Cosine(end=1.1), "Cosine: end"),
        (lambda: WarmUp(0), "WarmUp: steps"),
        (lambda: WarmUp(-5), "WarmUp: steps"),
        (lambda: WarmUp(True), "WarmUp: steps"),
        (lambda: WarmUp(2.5), "WarmUp: steps"),  # type: ignore[arg-type]
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
