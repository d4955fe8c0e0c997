"""The small student: its published size, its shapes, and images too small for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.models import create, parameter_count
from refkd.testing import check_grad
from refkd.testing.adapters.layer import from_layer


def test_it_has_the_published_number_of_parameters() -> None:
    network = create("small_cnn", num_classes=5)
    assert parameter_count(network) == 41_029
    assert network.shapes() == (
        {
            "conv1.weight": (32, 3, 7, 7),
            "conv1.bias": (32,),
            "conv2.weight": (32, 32, 3, 3),
            "conv2.bias": (32,),
            "fc.weight": (5, 5408),
            "fc.bias": (5,),
        },
        {},
    )


def test_feature_maps_shrink_as_published() -> None:
    network = create("small_cnn", num_classes=5)
    params, state = network.init(np.random.default_rng(0))
    x = np.zeros((1, 3, 224, 224), np.float32)
    _, cache = network.forward(params, state, x, train=False)
    sides = {name: a.shape[2] for name, a in network.features(cache) if a.ndim == 4}
    assert sides == {
        **{"conv1": 112, "relu1": 112, "maxpool1": 55},
        **{"conv2": 28, "relu2": 28, "maxpool2": 13},
    }


@pytest.mark.parametrize("train", [True, False])
def test_the_gradient_of_the_network_is_exact(train: bool) -> None:
    network = create("small_cnn", num_classes=3, image_size=30, in_channels=2)
    params, state = network.init(np.random.default_rng(1), dtype=np.float64)
    x = np.random.default_rng(2).standard_normal((2, 2, 30, 30))
    check_grad(*from_layer(network, params, state, x, train=train)).raise_if_failed()


def test_dropout_drops_features_of_the_last_layer_in_training_only() -> None:
    network = create("small_cnn", num_classes=3, image_size=40, dropout=0.5)
    params, state = network.init(np.random.default_rng(3))
    x = np.random.default_rng(4).standard_normal((8, 3, 40, 40)).astype(np.float32)
    for train in (True, False):
        _, cache = network.forward(params, state, x, train=train, rng=np.random.default_rng(5))
        features = dict(network.features(cache))
        flat, dropped = features["flatten"], features["dropout"]
        kept = (dropped[flat != 0] != 0).mean()
        assert kept == pytest.approx(0.5 if train else 1.0, abs=0.1)


def test_parameters_begin_as_those_of_pytorch() -> None:
    params, _ = create("small_cnn", num_classes=5).init(np.random.default_rng(6))
    for name, fan_in in {"conv1": 3 * 49, "conv2": 32 * 9, "fc": 5408}.items():
        bound = 1 / math.sqrt(fan_in)
        weight = params[f"{name}.weight"]
        assert np.abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert np.any(params[f"{name}.bias"] != 0)


def test_images_of_which_nothing_is_left_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"small_cnn: image_size must be larger, got 8.*maxpool2"):
        create("small_cnn", num_classes=5, image_size=8)
