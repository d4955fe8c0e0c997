"""The convolutional networks against their PyTorch twins, through safetensors files, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from refkd.models import create
from refkd.testing.tolerances import GRADIENT
from refkd.train.checkpoint import save_checkpoint
from refkd.train.safetensors import read_safetensors

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="it writes PyTorch's files")
twins = pytest.importorskip("tests.parity.torch_models")

SMALL_BLOCKS = ((8, 8), (12,), (16,))
PUBLISHED_STUDENT = ((32, 32), (64, 64), (128,), (128,), (128,))


class Pair(NamedTuple):
    """A network of refkd, the same network of PyTorch, and images for both."""

    name: str
    hyperparameters: dict[str, Any]
    twin: Callable[[], Any]
    images: tuple[int, int]  # how many, and their side


def vgg(blocks: Any, *, dropout: float, track: bool, size: int, features: int, n: int) -> Pair:
    options = {"blocks": blocks, "dropout": dropout, "track_running_stats": track}
    hyperparameters = {"num_classes": 10, "image_size": size, **options}
    return Pair(
        "vgg", hyperparameters, lambda: twins.VGG(10, blocks, dropout, track, features), (n, size)
    )


PAIRS = {
    "small_cnn": Pair(
        "small_cnn",
        {"num_classes": 5, "image_size": 50},
        lambda: twins.SmallCNN(5, 32 * 2 * 2, 0.4),
        (3, 50),
    ),
    "googlenet": Pair(
        "googlenet",
        {"num_classes": 5, "image_size": 128},
        lambda: twins.GoogLeNet(5, 128 * 2 * 2),
        (2, 128),
    ),
    "googlenet without heads, odd sides": Pair(
        "googlenet",
        {"num_classes": 5, "image_size": 75, "aux_logits": False},
        lambda: twins.GoogLeNet(5, None),
        (2, 75),
    ),
    "vgg with dropout": vgg(SMALL_BLOCKS, dropout=0.1, track=True, size=12, features=16, n=5),
    "vgg without running statistics": vgg(
        SMALL_BLOCKS, dropout=0.0, track=False, size=16, features=64, n=4
    ),
    "the published vgg student": vgg(
        PUBLISHED_STUDENT, dropout=0.0, track=True, size=32, features=128, n=4
    ),
    "resnet-18": Pair(
        "resnet", {"num_classes": 7, "depth": 18}, lambda: twins.ResNet(7, 18), (3, 56)
    ),
    "resnet-50": Pair(
        "resnet", {"num_classes": 7, "depth": 50}, lambda: twins.ResNet(7, 50), (3, 40)
    ),
    "cifar_resnet-20": Pair(
        "cifar_resnet", {"num_classes": 10, "depth": 20}, lambda: twins.CifarResNet(10, 20), (4, 17)
    ),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
LARGE = {"resnet-50"}  # their gradients take several seconds


@pytest.fixture(autouse=True)
def _double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Return a check for results of whole networks: max|ours − theirs| <= 1e-12 max|theirs|.

    Rounding errors grow from layer to layer, so the bound is that of a gradient; they are
    relative to what was summed, so the largest gradient of the network gives the scale.
    """

    def check(ours: Any, theirs: Any, scale: float = 0.0) -> None:
        ours, theirs = np.asarray(ours), theirs.detach().numpy()
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == np.float64
        assert np.abs(ours - theirs).max() <= GRADIENT * max(scale, np.abs(theirs).max())

    return check


