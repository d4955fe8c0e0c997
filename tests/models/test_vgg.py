"""VGG for CIFAR-10: published sizes, names of the modules, running statistics or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.models import create, parameter_count
from refkd.testing import check_grad
from refkd.testing.adapters.layer import from_layer

TEACHER = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
STUDENT = ((32, 32), (64, 64), (128,), (128,), (128,))
TINY = ((3,), (4, 2))


def tiny(**options: Any) -> Any:
    return create("vgg", **{"num_classes": 3, "blocks": TINY, "image_size": 8, **options})


def images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("blocks", "dropout", "count"), [(TEACHER, 0.1, 14_728_266), (STUDENT, 0.0, 437_034)]
)
@pytest.mark.parametrize("track_running_stats", [True, False])
def test_it_has_the_published_number_of_parameters(
    blocks: Any, dropout: float, count: int, track_running_stats: bool
) -> None:
    network = create(
        "vgg",
        num_classes=10,
        blocks=blocks,
        dropout=dropout,
        track_running_stats=track_running_stats,
    )
    assert parameter_count(network) == count


def test_modules_are_numbered_in_a_row_and_dropout_counts() -> None:
    names = {name.rpartition(".")[0] for name in tiny().shapes()[0]}
    assert names == {"fc", *(f"layers.{i}" for i in (0, 1, 4, 5, 7, 8))}
    names = {name.rpartition(".")[0] for name in tiny(dropout=0.1).shapes()[0]}
    assert names == {"fc", *(f"layers.{i}" for i in (1, 2, 6, 7, 10, 11))}


def test_shapes_and_statistics_of_a_tiny_network() -> None:
    params, state = tiny(in_channels=1).shapes()
    assert params["layers.0.weight"] == (3, 1, 3, 3)
    assert params["layers.0.bias"] == (3,)
    assert params["layers.4.weight"] == (4, 3, 3, 3)
    assert params["layers.8.weight"] == (2,)
    assert params["fc.weight"] == (3, 2 * 2 * 2)
    kinds = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(state) == {f"layers.{i}.{kind}" for i in (1, 5, 8) for kind in kinds}
    assert tiny(track_running_stats=False).shapes()[1] == {}


def test_blocks_may_be_lists_as_a_recipe_gives_them() -> None:
    assert tiny(blocks=[[3], [4, 2]]) == tiny()


@pytest.mark.parametrize(
    ("train", "track_running_stats", "dropout"),
    [(True, True, 0.3), (True, False, 0.0), (False, True, 0.0), (False, False, 0.3)],
)
def test_the_gradient_of_the_network_is_exact(
    train: bool, track_running_stats: bool, dropout: float
) -> None:
    network = tiny(
        **{"blocks": ((2,), (2,)), "image_size": 4, "in_channels": 1},
        **{"track_running_stats": track_running_stats, "dropout": dropout},
    )
    params, state = network.init(np.random.default_rng(0), dtype=np.float64)
    subject = from_layer(network, params, state, images(1, 3, 1, 4, 4), train=train)
    check_grad(*subject, mode="full").raise_if_failed()


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_without_running_statistics_a_prediction_depends_on_its_batch(
    track_running_stats: bool,
) -> None:
    network = tiny(track_running_stats=track_running_stats)
    params, state = network.init(np.random.default_rng(2), dtype=np.float64)
    x = images(3, 4, 3, 8, 8)
    together, _ = network.forward(params, state, x, train=False)
    alone, _ = network.forward(params, state, x[:2], train=False)
    if track_running_stats:
        np.testing.assert_allclose(alone, together[:2], rtol=1e-12)
    else:
        assert np.abs(alone - together[:2]).min() > 1e-3


def test_without_running_statistics_training_and_evaluation_are_one_function() -> None:
    network = tiny(track_running_stats=False)
    params, state = network.init(np.random.default_rng(4), dtype=np.float64)
    x = images(5, 4, 3, 8, 8)
    y, _ = network.forward(params, state, x, train=False)
    np.testing.assert_array_equal(y, network.forward(params, state, x, train=True)[0])


@pytest.mark.parametrize(
    "blocks", [(), [], ((),), ((8,), ()), (8, 8), 8, "88", ("8",), None, {8: 8}, ({8},)]
)
def test_blocks_are_filled_sequences_of_widths(blocks: Any) -> None:
    with pytest.raises(ConfigError, match=r"vgg: blocks must be a sequence of blocks.*such as"):
        tiny(blocks=blocks)


@pytest.mark.parametrize("width", [0, -8, 8.0, "8", None, True])
def test_a_width_that_is_none_is_named_by_its_place(width: Any) -> None:
    with pytest.raises(ConfigError, match=r"vgg: blocks\[1\]\[0\] must be an integer >= 1"):
        tiny(blocks=((8,), (width, 4)))


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_running_statistics_are_on_or_off(value: Any) -> None:
    with pytest.raises(ConfigError, match="vgg: track_running_stats must be true or false"):
        tiny(track_running_stats=value)


def test_five_blocks_leave_nothing_of_31_pixels_and_one_of_32() -> None:
    blocks = ((2,),) * 5
    assert tiny(blocks=blocks, image_size=32).shapes()[0]["fc.weight"] == (3, 2)
    with pytest.raises(ConfigError, match=r"vgg: image_size must be larger, got 31.*layers\.19"):
        tiny(blocks=blocks, image_size=31)
