"""What tests ask of an override, wherever it runs: on NumPy, on a device, or on an emulated one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refkd.errors import RefkdError
from refkd.testing.tolerances import tolerance
from tests.backends.calls import LAYOUTS, Call, call_of, pair_of, reference
from tests.backends.drawn import drawn_cases
from tests.backends.judge import check_accuracy, check_alike, error, judge, size
from tests.backends.mistakes import mistaken
from tests.backends.override import Override

__all__ = ["check_drawn", "check_mistakes", "check_near", "check_not_finite", "planted"]


def planted(call: Call, name: str, special: float, rng: np.random.Generator) -> Call:
    array = call.arrays[name].copy()
    array.reshape(-1)[rng.integers(array.size)] = special
    return call.replaced({name: array})


def check_not_finite(override: Override, call: Call) -> None:
    with np.errstate(all="ignore"):
        actual, expected = override.results(call), reference(call)
        exact = reference(call.astype("float64"))
    for a, e, x in zip(actual, expected, exact, strict=True):
        if e is not None:
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e), str(call))
            # Which of them infinity becomes may hang on a rounding: ∞ − ∞, 0 · ∞.
            agreed = np.isinf(a) & np.isinf(e) & (e == x)
            np.testing.assert_array_equal(a[agreed], np.asarray(e)[agreed], str(call))


def check_drawn(override: Override, data: st.DataObject) -> None:
    case = data.draw(drawn_cases(pair_of(override.kernel)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    drawn = [call_of(override.kernel, case, "float32", seed + k) for k in range(3)]
    layouts = {name: data.draw(st.sampled_from(sorted(LAYOUTS))) for name in drawn[0].arrays}
    (judged,) = judge([[call] for call in drawn])
    check_accuracy(override, judged, layouts)


def check_mistakes(override: Override, calls: list[Call]) -> None:
    """Check that a mistaken call ends like the reference's, in the same error or values."""
    on_a_gpu = override.backend.name == "cupy"
    for call in calls:
        for mistake in mistaken(call.map(_without_subnormals) if on_a_gpu else call):
            if on_a_gpu and _names_nothing(mistake):
                continue
            expected = _outcome(reference, mistake)
            actual = _outcome(override.results, mistake)
            if isinstance(expected, RefkdError):
                assert repr(actual) == repr(expected), mistake
            elif isinstance(expected, Exception):
                assert isinstance(actual, Exception), mistake
            else:
                check_near(mistake, actual, expected)


def check_near(call: Call, actual: Any, expected: Any) -> None:
    assert not isinstance(actual, Exception), (call, actual)
    check_alike(call, actual, expected)
    for a, e in zip(actual, expected, strict=True):
        if e is not None and np.asarray(e).dtype.char in "fd":
            assert error(a, e) <= tolerance(e.dtype.newbyteorder("="), "product") * size(e), call


def _without_subnormals(x: Any) -> Any:
    """Return an array as a GPU takes it: what is too small for float32's exponent is 0."""
    return np.where(np.abs(x) < np.finfo("f").tiny, x.dtype.type(0), x) if x.dtype == "f" else x


def _names_nothing(mistake: Call) -> bool:
    """Return whether an index is none of its plane, or a label no class, which nobody checks.

    With NumPy it ends elsewhere, or in an IndexError. A GPU, which cannot raise one, leaves out the
    index, and makes the loss NaN.
    """
    given = mistake.arguments
    if "indices: ends with" in mistake.label and mistake.kernel == "max_pool2d_backward":
        numbers, count = given["indices"], math.prod(given["input_shape"][2:])
    elif "labels: ends with" in mistake.label and mistake.kernel == "softmax_kd_forward":
        numbers, count = given["labels"], given["student_logits"].shape[1]
    else:
        return False
    return bool(((numbers < 0) | (numbers >= count)).any())


def _outcome(function: Callable[[Call], Any], call: Call) -> Any:
    """Return what a call comes to, or the error that it ends with."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex numbers that a cast makes real
        try:
            return function(call)
        except Exception as error:
            return error