def scrambled(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return parameters and statistics with no ones and zeros that would hide a mistake."""
    drawn = {}
    for name, a in arrays.items():
        if name.endswith("num_batches_tracked"):
            drawn[name] = np.asarray(3)
        elif name.endswith("running_var"):
            drawn[name] = rng.uniform(0.5, 2.0, a.shape)
        elif a.ndim == 1:
            drawn[name] = a + 0.1 * rng.standard_normal(a.shape)
        else:
            drawn[name] = a
    return drawn


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@every_pair
def test_names_shapes_and_kinds_are_those_of_pytorch(pair: Pair) -> None:
    params, state = create(pair.name, **pair.hyperparameters).shapes()
    with torch.device("meta"):
        twin = pair.twin()
    assert params == {name: tuple(p.shape) for name, p in twin.named_parameters()}
    assert state == {name: tuple(b.shape) for name, b in twin.named_buffers()}


@every_pair
def test_a_file_written_by_pytorch_gives_the_same_evaluation(
    assert_close, tmp_path: Path, pair: Pair
) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    twin = pair.twin()
    values = scrambled({n: a.numpy() for n, a in twin.state_dict().items()}, rng)
    twin.load_state_dict({n: torch.from_numpy(a) for n, a in values.items()}, strict=True)
    safetensors_torch.save_file(twin.state_dict(), tmp_path / "theirs.safetensors")

    network = create(pair.name, **pair.hyperparameters)
    arrays, _ = read_safetensors(tmp_path / "theirs.safetensors")
    params, state = network.split_state_dict(arrays)
    n, side = pair.images
    x = rng.standard_normal((n, 3, side, side))
    y, cache = network.forward(params, state, x, train=False)
    twin.eval()
    for ours, theirs in zip(as_tuple(y), as_tuple(twin(torch.from_numpy(x))), strict=True):
        assert_close(ours, theirs)
    np.testing.assert_equal(network.next_state(state, cache), state)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id=name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name, pair in PAIRS.items()
    ],
)
def test_a_file_written_by_refkd_gives_the_same_training_step(
    assert_close, tmp_path: Path, pair: Pair
) -> None:
    rng = np.random.default_rng(1)
    network = create(pair.name, **pair.hyperparameters)
    arrays = scrambled(network.merge_state_dict(*network.init(rng, dtype=np.float64)), rng)
    params, state = network.split_state_dict(arrays)
    save_checkpoint(tmp_path / "ours.safetensors", arrays, {})
    twin = pair.twin()
    twin.load_state_dict(safetensors_torch.load_file(tmp_path / "ours.safetensors"), strict=True)

    n, side = pair.images
    x = rng.standard_normal((n, 3, side, side))
    y, cache = network.forward(params, state, x, train=True, rng=np.random.default_rng(2))
    dys = tuple(rng.standard_normal(part.shape) for part in as_tuple(y))
    dx, grads = network.backward(params, cache, dys if isinstance(y, tuple) else dys[0])

    twin.train()
    twins.set_generator(twin, np.random.default_rng(2))
    their_x = torch.tensor(x, requires_grad=True)
    their_y = as_tuple(twin(their_x))
    torch.autograd.backward(their_y, tuple(map(torch.from_numpy, dys)))

    for ours, theirs in zip(as_tuple(y), their_y, strict=True):
        assert_close(ours, theirs)
    assert_close(dx, their_x.grad)
    their_grads = {name: p.grad for name, p in twin.named_parameters()}
    assert grads.keys() == their_grads.keys()
    largest = max(float(g.abs().max()) for g in their_grads.values())
    for name, theirs in their_grads.items():
        assert_close(grads[name], theirs, largest)

    updated = network.next_state(state, cache)
    buffers = dict(twin.named_buffers())
    assert updated.keys() == buffers.keys()
    for name, theirs in buffers.items():
        if name.endswith("num_batches_tracked"):
            assert updated[name] == int(theirs) == 4
        else:
            assert_close(updated[name], theirs)


@pytest.mark.parametrize("used", range(3), ids=["logits", "aux2", "aux1"])
def test_one_output_of_googlenet_alone_has_the_gradients_of_pytorch(
    assert_close, used: int
) -> None:
    pair = PAIRS["googlenet"]
    rng = np.random.default_rng(3)
    network = create(pair.name, **pair.hyperparameters)
    params, state = network.init(rng, dtype=np.float64)
    twin = pair.twin()
    twin.load_state_dict({n: torch.from_numpy(a) for n, a in params.items()}, strict=True)
    x, dy = rng.standard_normal((1, 3, 128, 128)), rng.standard_normal((1, 5))
    _, cache = network.forward(params, state, x, train=False)
    dys = tuple(dy if i == used else None for i in range(3))
    _, grads = network.backward(params, cache, dys, need_dx=False)

    twin.eval()
    twin(torch.from_numpy(x))[used].backward(torch.from_numpy(dy))
    reached = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert 0 < len(reached) < len(grads)
    for name, ours in grads.items():
        if name in reached:
            assert_close(ours, reached[name])
        else:
            assert not ours.any()
