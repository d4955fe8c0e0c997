"""The padded shortcut: what it keeps, that its backward is its exact adjoint, its errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError, DtypeError, ShapeError
from refkd.ops import padded_shortcut_backward, padded_shortcut_forward

SHAPE = st.tuples(*(st.integers(0 if axis == 0 else 1, 5) for axis in range(4)))
STRIDE = st.integers(1, 4)
ZEROS = st.tuples(st.integers(0, 3), st.integers(0, 3))
SEED = st.integers(0, 2**32 - 1)
few = settings(max_examples=50, deadline=None)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@given(SHAPE, STRIDE, ZEROS, SEED)
@few
def test_each_entry_of_y_is_one_of_x_or_zero(
    shape: tuple[int, ...], stride: int, zeros: tuple[int, int], seed: int
) -> None:
    x = normal(seed, shape)
    y = padded_shortcut_forward(x, stride=stride, zeros=zeros)
    rows, columns = (len(range(0, side, stride)) for side in shape[2:])
    assert y.shape == (shape[0], sum(zeros) + shape[1], rows, columns)
    for n, c, p, q in np.ndindex(y.shape):
        inside = 0 <= c - zeros[0] < shape[1]
        expected = x[n, c - zeros[0], p * stride, q * stride] if inside else 0.0
        assert y[n, c, p, q] == expected


@given(SHAPE, STRIDE, ZEROS, SEED)
@few
def test_backward_is_the_exact_adjoint(
    shape: tuple[int, ...], stride: int, zeros: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Sums of products of small integers are exact in float64, in any order.
    x = rng.integers(-9, 10, shape).astype(np.float64)
    y = padded_shortcut_forward(x, stride=stride, zeros=zeros)
    dy = rng.integers(-9, 10, y.shape).astype(np.float64)
    dx = padded_shortcut_backward(dy, input_shape=shape, stride=stride, zeros=zeros)
    assert dx.shape == shape
    assert (dx * x).sum() == (dy * y).sum()


def test_channels_last_in_is_channels_last_out() -> None:
    x = normal(0, (2, 4, 6, 3)).transpose(0, 3, 1, 2)
    y = padded_shortcut_forward(x, stride=2, zeros=(1, 2))
    dx = padded_shortcut_backward(y, input_shape=x.shape, stride=2, zeros=(1, 2))
    for array in (y, dx):
        assert array.transpose(0, 2, 3, 1).flags.c_contiguous
    expected = padded_shortcut_forward(np.ascontiguousarray(x), stride=2, zeros=(1, 2))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("stride", [0, -1, 1.0, "2", True, None])
def test_the_stride_is_a_positive_integer(stride: Any) -> None:
    with pytest.raises(ConfigError, match="stride must be an integer >= 1"):
        padded_shortcut_forward(np.ones((1, 1, 2, 2)), stride=stride, zeros=(0, 0))


@pytest.mark.parametrize("zeros", [(-1, 0), (1,), (0, 0, 0), (0.5, 0), "ab", None, (True, 0)])
def test_zeros_are_two_numbers_of_channels(zeros: Any) -> None:
    with pytest.raises(ConfigError, match=r"zeros (must be two|\w+ the channels of x must be) "):
        padded_shortcut_forward(np.ones((1, 1, 2, 2)), stride=1, zeros=zeros)


@pytest.mark.parametrize("shape", [(3, 4, 4), (4,), (1, 2, 3, 4, 5)])
def test_x_is_a_batch_of_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="padded_shortcut_forward: x must be a batch of images"):
        padded_shortcut_forward(np.ones(shape), stride=1, zeros=(0, 0))


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (1, 4, 3, 2), (4, 2, 2), (2, 4, 2, 2)])
def test_a_cotangent_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"dy must have shape \(1, 4, 2, 2\)"):
        padded_shortcut_backward(np.ones(shape), input_shape=(1, 2, 4, 3), stride=2, zeros=(1, 1))


def test_integers_are_refused() -> None:
    with pytest.raises(DtypeError, match="padded_shortcut_forward"):
        padded_shortcut_forward(np.ones((1, 1, 2, 2), np.int64), stride=1, zeros=(0, 0))


@pytest.mark.parametrize(
    "input_shape", [None, 3, "2344", (2, 3, 4), (2, 3, 4.0, 4), (2, 3, "4", 4), (2, 3, -4, 4)]
)
def test_an_input_shape_that_is_none_is_refused(input_shape: Any) -> None:
    words = f"input_shape must be .*four integers >= 0 .*got {re.escape(repr(input_shape))}"
    with pytest.raises(ShapeError, match=f"padded_shortcut_backward: {words}"):
        padded_shortcut_backward(
            np.ones((2, 3, 2, 2)), input_shape=input_shape, stride=2, zeros=(0, 0)
        )
