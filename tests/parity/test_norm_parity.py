"""Batch, layer and group norm against PyTorch: float64 to rounding, float32 no less accurate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd import ops

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional

EPS32 = float(np.finfo(np.float32).eps)
SEED = st.integers(0, 2**32 - 1)
SPACE = st.lists(st.integers(1, 4), max_size=3).map(tuple)
few = settings(max_examples=20, deadline=None)


def draw(seed: int, shape: tuple[int, ...], width: int) -> tuple[np.ndarray, ...]:
    """Return dy, x, weight and bias."""
    rng = np.random.default_rng(seed)
    dy, x = rng.standard_normal(shape), 0.5 + 2 * rng.standard_normal(shape)
    return dy, x, rng.uniform(0.5, 2, width), rng.standard_normal(width)


def sizes(dy: np.ndarray, weight: np.ndarray, rstd: np.ndarray) -> tuple[float, ...]:
    """Return the size of what is added up for y, dx, dweight and dbias."""
    largest = np.abs(dy).max()
    return 4.0, largest * weight.max() * np.max(rstd), np.abs(dy).sum(), np.abs(dy).sum()


@few
@given(batch=st.integers(3, 6), channels=st.integers(1, 4), space=SPACE, seed=SEED)
def test_batch_norm_in_training(
    assert_parity, autograd, batch: int, channels: int, space: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(seed, (batch, channels, *space), channels)
    y, mean, var, rstd = ops.batch_norm_forward(x, weight, bias, None, None, eps=0.1)
    gradients = ops.batch_norm_backward(dy, x, weight, mean, rstd, batch_statistics=True)
    theirs = autograd(
        lambda a, w, b: F.batch_norm(a, None, None, w, b, training=True, eps=0.1),
        (x, weight, bias),
        dy,
    )
    for a, b, size in zip((y, *gradients), theirs, sizes(dy, weight, rstd), strict=True):
        assert_parity(a, b, size)

    tensors = map(torch.from_numpy, (x, weight, bias))
    _, saved_mean, saved_rstd = torch.native_batch_norm(*tensors, None, None, True, 0.1, 0.1)
    assert_parity(mean, saved_mean.numpy(), np.abs(x).max())
    assert_parity(rstd, saved_rstd.numpy())
    assert_parity(var, x.var(axis=(0, *range(2, x.ndim))))
    # What PyTorch's forward saves serves our backward.
    saved = (saved_mean.numpy(), saved_rstd.numpy())
    for a, b, size in zip(
        ops.batch_norm_backward(dy, x, weight, *saved, batch_statistics=True),
        theirs[1:],
        sizes(dy, weight, rstd)[1:],
        strict=True,
    ):
        assert_parity(a, b, size)


@few
@given(batch=st.integers(1, 6), channels=st.integers(1, 4), space=SPACE, seed=SEED)
def test_batch_norm_in_evaluation(
    assert_parity, autograd, batch: int, channels: int, space: tuple[int, ...], seed: int
) -> None:
    dy, x, weight, bias = draw(seed, (batch, channels, *space), channels)
    rng = np.random.default_rng(seed)
    mean, var = rng.standard_normal(channels), rng.uniform(0.1, 3, channels)
    y, *_, rstd = ops.batch_norm_forward(x, weight, bias, mean, var)
    gradients = ops.batch_norm_backward(dy, x, weight, mean, rstd, batch_statistics=False)
    running = torch.from_numpy(mean), torch.from_numpy(var)
    theirs = autograd(lambda a, w, b: F.batch_norm(a, *running, w, b), (x, weight, bias), dy)
    size = np.abs(x).max() * rstd.max() * weight.max()
    for a, b in zip((y, *gradients), theirs, strict=True):
        assert_parity(a, b, size * max(1, np.abs(dy).sum()))


def test_the_running_variance_of_pytorch_is_ours_times_n_over_n_minus_1(assert_parity) -> None:
    _, x, weight, bias = draw(0, (4, 3, 2, 2), 3)
    layer = torch.nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    layer(torch.from_numpy(x))
    _, mean, var, _ = ops.batch_norm_forward(x, weight, bias, None, None)
    assert_parity(0.3 * mean, layer.running_mean.numpy())
    assert_parity(0.7 + 0.3 * var * 16 / 15, layer.running_var.numpy())


def test_a_single_value_per_channel_is_refused_by_both() -> None:
    x = np.ones((1, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.from_numpy(x), None, None, training=True)
    with pytest.raises(ValueError, match="at least 2 values per channel"):
        ops.batch_norm_forward(x, np.ones(3), np.ones(3), None, None)


@few
@given(leading=st.lists(st.integers(1, 4), max_size=3), width=st.integers(3, 9), seed=SEED)
def test_layer_norm(assert_parity, autograd, leading: list[int], width: int, seed: int) -> None:
    dy, x, weight, bias = draw(seed, (*leading, width), width)
    y, mean, rstd = ops.layer_norm_forward(x, weight, bias, eps=0.1)
    gradients = ops.layer_norm_backward(dy, x, weight, mean, rstd)
    theirs = autograd(
        lambda a, w, b: F.layer_norm(a, (width,), w, b, eps=0.1), (x, weight, bias), dy
    )
    for a, b, size in zip((y, *gradients), theirs, sizes(dy, weight, rstd), strict=True):
        assert_parity(a, b, size)
    tensors = map(torch.from_numpy, (x, weight, bias))
    _, *saved = torch.native_layer_norm(next(tensors), (width,), *tensors, 0.1)
    for a, b in zip((mean, rstd), saved, strict=True):
        assert_parity(a, b.numpy().reshape(leading), np.abs(x).max())


@few
@given(
    batch=st.integers(1, 4),
    groups=st.integers(1, 3),
    each=st.integers(1, 4),
    space=SPACE,
    seed=SEED,
)
def test_group_norm(
    assert_parity, autograd, batch: int, groups: int, each: int, space: tuple[int, ...], seed: int
) -> None:
    channels = groups * each
    dy, x, weight, bias = draw(seed, (batch, channels, *space, 3), channels)
    y, mean, rstd = ops.group_norm_forward(x, weight, bias, num_groups=groups, eps=0.1)
    gradients = ops.group_norm_backward(dy, x, weight, mean, rstd, num_groups=groups)
    theirs = autograd(lambda a, w, b: F.group_norm(a, groups, w, b, eps=0.1), (x, weight, bias), dy)
    for a, b, size in zip((y, *gradients), theirs, sizes(dy, weight, rstd), strict=True):
        assert_parity(a, b, size)
    pixels = x[0, 0].size
    tensors = map(torch.from_numpy, (x, weight, bias))
    _, *saved = torch.native_group_norm(*tensors, batch, channels, pixels, groups, 0.1)
    for a, b in zip((mean, rstd), saved, strict=True):
        assert_parity(a, b.numpy(), np.abs(x).max())


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "group_norm"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_error_in_float32_is_no_larger_than_that_of_pytorch(
    autograd, name: str, mean: float, channels_last: bool
) -> None:
    width = 24 if name == "layer_norm" else 8
    dy, x, weight, bias = (a.astype("f") for a in draw(0, (16, 8, 12, 24), width))
    dy, x = dy + np.float32(0.5), x + np.float32(mean)
    if channels_last:
        dy, x = (np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) for a in (dy, x))
    function = {
        "batch_norm": lambda a, w, b: F.batch_norm(a, None, None, w, b, training=True),
        "layer_norm": lambda a, w, b: F.layer_norm(a, (width,), w, b),
        "group_norm": lambda a, w, b: F.group_norm(a, 4, w, b),
    }[name]
    options = {"num_groups": 4} if name == "group_norm" else {}

    def refkd(dy: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple:
        if name == "batch_norm":
            y, mean, _, rstd = ops.batch_norm_forward(x, w, b, None, None)
            return y, *ops.batch_norm_backward(dy, x, w, mean, rstd, batch_statistics=True)
        y, mean, rstd = getattr(ops, f"{name}_forward")(x, w, b, **options)
        return y, *getattr(ops, f"{name}_backward")(dy, x, w, mean, rstd, **options)

    ours = refkd(dy, x, weight, bias)
    exact = refkd(*(a.astype(np.float64) for a in (dy, x, weight, bias)))
    theirs = autograd(function, (x, weight, bias), dy)
    terms = np.sqrt(dy.size / width)
    for a, b, e, size in zip(ours, theirs, exact, (1.0, 1.0, terms, terms), strict=True):
        assert a.dtype == b.dtype == np.float32
        error, their_error = (np.abs(z.astype(np.float64) - e).max() for z in (a, b))
        assert error <= 4 * their_error + 4 * EPS32 * max(size, np.abs(e).max())
