"""Residual networks: sizes and names of the literature, and gradients of whole networks."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.models import create, parameter_count
from refkd.testing import check_grad
from refkd.testing.adapters.layer import from_layer

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_resnets_have_the_published_number_of_parameters(depth: int, count: int) -> None:
    assert parameter_count(create("resnet", num_classes=1000, depth=depth)) == count


@pytest.mark.parametrize(
    ("depth", "count"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnets_have_the_published_number_of_parameters(depth: int, count: int) -> None:
    # He et al. round them to .27, .46, .66, .85 and 1.7 million.
    assert parameter_count(create("cifar_resnet", num_classes=10, depth=depth)) == count


@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet", 18), ("resnet", 34), ("resnet", 50), ("cifar_resnet", 20), ("cifar_resnet", 110)],
)
def test_the_depth_counts_convolutions_and_the_linear_layer(name: str, depth: int) -> None:
    params, _ = create(name, num_classes=10, depth=depth).shapes()
    weights = [n for n, shape in params.items() if len(shape) > 1 and "downsample" not in n]
    assert len(weights) == depth


def test_a_basic_block_and_its_shortcut_have_the_names_of_torchvision() -> None:
    params, state = create("resnet", num_classes=10, depth=18).shapes()
    block = {n: s for n, s in params.items() if n.startswith("layer2.0.")}
    assert block == {
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.bn1.weight": (128,),
        "layer2.0.bn1.bias": (128,),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.0.bn2.weight": (128,),
        "layer2.0.bn2.bias": (128,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.weight": (128,),
        "layer2.0.downsample.1.bias": (128,),
    }
    assert {n for n in state if n.startswith("layer2.0.")} == {
        f"layer2.0.{norm}.{kind}" for norm in ("bn1", "bn2", "downsample.1") for kind in STATISTICS
    }
    assert not any(n.startswith("layer1") and "downsample" in n for n in params)


def test_a_bottleneck_and_its_shortcut_have_the_names_of_torchvision() -> None:
    params, _ = create("resnet", num_classes=10, depth=50).shapes()
    weights = {n: s for n, s in params.items() if n.startswith("layer1.0.") and len(s) > 1}
    assert weights == {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    }
    assert params["layer4.2.conv1.weight"] == (512, 2048, 1, 1)
    assert params["conv1.weight"] == (64, 3, 7, 7)
    assert params["fc.weight"] == (10, 2048)


def test_cifar_shortcuts_have_no_parameters() -> None:
    params, _ = create("cifar_resnet", num_classes=10, depth=20).shapes()
    assert {n.split(".")[2] for n in params if n.startswith("layer")} == {
        *("conv1", "bn1", "conv2", "bn2"),
    }
    assert params["conv1.weight"] == (16, 3, 3, 3)
    assert params["linear.weight"] == (10, 64)


@pytest.mark.parametrize(
    ("name", "depth", "stem", "last"), [("resnet", 18, 16, 2), ("cifar_resnet", 8, 64, 16)]
)
def test_stages_halve_the_side(name: str, depth: int, stem: int, last: int) -> None:
    network = create(name, num_classes=10, depth=depth)
    params, state = network.init(np.random.default_rng(0))
    x = np.zeros((1, 3, 64, 64), np.float32)
    _, cache = network.forward(params, state, x, train=False)
    features = dict(network.features(cache))
    sides = [a.shape[2] for n, a in features.items() if re.fullmatch(r"layer\d", n)]
    assert sides[0] == stem
    assert sides[-1] == last
    assert all(a == 2 * b for a, b in itertools.pairwise(sides))


def test_where_the_width_doubles_the_cifar_shortcut_pads_with_zeros() -> None:
    network = create("cifar_resnet", num_classes=10, depth=8)
    params, state = network.init(np.random.default_rng(1), dtype=np.float64)
    params["layer2.0.bn2.weight"][:] = 0  # the body of the block is then its bias, which is 0
    x = np.random.default_rng(2).standard_normal((2, 3, 8, 8))
    features = dict(network.features(network.forward(params, state, x, train=False)[1]))
    before, after = features["layer1"], features["layer2.0"]
    np.testing.assert_array_equal(after[:, 8:24], before[:, :, ::2, ::2])
    assert not after[:, :8].any()
    assert not after[:, 24:].any()


@pytest.mark.parametrize("train", [True, False])
def test_the_gradient_of_a_whole_network_is_exact(train: bool) -> None:
    network = create("cifar_resnet", num_classes=4, depth=8, in_channels=2)
    params, state = network.init(np.random.default_rng(3), dtype=np.float64)
    x = np.random.default_rng(4).standard_normal((3, 2, 9, 9))
    check_grad(*from_layer(network, params, state, x, train=train)).raise_if_failed()


@pytest.mark.parametrize(("depth", "stage"), [(18, "layer2"), (50, "layer1")])
def test_the_gradient_of_a_stage_with_projections_is_exact(depth: int, stage: str) -> None:
    network = dict(create("resnet", num_classes=10, depth=depth).layers)[stage]
    params, state = network.init(np.random.default_rng(6), dtype=np.float64)
    x = np.random.default_rng(7).standard_normal((2, 64, 3, 3))
    check_grad(*from_layer(network, params, state, x, train=True)).raise_if_failed()


@pytest.mark.parametrize(("name", "depth"), [("resnet", 18), ("cifar_resnet", 20)])
def test_convolutions_begin_as_published(name: str, depth: int) -> None:
    params, state = create(name, num_classes=10, depth=depth).init(
        np.random.default_rng(5), dtype=np.float64
    )
    for key, values in params.items():
        if values.ndim == 4:
            out, _, *kernel = values.shape
            std = math.sqrt(2 / (out * math.prod(kernel)))
            assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.size))
        elif "bn" in key or "downsample" in key:
            np.testing.assert_array_equal(values, 1.0 if key.endswith("weight") else 0.0)
    assert not any(values.any() for key, values in state.items() if key.endswith("mean"))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_constructing_and_counting_allocates_no_parameters(peak_memory: Any, depth: int) -> None:
    def count() -> None:
        parameter_count(create("resnet", num_classes=1000, depth=depth))

    assert peak_memory(count) < 1_000_000


@pytest.mark.parametrize("depth", [1, 20, 21, 101])
def test_resnet_has_three_depths(depth: int) -> None:
    with pytest.raises(ConfigError, match=f"resnet: depth must be one of 18, 34, 50, got {depth}"):
        create("resnet", num_classes=10, depth=depth)


@pytest.mark.parametrize("depth", [1, 2, 3, 18, 21, 40])
def test_the_depth_of_a_cifar_resnet_is_6n_plus_2(depth: int) -> None:
    message = rf"cifar_resnet: depth must be 6n \+ 2, such as 20, .*got {depth}"
    with pytest.raises(ConfigError, match=message):
        create("cifar_resnet", num_classes=10, depth=depth)


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("depth", [0, -20, 20.0, "18", None, True])
def test_the_depth_is_a_positive_integer(name: str, depth: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: depth must be an integer >= 1"):
        create(name, num_classes=10, depth=depth)
