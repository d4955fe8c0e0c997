"""The padded shortcut as a layer: exact, without parameters, alone and around a body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.nn.conv import Conv2d
from refkd.nn.residual import Residual
from refkd.nn.sequential import Sequential
from refkd.nn.shortcut import PaddedShortcut
from refkd.testing import check_grad
from refkd.testing.adapters.layer import from_layer

LAYER = PaddedShortcut(2, (1, 2))


def assert_gradient_is_exact(layer: Any, x: np.ndarray) -> None:
    params, state = layer.init(np.random.default_rng(0), dtype=np.float64)
    subject = from_layer(layer, params, state, x, train=True)
    check_grad(*subject, method="complex", mode="full").raise_if_failed()


def test_the_gradient_is_exact() -> None:
    assert_gradient_is_exact(LAYER, np.random.default_rng(1).standard_normal((2, 3, 5, 4)))


def test_the_gradient_around_a_body_is_exact() -> None:
    body = Sequential((("conv1", Conv2d(3, 6, 3, stride=2, padding=1)),))
    block = Residual(body, LAYER, shortcut_name="shortcut")
    assert list(block.shapes()[0]) == ["conv1.weight", "conv1.bias"]
    assert_gradient_is_exact(block, np.random.default_rng(2).standard_normal((2, 3, 5, 4)))


def test_it_has_no_parameters_no_state_and_no_features() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 4))
    y, cache = LAYER.forward({}, {}, x, train=True)
    assert y.shape == (2, 6, 2, 2)
    np.testing.assert_array_equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert LAYER.shapes() == LAYER.init(np.random.default_rng(0)) == ({}, {})
    assert list(LAYER.features(cache)) == []
    assert LAYER.backward({}, cache, y, need_dx=False) == (None, {})
    with pytest.raises(ConfigError, match=r"PaddedShortcut.backward: tap 'x'"):
        LAYER.backward({}, cache, y, taps={"x": y})


@pytest.mark.parametrize(
    ("stride", "zeros", "message"),
    [
        (0, (1, 1), "stride must be an integer >= 1, got 0"),
        (2.0, (1, 1), "stride must be an integer >= 1, got 2.0"),
        (2, (1, -1), "zeros must be at least 0"),
        (2, (1, 1, 1), "zeros must be an integer or a pair"),
    ],
)
def test_numbers_out_of_range_are_refused_on_construction(
    stride: Any, zeros: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"PaddedShortcut: {message}"):
        PaddedShortcut(stride, zeros)
