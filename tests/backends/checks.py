"""What tests of the CuPy backend ask of an override, on the host and on the device."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.backends.calls import LAYOUTS, Call, call_of, pair_of, reference
from tests.backends.drawn import drawn_cases
from tests.backends.judge import check_accuracy, judge
from tests.backends.override import Override

__all__ = ["check_drawn", "check_not_finite", "planted"]


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
