"""Attention against PyTorch: float64 to rounding, float32 no less accurate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops
from refkd.testing.strategies import AttentionShape, attention_shapes

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

EPS32 = float(np.finfo(np.float32).eps)
SEED = st.integers(0, 2**32 - 1)
VALUE_WIDTH = st.integers(1, 5)
some = settings(max_examples=40, deadline=None)


def draw(seed: int, shape: AttentionShape, value_width: int) -> tuple[np.ndarray, ...]:
    """Return dy, q, k and v."""
    rng = np.random.default_rng(seed)
    sizes = (
        (*shape.query_shape[:3], value_width),
        shape.query_shape,
        shape.key_shape,
        (*shape.key_shape[:3], value_width),
    )
    return tuple(rng.standard_normal(size) for size in sizes)


def ours(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float
) -> tuple[np.ndarray, ...]:
    """Return y, dq, dk and dv."""
    y, probabilities = ops.attention_forward(q, k, v, scale=scale)
    return y, *ops.attention_backward(dy, q, k, v, probabilities, scale=scale)


def sizes_of(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float
) -> tuple[float, ...]:
    """Return the size of what is added up for y, dq, dk and dv."""
    largest = [float(np.abs(array).max()) for array in (dy, q, k, v)]
    dscores = scale * largest[0] * largest[3] * dy.shape[-1]
    queries, keys = q.shape[2], k.shape[2]
    return (
        largest[3],
        dscores * largest[2] * keys,
        dscores * largest[1] * queries,
        largest[0] * queries,
    )


@some
@given(attention_shapes(masks="none"), VALUE_WIDTH, st.floats(0.05, 2), SEED)
def test_attention(
    assert_parity, autograd, shape: AttentionShape, value_width: int, scale: float, seed: int
) -> None:
    dy, *given = draw(seed, shape, value_width)
    theirs = autograd(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale), tuple(given), dy
    )
    for a, b, size in zip(
        ours(dy, *given, scale), theirs, sizes_of(dy, *given, scale), strict=True
    ):
        assert_parity(a, b, size)


@some
@given(attention_shapes(masks="none"), VALUE_WIDTH, SEED)
def test_the_default_scale_of_pytorch_is_one_over_the_root_of_the_width(
    assert_parity, shape: AttentionShape, value_width: int, seed: int
) -> None:
    _, *given = draw(seed, shape, value_width)
    y, _ = ops.attention_forward(*given, scale=1 / math.sqrt(shape.head_dim))
    theirs = F.scaled_dot_product_attention(*map(torch.from_numpy, given))
    assert_parity(y, theirs.numpy(), np.abs(given[2]).max())


@some
@given(attention_shapes(masks="none"), VALUE_WIDTH, SEED)
def test_what_the_math_of_pytorch_saves_serves_our_backward(
    assert_parity, shape: AttentionShape, value_width: int, seed: int
) -> None:
    dy, *given = draw(seed, shape, value_width)
    tensors = map(torch.from_numpy, given)
    _, saved = torch.ops.aten._scaled_dot_product_attention_math(*tensors, scale=0.7)
    _, probabilities = ops.attention_forward(*given, scale=0.7)
    assert_parity(probabilities, saved.numpy(), 1.0)
    sizes = sizes_of(dy, *given, 0.7)
    for a, b, size in zip(
        ops.attention_backward(dy, *given, saved.numpy(), scale=0.7),
        ours(dy, *given, 0.7)[1:],
        sizes[1:],
        strict=True,
    ):
        assert_parity(a, b, size)


@pytest.mark.parametrize(("tokens", "width"), [(65, 32), (197, 64)])
@pytest.mark.parametrize("magnitude", [1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_in_float32_is_no_larger_than_that_of_pytorch(
    autograd, tokens: int, width: int, magnitude: float, seed: int
) -> None:
    shape = AttentionShape(2, 2, tokens, tokens, width)
    dy, q, k, v = (array.astype(np.float32) for array in draw(seed, shape, width))
    given, scale = (np.float32(magnitude) * q, k, v), 1 / math.sqrt(width)
    exact = ours(*(a.astype(np.float64) for a in (dy, *given)), scale)
    theirs = autograd(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale), given, dy
    )
    for a, b, e in zip(ours(dy, *given, scale), theirs, exact, strict=True):
        assert a.dtype == b.dtype == np.float32
        error, their_error = (np.abs(x.astype(np.float64) - e).max() for x in (a, b))
        assert error <= 4 * their_error + 4 * EPS32 * np.abs(e).max()
