"""The gradient of every registered kernel pair, on all its cases, and the kinks by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refkd.losses import huber_backward
from refkd.ops import relu_backward, relu_forward
from refkd.testing.pairs import PairCase, all_cases, check_pair
from refkd.testing.tolerances import GRADIENT


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_the_backward_is_the_derivative_of_the_forward(case: PairCase) -> None:
    report = check_pair(case).raise_if_failed()
    assert report.method == "complex"
    assert report.mode == "full"
    inputs = case.inputs(case.generator(0))
    assert report.entries == sum(inputs[name].size for name in case.gradients if name)
    assert report.worst is None or report.worst.scaled_error <= GRADIENT


def test_the_slope_of_relu_at_zero_of_either_sign_is_zero() -> None:
    x = np.array([-0.0, 0.0, np.nextafter(0, 1), np.nextafter(0, -1)])
    dx = relu_backward(np.array([2.0, -3.0, 5.0, 7.0]), relu_forward(x))
    np.testing.assert_array_equal(dx, [0, 0, 5, 0])


@pytest.mark.parametrize("delta", [0.5, 1.0, 8.0])
def test_the_slope_of_huber_is_continuous_at_delta(delta: float) -> None:
    d = np.array([np.nextafter(delta, 0), delta, np.nextafter(delta, 10)])
    for sign in (-1, 1):
        dinput, dtarget = huber_backward(1.0, sign * d, np.zeros(3), delta=delta, reduction="sum")
        np.testing.assert_allclose(dinput, sign * delta, rtol=2e-16)
        np.testing.assert_array_equal(dtarget, -dinput)
