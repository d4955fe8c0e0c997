"""The kernels of refkd.ops against PyTorch on the CPU, in float64, by random cotangents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

SHAPE = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
SEED = st.integers(0, 2**32 - 1)
few = settings(max_examples=20, deadline=None)


@given(leading=st.lists(st.integers(1, 5), max_size=2).map(tuple), seed=SEED)
@few
def test_linear_with_bias(assert_parity, autograd, leading: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    fan_in, fan_out = rng.integers(1, 9, 2)
    x, weight = rng.standard_normal((*leading, fan_in)), rng.standard_normal((fan_out, fan_in))
    bias, dy = rng.standard_normal(fan_out), rng.standard_normal((*leading, fan_out))
    theirs = autograd(F.linear, (x, weight, bias), dy)
    ours = (ops.linear_forward(x, weight, bias), *ops.linear_backward(dy, x, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert_parity(a, b, 1.0)  # sums of products of standard normal numbers


@given(leading=st.lists(st.integers(1, 5), max_size=2).map(tuple), seed=SEED)
@few
def test_linear_without_bias(assert_parity, autograd, leading: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    fan_in, fan_out = rng.integers(1, 9, 2)
    x, weight = rng.standard_normal((*leading, fan_in)), rng.standard_normal((fan_out, fan_in))
    dy = rng.standard_normal((*leading, fan_out))
    theirs = autograd(F.linear, (x, weight), dy)
    ours = (ops.linear_forward(x, weight, None), *ops.linear_backward(dy, x, weight)[:2])
    for a, b in zip(ours, theirs, strict=True):
        assert_parity(a, b, 1.0)  # sums of products of standard normal numbers


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "silu"])
@given(shape=SHAPE, seed=SEED, scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
@few
def test_activation(
    assert_parity, autograd, name: str, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = scale * rng.standard_normal(shape), rng.standard_normal(shape)
    function = torch.nn.functional.silu if name == "silu" else getattr(torch, name)
    y, dx = autograd(function, (x,), dy)
    ours = getattr(ops, f"{name}_forward")(x)
    assert_parity(ours, y)
    # In the tails the slopes are differences from 0 or 1, such as 1 − y².
    gradient = getattr(ops, f"{name}_backward")(dy, x if name == "silu" else ours)
    assert_parity(gradient, dx, np.abs(dy).max())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@given(shape=SHAPE, seed=SEED, scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
@few
def test_gelu(
    assert_parity, autograd, approximate: str, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = scale * rng.standard_normal(shape), rng.standard_normal(shape)
    y, dx = autograd(lambda a: F.gelu(a, approximate=approximate), (x,), dy)
    # Far left, x and dy multiply the rounding of 1 + erf and 1 + tanh.
    assert_parity(ops.gelu_forward(x, approximate=approximate), y, np.abs(x).max())
    gradient = ops.gelu_backward(dy, x, approximate=approximate)
    assert_parity(gradient, dx, np.abs(dy).max())


def test_relu_at_zero_has_the_slope_of_pytorch(autograd) -> None:
    x, dy = np.array([-1.0, -0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    y, dx = autograd(torch.relu, (x,), dy)
    ours = ops.relu_forward(x)
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(ops.relu_backward(dy, ours), dx)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(
    shape=SHAPE,
    seed=SEED,
    temperature=st.floats(0.5, 20),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
)
@few
def test_softmax_over_every_axis(
    assert_parity,
    autograd,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    temperature: float,
    scale: float,
) -> None:
    rng = np.random.default_rng(seed)
    # Multiples of 2^-10 and a power of two for T: both sides divide and shift exactly.
    x = np.round(scale * rng.standard_normal(shape) * 1024) / 1024
    temperature = 2.0 ** round(np.log2(temperature))
    dy = rng.standard_normal(shape)
    for axis in range(len(shape)):
        options = {"axis": axis, "temperature": temperature}
        function = getattr(torch, name)
        y, dx = autograd(lambda a, f=function, d=axis: f(a / temperature, dim=d), (x,), dy)
        ours = getattr(ops, f"{name}_forward")(x, **options)
        assert_parity(ours, y)
        gradient = getattr(ops, f"{name}_backward")(dy, ours, **options)
        # A saturated softmax has gradient 0 to rounding: its scale is that of dy/T.
        assert_parity(gradient, dx, np.abs(dy).max() / temperature)


@given(shape=SHAPE, seed=SEED, temperature=st.floats(0.5, 20))
@few
def test_softmax_at_any_temperature(
    assert_parity, autograd, shape: tuple[int, ...], seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    y, _ = autograd(lambda a: torch.softmax(a / temperature, dim=-1), (x,), dy)
    assert_parity(ops.softmax_forward(x, temperature=temperature), y)


@given(shape=SHAPE, seed=SEED, p=st.sampled_from([0.0, 0.1, 0.5, 0.9]))
@few
def test_dropout_by_a_given_mask(
    assert_parity, autograd, shape: tuple[int, ...], seed: int, p: float
) -> None:
    rng = np.random.default_rng(seed)
    x, dy, mask = rng.standard_normal(shape), rng.standard_normal(shape), rng.random(shape) >= p
    kept = torch.from_numpy(mask)
    y, dx = autograd(lambda a: a * kept / (1 - p), (x,), dy)
    assert_parity(ops.dropout_forward(x, mask, p=p), y)
    assert_parity(ops.dropout_backward(dy, mask, p=p), dx)


def test_dropout_is_the_function_of_pytorch_on_the_mask_it_drew(autograd) -> None:
    x = np.random.default_rng(0).standard_normal((20, 30))
    torch.manual_seed(0)
    y, dx = autograd(lambda a: F.dropout(a, 0.5), (x,), np.ones_like(x))
    mask = y != 0
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(ops.dropout_forward(x, mask, p=0.5), y)
    np.testing.assert_array_equal(ops.dropout_backward(np.ones_like(x), mask, p=0.5), dx)
