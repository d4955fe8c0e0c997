"""The same on calls drawn at random: any sizes, and a memory layout of its own for each array."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.calls import LAYOUTS, call_of, pair_of
from tests.backends.drawn import PAIRS, drawn_cases
from tests.backends.judge import check_accuracy, judge
from tests.backends.override import Override, overrides


def of_pairs(*, everywhere: bool) -> list[Override]:
    return [o for o in overrides(everywhere=everywhere) if pair_of(o.kernel) in PAIRS]


def check_drawn(override: Override, data: st.DataObject) -> None:
    case = data.draw(drawn_cases(pair_of(override.kernel)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    calls = [call_of(override.kernel, case, "float32", seed + k) for k in range(3)]
    layouts = {name: data.draw(st.sampled_from(sorted(LAYOUTS))) for name in calls[0].arrays}
    (judged,) = judge([[call] for call in calls])
    check_accuracy(override, judged, layouts)


@pytest.mark.parametrize("override", of_pairs(everywhere=False), ids=str)
@settings(max_examples=10, derandomize=True, database=None)
@given(data=st.data())
def test_drawn_calls_give_what_the_reference_gives(override: Override, data: st.DataObject) -> None:
    check_drawn(override, data)


@pytest.mark.slow
@pytest.mark.parametrize("override", of_pairs(everywhere=True), ids=str)
@settings(max_examples=100, derandomize=True, database=None)
@given(data=st.data())
def test_many_drawn_calls_give_what_the_reference_gives(
    override: Override, data: st.DataObject
) -> None:
    check_drawn(override, data)


def test_cases_of_every_pair_are_drawn() -> None:
    assert {pair_of(o.kernel) for o in overrides() if not o.kernel.endswith("_update")} <= {
        *PAIRS,
        "pixels_to",
    }
