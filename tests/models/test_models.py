"""Named networks: their parameters, and what happens to hyperparameters that make no sense."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from refkd.errors import ConfigError, RefkdError
from refkd.models import MODELS, create, parameter_count
from refkd.ops import linear_backward

SIZES = {"in_features": 12, "num_classes": 3}


@pytest.mark.parametrize(
    ("hidden", "count"),
    [((1200, 1200), 2_395_210), ((20, 20), 16_330), ((), 7_850), ([800, 800], 1_276_810)],
)
def test_mlp_has_the_published_number_of_parameters(hidden: Any, count: int) -> None:
    network = create("mlp", in_features=784, hidden=hidden, num_classes=10)
    assert parameter_count(network) == count


def test_mlp_parameters_carry_the_names_and_layouts_of_pytorch() -> None:
    network = create("mlp", hidden=(5, 4), dropout=0.5, **SIZES)
    assert network.shapes() == (
        {
            "fc1.weight": (5, 12),
            "fc1.bias": (5,),
            "fc2.weight": (4, 5),
            "fc2.bias": (4,),
            "fc3.weight": (3, 4),
            "fc3.bias": (3,),
        },
        {},
    )


def test_parameter_count_is_the_number_of_drawn_entries() -> None:
    network = create("mlp", hidden=(5, 4), **SIZES)
    params, _ = network.init(np.random.default_rng(0))
    assert parameter_count(network) == sum(p.size for p in params.values())


def test_mlp_is_linear_then_dropout_then_relu_and_ends_in_logits() -> None:
    network = create("mlp", hidden=(5, 4), dropout=0.5, **SIZES)
    params, state = network.init(np.random.default_rng(1), dtype=np.float64)
    x = np.random.default_rng(2).standard_normal((6, 3, 4))
    y, cache = network.forward(params, state, x, train=True, rng=np.random.default_rng(3))
    f = dict(network.features(cache))
    assert list(f) == [
        *("flatten", "fc1", "dropout1", "relu1", "fc2", "dropout2", "relu2", "fc3"),
    ]
    np.testing.assert_array_equal(f["flatten"], x.reshape(6, 12))
    kept = f["dropout1"] != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(f["dropout1"][kept], 2 * f["fc1"][kept])
    np.testing.assert_array_equal(f["relu2"], np.maximum(f["dropout2"], 0))
    np.testing.assert_allclose(
        y, f["relu2"] @ params["fc3.weight"].T + params["fc3.bias"], rtol=1e-14
    )
    assert (y < 0).any()


def test_dropout_changes_no_initial_weight() -> None:
    with_dropout, without = (
        create("mlp", hidden=(5,), dropout=p, **SIZES).init(np.random.default_rng(4))[0]
        for p in (0.5, 0.0)
    )
    np.testing.assert_equal(with_dropout, without)


@pytest.mark.parametrize("hidden", [(0,), (-3,), (2.0,), ("5",), (True,), (None,), 32, "32", None])
def test_hidden_widths_must_be_positive_integers(hidden: Any) -> None:
    with pytest.raises(ConfigError, match="mlp: "):
        create("mlp", hidden=hidden, **SIZES)


@pytest.mark.parametrize("name", ["in_features", "num_classes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "10", None, True])
def test_input_and_output_widths_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"mlp: {name} must be an integer >= 1, got {value!r}"):
        create("mlp", **{"hidden": (4,), **SIZES, name: value})


@pytest.mark.parametrize("dropout", [-0.5, 1.5, "0.5", float("nan")])
@pytest.mark.parametrize("hidden", [(4,), ()])
def test_dropout_must_be_a_probability(dropout: Any, hidden: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        create("mlp", hidden=hidden, dropout=dropout, **SIZES)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("mpl", {}, "did you mean 'mlp'"),
        ("lenet", {}, "must be one of 'mlp', 'small_cnn', 'googlenet'"),
        ("mlp", {"hiden": (4,), **SIZES}, "unknown hyperparameter 'hiden'.*did you mean 'hidden'"),
        (
            "mlp",
            {"hidden": (4,)},
            "missing hyperparameter in_features, num_classes, expected ",
        ),
        ("mlp", {}, "missing hyperparameter in_features, hidden, num_classes"),
    ],
)
def test_create_says_what_it_expected(
    name: str, hyperparameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        create(name, **hyperparameters)


CONVOLUTIONAL: dict[str, dict[str, Any]] = {
    "small_cnn": {},
    "googlenet": {},
    "vgg": {"blocks": ((4,),)},
    "resnet": {"depth": 18},
    "cifar_resnet": {"depth": 20},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *itertools.product(CONVOLUTIONAL, ("num_classes", "in_channels")),
        *((name, "image_size") for name in ("small_cnn", "googlenet", "vgg")),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "10", None, True])
def test_numbers_of_a_convolutional_network_are_positive_integers(
    name: str, count: str, value: Any
) -> None:
    hyperparameters = {"num_classes": 5, **CONVOLUTIONAL[name], count: value}
    with pytest.raises(ConfigError, match=f"^{name}: {count} must be an integer >= 1, got"):
        create(name, **hyperparameters)


@pytest.mark.parametrize("name", ["small_cnn", "googlenet", "vgg"])
@pytest.mark.parametrize("value", [-0.5, 2, "0.5", float("nan"), None])
def test_dropout_of_a_convolutional_network_is_a_probability(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: dropout must be a number in \[0, 1\]"):
        create(name, num_classes=5, dropout=value, **CONVOLUTIONAL[name])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_number_of_channels_and_classes_is_free(name: str) -> None:
    network = create(name, num_classes=7, in_channels=1, **CONVOLUTIONAL[name])
    params, _ = network.shapes()
    first, last = next(iter(params.values())), params.get("fc.bias", params.get("linear.bias"))
    assert first[1] == 1
    assert last == (7,)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_network_is_a_value(name: str) -> None:
    one, two = (create(name, num_classes=7, **CONVOLUTIONAL[name]) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_asks_for_its_sizes(name: str) -> None:
    with pytest.raises(RefkdError, match=re.escape(f"models.create({name!r})")):
        create(name)


def test_no_gradient_is_computed_for_the_input_of_the_first_linear_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = create("mlp", in_features=6, hidden=(5,), num_classes=3)
    rng = np.random.default_rng(0)
    params, state = network.init(rng)
    x, dy = (rng.normal(size=(4, n)).astype(np.float32) for n in (6, 3))
    _, cache = network.forward(params, state, x, train=True)
    asked = []

    def watched(*args: Any, need_dx: bool) -> Any:
        asked.append(need_dx)
        return linear_backward(*args, need_dx=need_dx)

    monkeypatch.setattr("refkd.nn.linear.linear_backward", watched)
    dx, _ = network.backward(params, cache, dy, need_dx=False)
    assert dx is None
    assert asked == [True, False]
