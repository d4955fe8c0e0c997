"""Pooling, upsampling and joining against PyTorch on the CPU, in float64, by random cotangents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops
from tests.ops.pool_geometries import Geometry, geometries

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

SEED = st.integers(0, 2**32 - 1)
some = settings(max_examples=60, deadline=None)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(geometry=geometries(), seed=SEED, nans=st.sampled_from([0.0, 0.1]))
@some
def test_max_pool(assert_parity, autograd, geometry: Geometry, seed: int, nans: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, geometry.shape).astype(np.float64)  # of many ties
    x[rng.random(x.shape) < nans] = np.nan
    dy = rng.standard_normal(geometry.output_shape)
    y, indices = ops.max_pool2d_forward(x, **geometry.options)
    their_y, their_dx = autograd(lambda a: F.max_pool2d(a, **geometry.options), (x,), dy)
    _, theirs = F.max_pool2d(torch.tensor(x), **geometry.options, return_indices=True)
    np.testing.assert_array_equal(y, their_y, strict=True)
    np.testing.assert_array_equal(indices, theirs.numpy(), strict=True)
    assert_parity(ops.max_pool2d_backward(dy, indices, input_shape=x.shape), their_dx)


@given(geometry=geometries(max_dilation=1), seed=SEED, count_include_pad=st.booleans())
@some
def test_avg_pool(
    assert_parity, autograd, geometry: Geometry, seed: int, count_include_pad: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(geometry.shape), rng.standard_normal(geometry.output_shape)
    options = {**geometry.options_without_dilation, "count_include_pad": count_include_pad}
    y, dx = autograd(lambda a: F.avg_pool2d(a, **options), (x,), dy)
    assert_parity(ops.avg_pool2d_forward(x, **options), y, 1.0)  # means of standard normal numbers
    assert_parity(ops.avg_pool2d_backward(dy, input_shape=x.shape, **options), dx, 1.0)


@given(plane=sizes, output=sizes | st.just((1, 1)), seed=SEED)
@some
def test_adaptive_avg_pool(
    assert_parity, autograd, plane: tuple[int, int], output: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, 3, *plane)), rng.standard_normal((2, 3, *output))
    y, dx = autograd(lambda a: F.adaptive_avg_pool2d(a, output), (x,), dy)
    ours = ops.adaptive_avg_pool2d_forward(x, output_size=output)
    assert_parity(ours, y, 1.0)  # means of standard normal numbers
    assert_parity(ops.adaptive_avg_pool2d_backward(dy, input_shape=x.shape), dx, 1.0)


@given(
    plane=sizes,
    factors=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    mode=st.sampled_from(["nearest", "nearest-exact"]),
    seed=SEED,
)
@some
def test_upsampling(
    assert_parity,
    autograd,
    plane: tuple[int, int],
    factors: tuple[int, int],
    mode: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, *plane))
    y = ops.upsample_nearest2d_forward(x, scale_factor=factors)
    dy = rng.standard_normal(y.shape)
    their_y, dx = autograd(lambda a: F.interpolate(a, scale_factor=factors, mode=mode), (x,), dy)
    np.testing.assert_array_equal(y, their_y, strict=True)
    # Sums of up to 64 standard normal numbers.
    assert_parity(ops.upsample_nearest2d_backward(dy, scale_factor=factors), dx, 1.0)


@pytest.mark.parametrize("size", [2, 7, 14, 28, 112])
def test_the_pools_of_googlenet_have_the_sizes_of_pytorch(size: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, size, size + 1))
    for options in (
        {"kernel_size": 2, "stride": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True},
        *([{"kernel_size": 3, "stride": 2, "ceil_mode": True}] if size > 2 else []),
    ):
        y, indices = ops.max_pool2d_forward(x, **options)
        theirs = F.max_pool2d(torch.tensor(x), **options, return_indices=True)
        for ours, their in zip((y, indices), theirs, strict=True):
            np.testing.assert_array_equal(ours, their.numpy(), strict=True)


def test_concatenate_and_split(autograd) -> None:
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((2, channels, 3, 3)) for channels in (1, 4, 2)]
    y, *dxs = autograd(lambda *a: torch.cat(a, dim=1), tuple(xs), rng.standard_normal((2, 7, 3, 3)))
    dy = np.concatenate(dxs, axis=1)
    np.testing.assert_array_equal(ops.concatenate_forward(xs, axis=1), y)
    for ours, theirs in zip(
        ops.concatenate_backward(dy, sizes=(1, 4, 2), axis=1), dxs, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(
        ops.split_forward(y, sizes=(1, 4, 2), axis=1),
        torch.split(torch.tensor(y), [1, 4, 2], dim=1),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs.numpy())
