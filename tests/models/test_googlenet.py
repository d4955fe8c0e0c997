"""GoogLeNet: Table 1 of its paper, torchvision's names, and auxiliary logits in either mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError
from refkd.models import create, parameter_count
from refkd.nn import Layer

# "in; 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; pool proj" of every module.
TABLE = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
# "output size" of the same table: side and channels.
OUTPUT_SIZES = {
    "conv1": (112, 64),
    "maxpool1": (56, 64),
    "conv3": (56, 192),
    "maxpool2": (28, 192),
    "concat3a": (28, 256),
    "concat3b": (28, 480),
    "maxpool3": (14, 480),
    "concat4a": (14, 512),
    "concat4b": (14, 512),
    "concat4c": (14, 512),
    "concat4d": (14, 528),
    "concat4e": (14, 832),
    "maxpool4": (7, 832),
    "concat5a": (7, 832),
    "concat5b": (7, 1024),
    "avgpool": (1, 1024),
}


def googlenet(**options: Any) -> Layer:
    return create("googlenet", num_classes=5, **options)


@pytest.mark.parametrize(("aux_logits", "count"), [(True, 10_318_655), (False, 5_978_677)])
def test_it_has_the_published_number_of_parameters(aux_logits: bool, count: int) -> None:
    assert parameter_count(googlenet(aux_logits=aux_logits)) == count


@pytest.mark.parametrize("module", TABLE)
def test_inception_modules_have_the_widths_of_table_1(module: str) -> None:
    c_in, one, reduce3, three, reduce5, five, proj = TABLE[module]
    params, _ = googlenet().shapes()
    weights = {n: s for n, s in params.items() if n.startswith(f"inception{module}") and len(s) > 1}
    assert weights == {
        f"inception{module}.branch1.conv.weight": (one, c_in, 1, 1),
        f"inception{module}.branch2.0.conv.weight": (reduce3, c_in, 1, 1),
        f"inception{module}.branch2.1.conv.weight": (three, reduce3, 3, 3),
        f"inception{module}.branch3.0.conv.weight": (reduce5, c_in, 1, 1),
        f"inception{module}.branch3.1.conv.weight": (five, reduce5, 5, 5),
        f"inception{module}.branch4.1.conv.weight": (proj, c_in, 1, 1),
    }


def test_stem_and_classifiers_have_their_names_and_shapes() -> None:
    params, state = googlenet().shapes()
    others = {n: s for n, s in params.items() if not n.startswith("inception") and len(s) > 1}
    assert others == {
        "conv1.conv.weight": (64, 3, 7, 7),
        "conv2.conv.weight": (64, 64, 1, 1),
        "conv3.conv.weight": (192, 64, 3, 3),
        "fc.weight": (5, 1024),
        "aux1.conv.conv.weight": (128, 512, 1, 1),
        "aux1.fc1.weight": (1024, 2048),
        "aux1.fc2.weight": (5, 1024),
        "aux2.conv.conv.weight": (128, 528, 1, 1),
        "aux2.fc1.weight": (1024, 2048),
        "aux2.fc2.weight": (5, 1024),
    }
    assert state == {}
    assert {n.replace("weight", "bias") for n in params} <= params.keys()


def test_feature_maps_have_the_output_sizes_of_table_1() -> None:
    network = googlenet()
    params, state = network.init(np.random.default_rng(0))
    x = np.zeros((1, 3, 224, 224), np.float32)
    outputs, cache = network.forward(params, state, x, train=False)
    features = dict(network.features(cache))
    for name, (side, channels) in OUTPUT_SIZES.items():
        assert features[name].shape == (1, channels, side, side)
    for head in ("aux1", "aux2"):
        assert features[f"{head}.pool"].shape[2:] == (4, 4)
        assert features[f"{head}.flatten"].shape == (1, 2048)
    assert [y.shape for y in outputs] == [(1, 5)] * 3


@pytest.fixture(scope="module")
def small() -> tuple[Layer, Any, Any]:
    """Return the network for 80 pixels, its parameters and two images."""
    network = googlenet(image_size=80)
    params, _ = network.init(np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((2, 3, 80, 80)).astype(np.float32)
    return network, params, x


def test_outputs_are_logits_then_aux2_then_aux1_in_either_mode(small: Any) -> None:
    network, params, x = small
    for train in (True, False):
        y, cache = network.forward(params, {}, x, train=train, rng=np.random.default_rng(3))
        features = dict(network.features(cache))
        assert len(y) == 3
        for output, name in zip(y, ("fc", "aux2", "aux1"), strict=True):
            assert output is features[name]
            assert output.dtype == np.float32
        assert not np.array_equal(y[1], y[2])


def test_a_head_reads_its_module(small: Any) -> None:
    network, params, x = small
    features = dict(network.features(network.forward(params, {}, x, train=False)[1]))
    for head, module in {"aux1": "concat4a", "aux2": "concat4d"}.items():
        pooled = features[f"{head}.pool"]
        expected = features[module][:, :, :5, :5].mean(axis=(2, 3))
        np.testing.assert_allclose(pooled[:, :, 0, 0], expected, rtol=1e-5)


def test_auxiliary_classifiers_leave_the_logits_alone(small: Any) -> None:
    network, params, x = small
    without = googlenet(image_size=80, aux_logits=False)
    own = {n: p for n, p in params.items() if not n.startswith("aux")}
    assert without.shapes()[0].keys() == own.keys()
    (logits, _, _), _ = network.forward(params, {}, x, train=False)
    np.testing.assert_array_equal(without.forward(own, {}, x, train=False)[0], logits)


def test_each_dropout_has_its_probability(small: Any) -> None:
    _, params, x = small
    network = googlenet(image_size=80, dropout=0.25, aux_dropout=0.75)
    _, cache = network.forward(params, {}, x, train=True, rng=np.random.default_rng(4))
    features = dict(network.features(cache))
    dropouts = [("flatten", "dropout", 0.25)]
    for head in ("aux1", "aux2"):
        dropouts.append((f"{head}.flatten", f"{head}.dropout1", 0.75))
        dropouts.append((f"{head}.relu", f"{head}.dropout2", 0.75))
    for before, after, p in dropouts:
        alive = features[before] != 0
        assert (features[after][alive] == 0).mean() == pytest.approx(p, abs=0.12)


def test_parameters_begin_as_published() -> None:
    params, _ = googlenet().init(np.random.default_rng(5), dtype=np.float64)
    for name, values in params.items():
        if name.endswith("bias"):
            assert not values.any()
            continue
        out, _, *kernel = values.shape
        std = math.sqrt(2 / (out * math.prod(kernel))) if values.ndim == 4 else 0.01
        # The standard deviation of n numbers is off by 1/√(2n) or so.
        assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.size))
        assert abs(values.mean()) < 5 * std / math.sqrt(values.size)


def test_constructing_and_counting_allocates_no_parameters(peak_memory: Any) -> None:
    assert peak_memory(lambda: parameter_count(googlenet())) < 1_000_000


@pytest.mark.parametrize(("image_size", "features"), [(80, 128), (128, 512), (224, 2048)])
def test_auxiliary_classifiers_are_made_for_the_image_size(image_size: int, features: int) -> None:
    params, _ = googlenet(image_size=image_size).shapes()
    assert params["aux1.fc1.weight"] == params["aux2.fc1.weight"] == (1024, features)


def test_images_too_small_for_an_auxiliary_classifier_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"googlenet: image_size must be larger, got 64.*aux2"):
        googlenet(image_size=64)
    googlenet(image_size=64, aux_logits=False)


def test_images_of_which_nothing_is_left_are_refused() -> None:
    message = r"googlenet: image_size must be larger, got 8: only \d x \d .*maxpool"
    with pytest.raises(ConfigError, match=message):
        googlenet(image_size=8, aux_logits=False)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_auxiliary_logits_are_on_or_off(value: Any) -> None:
    with pytest.raises(ConfigError, match="googlenet: aux_logits must be true or false"):
        googlenet(aux_logits=value)


@pytest.mark.parametrize("value", [-0.1, 2, "0.5", math.nan])
def test_the_dropout_of_the_heads_is_a_probability(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"googlenet: aux_dropout must be a number in \[0, 1\]"):
        googlenet(aux_dropout=value)
