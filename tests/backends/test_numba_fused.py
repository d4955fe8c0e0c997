"""Networks whose layers the Numba backend takes two or three at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from refkd import models
from refkd.dispatch import get_backend, use_backend
from refkd.distill import Batch, LogitDistillation, Supervised
from refkd.errors import BackendUnavailable, ConfigError, NonFiniteError
from refkd.losses import KDSpec
from refkd.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    WithHeads,
)
from refkd.nn.layer import Layer, add_prefix
from refkd.train.optim import SGD, Adam
from refkd.train.step import EagerStep
from tests.backends.rewritten import NETWORKS, distance, exact, network

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

import refkd_numba.settings
from refkd_numba.fused import parts as in_parts
from refkd_numba.fused.network import FusedSequential, fuse, parts
from refkd_numba.fused.parts import InParts
from refkd_numba.fused.step import compile_step
from refkd_numba.fused.units import ConvNorm, ConvReLU, Norm

KINDS = {
    "small_cnn": {ConvReLU},
    "vgg": {ConvNorm},
    "cifar_resnet": {ConvNorm},
    "googlenet": {ConvReLU},
}


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba"):
        yield


def all_layers(layer: Any) -> Any:
    yield layer
    for part in parts(layer):
        yield from all_layers(part)
    for unit in getattr(layer, "units", ()):
        yield unit.layer


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_that_of_the_network_as_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding decides which way some gradients take through a ReLU or a pooling window, and
    # a deep network multiplies that: with Winograd by 6e-3, in the float32 reference by 3e-3.
    monkeypatch.setattr(refkd_numba.settings, "winograd", False)
    layer, params, state, images, labels = network(name)
    weights = (1.0, 0.3, 0.3) if name == "googlenet" else ()
    given = Supervised(layer, head_weights=weights)
    fused = dataclasses.replace(given, network=fuse(layer))
    assert {type(x) for x in all_layers(fused.network)} >= KINDS[name] | {FusedSequential}

    def step(objective: Any, params: Any, state: Any, images: Any) -> Any:
        named = add_prefix("student", params), add_prefix("student", state)
        return objective.value_and_grad(
            *named, Batch(images, labels, None, 6), np.random.default_rng()
        )

    with use_backend("numpy"):
        expected = step(given, exact(params), exact(state), images.astype(np.float64))
    actual = step(fused, params, state, images)
    assert distance(actual.terms["loss"], expected.terms["loss"]) < 1e-5
    assert actual.grads.keys() == expected.grads.keys()
    scales: dict[str, float] = {}
    for key, grad in expected.grads.items():
        of_layer = key.rpartition(".")[0]
        scales[of_layer] = max(scales.get(of_layer, 0.0), float(np.linalg.norm(grad)))
    for key, grad in expected.grads.items():
        assert actual.grads[key].dtype == np.float32
        # A bias before batch norm has no gradient: it is measured by its layer's.
        assert np.linalg.norm(actual.grads[key] - grad) < 5e-3 * scales[key.rpartition(".")[0]], key
    assert actual.state.keys() == expected.state.keys()
    for key, value in expected.state.items():
        assert distance(actual.state[key], value) < 1e-5, key


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_that_of_the_network_as_given(name: str, frozen: bool) -> None:
    layer, params, state, images, _ = network(name)
    with use_backend("numpy"):
        expected = layer.infer(exact(params), exact(state), images.astype(np.float64))
    fused = fuse(layer, frozen=frozen)
    actual = fused.infer(params, state, images)
    again = fused.infer(params, state, images)
    for a, b, e in zip(*map(heads, (actual, again, expected)), strict=True):
        assert distance(a, e) < 1e-4
        np.testing.assert_array_equal(a, b)


def heads(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_what_a_unit_returns_is_a_feature_and_takes_a_tap() -> None:
    layer, params, state, images, _ = network("vgg")
    fused = fuse(layer)
    y, cache = layer.forward(params, state, images, train=True)
    _, fused_cache = fused.forward(params, state, images, train=True)
    features, fused_features = dict(layer.features(cache)), dict(fused.features(fused_cache))
    assert set(fused_features) < set(features)
    assert {"layers.2", "layers.5", "layers.6", "layers", "fc"} <= set(fused_features)
    for path, value in fused_features.items():
        assert distance(value, features[path]) < 1e-4
    rng = np.random.default_rng(1)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    taps = {"layers.2": rng.standard_normal(features["layers.2"].shape).astype(np.float32)}
    dx, grads = layer.backward(params, cache, dy, taps=taps)
    fused_dx, fused_grads = fused.backward(params, fused_cache, dy, taps=taps)
    assert distance(fused_dx, dx) < 1e-3
    weights = [key for key in grads if key.endswith("weight")]
    assert all(distance(fused_grads[key], grads[key]) < 1e-3 for key in weights)
    with pytest.raises(ConfigError, match="tap '1'"):  # inside of a unit
        fused.backward(params, fused_cache, dy, taps={"layers.1": taps["layers.2"]})


def test_evaluation_mode_in_training_uses_the_running_statistics() -> None:
    layer, params, state, images, _ = network("vgg")
    fused = fuse(layer)
    y, cache = layer.forward(params, state, images, train=False)
    fused_y, fused_cache = fused.forward(params, state, images, train=False)
    assert distance(fused_y, y) < 1e-4
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    _, grads = layer.backward(params, cache, dy, need_dx=False)
    fused_dx, fused_grads = fused.backward(params, fused_cache, dy, need_dx=False)
    assert fused_dx is None
    # Now a bias before batch norm does have a gradient.
    assert all(distance(fused_grads[key], grad) < 2e-3 for key, grad in grads.items())


def test_units_are_as_long_as_can_be() -> None:
    layers = Sequential.numbered(
        ReLU(), BatchNorm2d(3), ReLU(), Conv2d(3, 4, 3), BatchNorm2d(4), Conv2d(4, 4, 3),
        BatchNorm2d(4), ReLU(), Conv2d(4, 4, 3), ReLU(), Conv2d(4, 4, 3),
    )  # fmt: skip
    units = fuse(layers).units
    assert [(unit.names, type(unit.layer)) for unit in units] == [
        (("0",), ReLU),
        (("1", "2"), Norm),
        (("3", "4"), ConvNorm),
        (("5", "6", "7"), ConvNorm),
        (("8", "9"), ConvReLU),
        (("10",), Conv2d),
    ]


def test_steps_are_made_for_networks_of_convolutions_and_known_objectives() -> None:
    vgg = network("vgg")[0]
    mlp = models.create("mlp", in_features=4, hidden=(3,), num_classes=2)
    assert compile_step(Supervised(mlp), Adam()) is None

    class Another(Supervised):
        pass

    assert compile_step(Another(vgg), Adam()) is None
    spec = KDSpec.preset("hinton", temperature=4.0, alpha=0.5)
    exactly = compile_step(LogitDistillation(vgg, vgg, spec), Adam())
    nearly = compile_step(LogitDistillation(vgg, vgg, spec, exact=False), Adam())
    assert exactly is not None
    assert nearly is not None
    assert exactly.fused.objective.teacher is vgg  # the same bits as what is stored of it
    teacher = nearly.fused.objective.teacher
    assert type(teacher) is InParts
    assert type(teacher.network) is FusedSequential


def test_evaluation_in_parts_is_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, params, state, images, _ = network("googlenet")
    images = np.concatenate([images] * 4)
    fused = fuse(layer)
    whole = fused.infer(params, state, images)
    seen: list[int] = []
    infer = FusedSequential.infer

    def counted(self: Any, params: Any, state: Any, x: Any) -> Any:
        seen.append(len(x))
        return infer(self, params, state, x)

    monkeypatch.setattr(FusedSequential, "infer", counted)
    monkeypatch.setattr(in_parts, "_BYTES", 10 * images[0].nbytes)
    in_pieces = InParts(fused).infer(params, state, images)
    assert {10, 4} <= set(seen)
    for a, b in zip(in_pieces, whole, strict=True):
        assert distance(a, b) < 1e-5


def test_a_teacher_that_mixes_images_sees_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Sequential.numbered(
        Conv2d(3, 4, 3), BatchNorm2d(4, track_running_stats=False), ReLU(), Flatten(), Linear(64, 5)
    )
    rng = np.random.default_rng(0)
    params, state = layer.init(rng)
    images = rng.standard_normal((20, 3, 6, 6)).astype(np.float32)
    monkeypatch.setattr(in_parts, "_BYTES", 1)
    spec = KDSpec.preset("hinton", temperature=4.0, alpha=0.5)
    step = compile_step(LogitDistillation(layer, layer, spec, exact=False), Adam())
    assert step is not None
    logits = step.fused.objective.teacher.infer(params, state, images)
    assert distance(logits, layer.infer(params, state, images)) < 1e-5


def test_float64_takes_the_step_as_given() -> None:
    layer, params, state, images, labels = network("vgg")
    objective, optimizer = Supervised(layer), SGD(0.1)
    compiled = compile_step(objective, optimizer)
    assert compiled is not None
    outcomes = []
    for step in (compiled, EagerStep(objective, optimizer)):
        own = add_prefix("student", exact(params))
        batch = Batch(images.astype(np.float64), labels, None, 6)
        terms, _ = step(
            own, add_prefix("student", exact(state)), optimizer.init(own), batch,
            np.random.default_rng(0), lr=0.1, where="here",
        )  # fmt: skip
        outcomes.append((terms, own))
    assert outcomes[0][0] == outcomes[1][0]
    for key, value in outcomes[0][1].items():
        np.testing.assert_array_equal(value, outcomes[1][1][key])


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    layer, params, state, images, labels = network("vgg")
    images[0, 0, 0, 0] = np.nan
    objective, optimizer = Supervised(layer), Adam()
    step = compile_step(objective, optimizer)
    assert step is not None
    own = add_prefix("student", params)
    before = {key: value.copy() for key, value in own.items()}
    with pytest.raises(NonFiniteError, match="epoch 1, step 2: loss term 'loss' is nan"):
        step(
            own, add_prefix("student", state), optimizer.init(own), Batch(images, labels, None, 6),
            np.random.default_rng(0), lr=0.1, where="epoch 1, step 2",
        )  # fmt: skip
    for key, value in own.items():
        np.testing.assert_array_equal(value, before[key])


class OwnNetwork(Sequential):
    """A Sequential whose constructor takes what varies."""

    def __init__(self, width: int) -> None:
        super().__init__((("conv", Conv2d(3, width, 3)), ("relu", ReLU())))


@dataclasses.dataclass(frozen=True)
class OwnBlock(Layer):
    """A layer of a user, of a part that its constructor makes."""

    width: int
    body: Layer = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "body", OwnNetwork(self.width))

    def shapes(self) -> Any:
        return self.body.shapes()

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.body.forward(*arguments, **options)

    def backward(self, *arguments: Any, **options: Any) -> Any:
        return self.body.backward(*arguments, **options)


@pytest.mark.parametrize("own", [OwnNetwork(8), OwnBlock(8)], ids=["Sequential", "dataclass"])
def test_layers_of_a_user_stay_as_they_are(own: Layer) -> None:
    network = Sequential((("own", own), ("conv", Conv2d(8, 4, 3)), ("relu", ReLU())))
    fused = fuse(network)
    assert fused.layers[0][1] is own
    assert [type(unit.layer) for unit in fused.units[1:]] == [ConvReLU]
    assert fuse(own) is own


@pytest.mark.parametrize("path", ["conv", "bn", "relu", "pool"])
def test_a_head_may_read_any_feature(path: str) -> None:
    def head(*before: tuple[str, Layer]) -> Sequential:
        ends = (("mean", AdaptiveAvgPool2d(1)), ("flat", Flatten()), ("fc", Linear(8, 4)))
        return Sequential((*before, *ends))

    trunk = head(("conv", Conv2d(3, 8, 3)), ("bn", BatchNorm2d(8)), ("relu", ReLU()),
                 ("pool", MaxPool2d(2)))  # fmt: skip
    given = Supervised(WithHeads(trunk, (("aux", path, head()),)), head_weights=(1.0, 0.3))
    step, rng = compile_step(given, SGD(0.1)), np.random.default_rng(0)
    params, state = (add_prefix("student", arrays) for arrays in given.network.init(rng))
    images = rng.standard_normal((5, 3, 8, 8)).astype(np.float32)
    batch = Batch(images, np.arange(5) % 4, None, 5)
    with use_backend("numpy"):
        expected = given.value_and_grad(params, state, batch, rng)
    actual = step.fused.objective.value_and_grad(params, state, batch, rng)
    assert actual.terms.keys() == expected.terms.keys()
    for name, term in expected.terms.items():
        assert distance(actual.terms[name], term) < 1e-5
    for name, grad in expected.grads.items():
        scale = 1.0 if name.endswith("conv.bias") else np.linalg.norm(grad)
        assert np.linalg.norm(actual.grads[name] - grad) < 1e-4 * scale, name
