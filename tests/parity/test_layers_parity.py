"""What layers add to their kernels, against torch.nn on the CPU, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refkd.nn import BatchNorm2d, Conv2d, GroupNorm, KaimingNormal, Layer, LayerNorm, Linear, Normal

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")


def state_dict_of(module: Any) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy().copy() for name, t in module.state_dict().items()}


def draw_parameters(module: Any, rng: np.random.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))


STEPS = ["train", "train", "eval", "train", "eval", "train", "train", "eval"]


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize(("eps", "momentum"), [(1e-5, 0.1), (1e-3, 0.0), (0.1, 1.0), (1e-5, 0.73)])
@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (2, 1, 1, 1), (1, 3, 2, 1)])
def test_batch_norm_over_steps_of_training_and_evaluation(
    assert_parity: Any, shape: tuple[int, ...], eps: float, momentum: float, track: bool
) -> None:
    rng = np.random.default_rng(shape[1])
    channels = shape[1]
    layer = BatchNorm2d(channels, eps, momentum, track_running_stats=track)
    module = torch.nn.BatchNorm2d(
        channels, eps=eps, momentum=momentum, track_running_stats=track, dtype=torch.float64
    )
    draw_parameters(module, rng)
    params, state = layer.split_state_dict(state_dict_of(module))
    for step, mode in enumerate(STEPS):
        # Batches of different moments, or a wrong share would not show.
        x = (step - 2.5) + 2.0 ** (step % 3) * rng.standard_normal(shape)
        dy = rng.standard_normal(shape)
        module.train(mode == "train")
        given = torch.tensor(x, requires_grad=True)
        theirs = module(given)
        module.zero_grad()
        theirs.backward(torch.from_numpy(dy))
        y, cache = layer.forward(params, state, x, train=mode == "train")
        dx, grads = layer.backward(params, cache, dy)
        state = layer.next_state(state, cache)
        assert_parity(y, theirs.detach().numpy(), np.abs(x).max())
        # Where two values make a batch, dx is the rounding of a difference that vanishes.
        slope = np.abs(params["weight"]).max() * np.abs(dy).max() * np.abs(cache.rstd).max()
        assert_parity(dx, given.grad.numpy(), slope)
        for name, parameter in module.named_parameters():
            assert_parity(grads[name], parameter.grad.numpy(), np.abs(dy).sum())
        expected = state_dict_of(module)
        assert list(layer.merge_state_dict(params, state)) == list(expected)
        for name, array in state.items():
            if name == "num_batches_tracked":
                assert array.dtype == expected[name].dtype
                assert array == expected[name]
            else:
                assert_parity(array, expected[name], (x**2).max())


@pytest.mark.parametrize(
    ("layer", "module", "shape"),
    [
        (GroupNorm(2, 6), torch.nn.GroupNorm(2, 6, dtype=torch.float64), (3, 6, 4, 2)),
        (GroupNorm(6, 6, 0.1), torch.nn.GroupNorm(6, 6, 0.1, dtype=torch.float64), (2, 6, 5)),
        (LayerNorm(7), torch.nn.LayerNorm(7, dtype=torch.float64), (3, 2, 7)),
        (LayerNorm(5, 0.1), torch.nn.LayerNorm(5, 0.1, dtype=torch.float64), (4, 5)),
        (
            Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
            torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, dtype=torch.float64),
            (2, 4, 6, 7),
        ),
        (
            Conv2d(3, 2, 3, bias=False),
            torch.nn.Conv2d(3, 2, 3, bias=False, dtype=torch.float64),
            (2, 3, 5, 5),
        ),
    ],
    ids=lambda v: repr(v),
)
def test_a_layer_of_the_same_arguments_and_state_dict(
    assert_parity: Any, layer: Layer, module: Any, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    draw_parameters(module, rng)
    module.zero_grad()
    x = rng.standard_normal(shape)
    params, state = layer.split_state_dict(state_dict_of(module))
    given = torch.tensor(x, requires_grad=True)
    theirs = module(given)
    dy = rng.standard_normal(tuple(theirs.shape))
    theirs.backward(torch.from_numpy(dy))
    y, cache = layer.forward(params, state, x, train=True)
    dx, grads = layer.backward(params, cache, dy)
    assert_parity(y, theirs.detach().numpy())
    assert_parity(dx, given.grad.numpy(), 1.0)
    for name, parameter in module.named_parameters():
        assert_parity(grads[name], parameter.grad.numpy(), 1.0)


def moments(values: np.ndarray) -> np.ndarray:
    """Return mean, mean absolute value and a third of the mean fourth power, at variance one."""
    values = values / np.sqrt((values**2).mean())
    return np.array([values.mean(), np.abs(values).mean(), (values**4).mean() / 3])


WIDE = [
    (Linear, torch.nn.Linear, (300, 400)),
    (Conv2d, torch.nn.Conv2d, (24, 500, 3)),
    (Conv2d, torch.nn.Conv2d, (40, 300, (5, 3), 1, 0, 1, 4)),
]


def kaiming_(module: Any) -> None:
    torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    torch.nn.init.zeros_(module.bias)


def normal_(module: Any) -> None:
    torch.nn.init.normal_(module.weight, 0.0, 0.01)
    torch.nn.init.zeros_(module.bias)


@pytest.mark.parametrize(
    ("options", "initialise"),
    [
        ({}, lambda module: None),
        ({"initializer": KaimingNormal()}, kaiming_),
        ({"initializer": Normal(0.01)}, normal_),
    ],
    ids=["default", "kaiming", "normal"],
)
@pytest.mark.parametrize(("layer", "module", "arguments"), WIDE)
def test_initial_weights_have_the_distribution_of_pytorchs(
    layer: Any, module: Any, arguments: tuple[Any, ...], options: dict[str, Any], initialise: Any
) -> None:
    torch.manual_seed(0)
    twin = module(*arguments)
    initialise(twin)
    theirs = {name: array.astype(np.float64) for name, array in state_dict_of(twin).items()}
    ours, _ = layer(*arguments, **options).init(np.random.default_rng(0), dtype=np.float64)
    for name, values in ours.items():
        if not np.any(theirs[name]):
            assert not np.any(values)
            continue
        assert values.shape == theirs[name].shape
        # Each estimate deviates by about 1/√n, the fourth power of a normal by three times that.
        few = 8 / math.sqrt(values.size)
        size = np.sqrt((values**2).mean() / (theirs[name] ** 2).mean())
        assert size == pytest.approx(1, abs=few)
        np.testing.assert_allclose(moments(values), moments(theirs[name]), atol=2 * few)
        if not options:
            assert np.abs(values).max() == pytest.approx(np.abs(theirs[name]).max(), rel=few)
