"""How far from exact a result may be: 4 times as far as that of the reference in float32."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refkd.testing.tolerances import tolerance
from tests.backends.calls import Call, calls, reference
from tests.backends.override import Override

__all__ = [
    "Judged",
    "check_accuracy",
    "check_alike",
    "error",
    "in_bits",
    "is_floating",
    "judge",
    "judged_calls",
    "size",
]


class Judged(NamedTuple):
    """A call in float32 with what the reference makes of it.

    ``errors`` are the reference's, each the largest of three calls with other numbers:
    where there are few of them, one call may be right by chance.
    """

    call: Call
    expected: tuple[Any, ...]
    exact: tuple[Any, ...]
    errors: list[float]


@functools.lru_cache(maxsize=2)
def judged_calls(kernel: str) -> list[Judged]:
    """Return all calls of a kernel, judged."""
    return judge([calls(kernel, seed=seed) for seed in range(3)])


def judge(draws: Sequence[list[Call]]) -> list[Judged]:
    """Judge the calls of the first draw by those of all: the same calls of other numbers."""
    found = []
    for same_but_numbers in zip(*draws, strict=True):
        results = [
            (call, reference(call), reference(call.astype("float64"))) for call in same_but_numbers
        ]
        errors = [list(map(error, rough, exact)) for _, rough, exact in results]
        found.append(Judged(*results[0], [max(each) for each in zip(*errors, strict=True)]))
    return found


# A reference that happens to be exact would allow nothing: a few roundings are no mistake.
_FEW_ROUNDINGS = tolerance("float32", "pointwise")


def check_accuracy(
    override: Override,
    judged: Judged,
    layout: str | Mapping[str, str],
    *,
    floor: float = _FEW_ROUNDINGS,
) -> None:
    """Check the results of an override against the exact ones, and what they look like.

    ``floor`` is what is allowed of an array's largest entry, whatever the reference's error.
    """
    call, expected, exact, reference_errors = judged
    actual = override.results(call, layout)
    check_alike(call, actual, expected)
    for i, (a, e, wrong) in enumerate(zip(actual, exact, reference_errors, strict=True)):
        if is_floating(e):
            allowed = override.error_factor * wrong + floor * size(e)
            assert error(a, e) <= allowed, f"{call!r}, {layout}: output {i}"


def error(actual: Any, exact: Any) -> float:
    """Return the largest error of an array; equal infinities and two NaN are none."""
    if not is_floating(exact):
        return 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.subtract(actual, exact, dtype=np.float64))
    same = (actual == exact) | (np.isnan(actual) & np.isnan(exact))
    return float(np.max(np.where(same, 0.0, gaps), initial=0.0))


def size(array: Any) -> float:
    """Return the largest finite magnitude in an array of floats."""
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))


def check_alike(call: Call, actual: list[Any], expected: tuple[Any, ...]) -> None:
    """Check numbers of outputs, shapes and dtypes, and the values of what is no float."""
    assert [a is None for a in actual] == [e is None for e in expected], call
    for a, e in zip(actual, map(np.asarray, expected), strict=True):
        if a is not None:
            assert (a.shape, a.dtype) == (e.shape, e.dtype), call
            if e.dtype.kind != "f":
                np.testing.assert_array_equal(a, e, str(call))


def is_floating(value: Any) -> bool:
    """Whether it is an array or number of NumPy with a real floating dtype."""
    return value is not None and np.asarray(value).dtype.char in "fd"


def in_bits(results: list[Any]) -> list[Any]:
    """Return results as what can be compared bit by bit."""
    return [None if a is None else (a.dtype, a.shape, a.tobytes()) for a in results]
