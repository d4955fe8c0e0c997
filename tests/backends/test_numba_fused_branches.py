"""Branches and pools of rewritten networks, and the kernels behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.dispatch import get_backend, use_backend
from refkd.errors import BackendUnavailable, ConfigError, ShapeError
from refkd.nn import (
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Parallel,
    ReLU,
    Sequential,
)
from refkd.nn.layer import Layer
from refkd.ops import relu_backward
from tests.backends.rewritten import assert_same, outcome

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import join, pool
from refkd_numba.fused.max_pool import FusedMaxPool2d
from refkd_numba.fused.network import fuse


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba"):
        yield


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def double(x: Any) -> Any:
    return x.astype(np.float64)


def test_branches_of_other_sizes_are_not_joined() -> None:
    branches = Parallel((("a", Conv2d(3, 8, 1)), ("b", Conv2d(3, 8, 3))))
    layer = Sequential.numbered(branches, Concat())
    params, state = layer.init(np.random.default_rng(0))
    with pytest.raises(ShapeError, match="may differ in length along axis 1 only"):
        fuse(layer).forward(params, state, draw(2, 3, 9, 9), train=True)


def test_parts_that_do_not_fit_go_to_the_reference() -> None:
    a, b = draw(2, 4, 3, 5, 5)
    for parts in (
        (a, b),
        (a, b[:3]),
        (a, double(b)),
        (double(a), double(b)),
        (a[0], b[0]),
        [a],
        (),
    ):
        assert_same(*(outcome(n.infer, {}, {}, parts) for n in (fuse(Concat()), Concat())))


def test_a_cotangent_that_does_not_fit_goes_to_the_reference() -> None:
    a, b = draw(2, 4, 3, 5, 5)
    y, cache = fuse(Concat()).forward({}, {}, (a, b[:, :2]), train=True)
    for dy in (y, y[:, :4], double(y), y[0]):
        assert_same(*(outcome(n.backward, {}, cache, dy) for n in (fuse(Concat()), Concat())))


def test_branches_pass_back_what_they_do_in_the_given_network() -> None:
    branches = (
        ("a", Sequential.numbered(Conv2d(3, 4, 3), ReLU())),
        ("b", Conv2d(3, 2, 1)),
        ("c", Sequential.numbered(Flatten(), Linear(75, 5))),
    )
    params, state = Parallel(branches).init(np.random.default_rng(0))
    results = []
    for layer in (fuse(Parallel(branches)), Parallel(branches)):
        y, cache = layer.forward(params, state, draw(4, 3, 5, 5), train=True)
        a, b, c = (draw(*output.shape, seed=i) for i, output in enumerate(y))
        assert {"a.1", "a", "b", "c.1"} <= dict(layer.features(cache)).keys()
        results.append(
            (
                layer.backward(params, cache, (a, b, c)),
                layer.backward(params, cache, (a, None, c)),
                layer.backward(params, cache, None, taps={"b": b}),
                layer.backward(params, cache, (a, b, c), taps={"a.1": a, "c": c}),
                layer.backward(params, cache, (a, b, c), need_dx=False),
            )
        )
        with pytest.raises(ShapeError, match="tuple of 3 cotangents"):
            layer.backward(params, cache, (a, b))
        with pytest.raises(ConfigError, match="tap 'd'"):
            layer.backward(params, cache, (a, b, c), taps={"d": a})
    assert_same(*results)


def test_branches_of_a_tuple_pass_back_a_tuple() -> None:
    layer = fuse(Parallel((("a", Concat()), ("b", Concat()))))
    x = tuple(draw(2, 4, 3, 5, 5))
    y, cache = layer.forward({}, {}, x, train=True)
    dx, _ = layer.backward({}, cache, y)
    assert_same(dx, (2 * x[0], 2 * x[1]))


@pytest.mark.parametrize(
    "layers",
    [
        (Conv2d(3, 4, 3), ReLU()),
        (BatchNorm2d(3), ReLU()),
        (Conv2d(3, 4, 3), BatchNorm2d(4)),
        (Conv2d(3, 4, 3), BatchNorm2d(4), ReLU()),
        (MaxPool2d((3, 2), (2, 1), (1, 0), (2, 1)),),
    ],
)
def test_a_cotangent_that_no_kernel_serves(layers: tuple[Layer, ...]) -> None:
    layer = Sequential.numbered(*layers)
    params, state = layer.init(np.random.default_rng(0))
    x = draw(2, 3, 9, 8)
    y, _ = layer.forward(params, state, x, train=True)
    for dy in (y, y[:1], y[:, :1], y[0], double(y)):
        results = []
        for network in (fuse(layer), layer):
            _, cache = network.forward(params, state, x, train=True)
            results.append(outcome(network.backward, params, cache, dy))
        assert_same(*results)


def test_a_pool_of_more_taps_than_a_byte_counts_stays_as_it_is() -> None:
    most = pool.MOST_TAPS
    assert type(fuse(MaxPool2d((1, most)))) is FusedMaxPool2d
    assert type(fuse(MaxPool2d((1, most + 1)))) is MaxPool2d
    x = draw(1, 2, 1, 2 * most)
    y, taps = pool.max_pool_compact_forward(x, (1, most), (1, 1), (0, 0), (1, 1), (1, most + 1))
    np.testing.assert_array_equal(y[..., 0], x[..., :most].max(axis=-1))
    np.testing.assert_array_equal(taps[..., 0], x[..., :most].argmax(axis=-1))
    with pytest.raises(ConfigError, match="at most 255 taps"):
        pool.max_pool_compact_forward(x, (2, most), (1, 1), (1, 0), (1, 1), (1, most + 1))


def test_relu_s_mask_multiplies_as_relu_backward_does() -> None:
    # An infinite dy that does not pass is 0 · ∞, in the gradient and in its sum.
    y, dy = np.maximum(draw(3, 4, 4, 5), 0), draw(3, 4, 4, 5, seed=1)
    for channel, value in enumerate((np.inf, -np.inf, np.nan)):
        dy[(*np.argwhere(y[..., channel] == 0)[0], channel)] = value
    dx, dbias = join.masked_gradient(dy, y)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(dx, relu_backward(dy, y))
    np.testing.assert_array_equal(np.isnan(dbias), [True, True, True, False, False])
