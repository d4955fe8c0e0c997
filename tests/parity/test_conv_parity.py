"""Convolution against PyTorch on the CPU, in float64, by random cotangents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops
from refkd.testing.strategies import ConvGeometry, conv_geometries

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")


@given(conv_geometries(), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_conv2d(
    assert_parity, autograd, geometry: ConvGeometry, bias: bool, channels_last: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = (rng.standard_normal(s) for s in (geometry.x_shape, geometry.weight_shape))
    b, dy = (rng.standard_normal(s) for s in (geometry.bias_shape, geometry.y_shape))
    inputs = (x, weight, b) if bias else (x, weight)
    theirs = autograd(lambda *a: torch.nn.functional.conv2d(*a, **geometry.options), inputs, dy)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y = ops.conv2d_forward(x, weight, b if bias else None, **geometry.options)
    ours = (y, *ops.conv2d_backward(dy, x, weight, **geometry.options))
    for a, e in zip(ours[: len(theirs)], theirs, strict=True):
        assert_parity(a, e, 1.0)  # sums of products of standard normal numbers
