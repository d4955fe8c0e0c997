"""Training with the arrays of a device: there from the first step to the last, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refkd import dispatch
from refkd.data.dataset import Split
from refkd.dispatch import Backend, use_backend
from refkd.distill import LogitDistillation, Stage, Supervised
from refkd.models import create
from refkd.nn.layer import add_prefix
from refkd.train.evaluate import accuracy, evaluate_logits
from refkd.train.loop import begin, train
from refkd.train.optim import SGD, Adam
from refkd.train.progress import Progress
from refkd.train.schedule import Constant
from tests.arch.fake_device import DeviceArray, to_device, to_host
from tests.train.trainings import NORMALIZATION, SPEC

NETWORK = create("vgg", num_classes=3, blocks=((4,), (4,)), image_size=8)
GROUPS = ("params", "state", "optimizer", "average", "best")


def asarray(x: Any) -> Any:
    return x if isinstance(x, DeviceArray) else to_device(np.asarray(x))


def to_numpy(x: Any) -> Any:
    return np.array(to_host(x))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of no kernels; whoever asks for a value gets it, as of CuPy."""
    backend = Backend("device", DeviceArray, asarray, to_numpy, lambda: None)
    monkeypatch.setitem(dispatch._loaded, "device", backend)
    monkeypatch.setitem(dispatch._by_array_type, DeviceArray, backend)
    monkeypatch.setattr(DeviceArray, "__float__", lambda self: float(self._buffer))
    monkeypatch.setattr(DeviceArray, "__bool__", lambda self: bool(self._buffer))


def split(stored_logits: bool) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(11, 3, 8, 8)).astype(np.uint8)
    logits = rng.standard_normal((11, 3)).astype("f") if stored_logits else None
    return Split(images, rng.integers(3, size=11), logits)


def stages(stored_logits: bool) -> list[Stage]:
    more: dict[str, Any] = {"epochs": 2, "batch_size": 4, "ema_decay": 0.8, "keep": "best"}
    teacher = None if stored_logits else NETWORK
    objective = LogitDistillation(NETWORK, teacher, SPEC)
    return [
        Stage(Supervised(NETWORK), SGD(0.1, momentum=0.9), Constant(), **more),
        Stage(objective, Adam(0.01), Constant(), clip_norm=0.5, **more),
    ]


class Saving:
    """A monitor that keeps a checkpoint of every step."""

    def __init__(self, places: type) -> None:
        self.saved: list[Any] = []
        self.places = places

    def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
        for group in GROUPS:
            arrays = getattr(progress, group).items()
            assert all(isinstance(a, self.places) or n == "step" for n, a in arrays)
        arrays, metadata = progress.to_checkpoint(("student",))
        self.saved.append(({n: a.copy() for n, a in arrays.items()}, metadata))

    def after_epoch(self, progress: Progress, record: Mapping[str, float]) -> None:
        pass


def trained(name: str, stored_logits: bool) -> tuple[Progress, Saving]:
    monitor = Saving({"device": DeviceArray, "numpy": np.ndarray}[name])
    data = split(stored_logits)
    params, state = NETWORK.init(np.random.default_rng(1))
    frozen = {
        "frozen_params": add_prefix("teacher", params),
        "frozen_state": add_prefix("teacher", state),
    }
    progress = begin(stages(stored_logits), 3, **({} if stored_logits else frozen))

    def evaluate(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        own, own_state = (
            {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith("student.")}
            for arrays in (params, state)
        )
        logits = evaluate_logits(NETWORK, own, own_state, data.images, normalization=NORMALIZATION)
        return {"validation_accuracy": accuracy(logits, data.labels)}

    with use_backend(name):
        train(
            stages(stored_logits),
            progress,
            data,
            normalization=NORMALIZATION,
            evaluate=evaluate,
            monitor=monitor,
        )
    return progress, monitor


def assert_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert isinstance(array, np.ndarray), name
        np.testing.assert_array_equal(array, other[name], name, strict=True)


@pytest.mark.parametrize("stored_logits", [False, True])
def test_a_training_on_the_device_is_the_same_in_every_step(stored_logits: bool) -> None:
    (own, steps), (expected, others) = (trained(n, stored_logits) for n in ("device", "numpy"))
    for group in GROUPS:
        assert_equal(getattr(own, group), getattr(expected, group))
    assert own.history == expected.history
    for one, other in zip(steps.saved, others.saved, strict=True):
        assert_equal(one[0], other[0])
        assert one[1] == other[1]


def test_whoever_stops_a_training_gets_its_arrays_back() -> None:
    class Stopping(Saving):
        def after_step(self, progress: Progress, steps_per_epoch: int) -> None:
            raise KeyboardInterrupt

    progress = begin(stages(True), 3)
    with use_backend("device"), pytest.raises(KeyboardInterrupt):
        train(
            stages(True),
            progress,
            split(True),
            normalization=NORMALIZATION,
            monitor=Stopping(DeviceArray),
        )
    assert all(isinstance(a, np.ndarray) for g in GROUPS for a in getattr(progress, g).values())


def test_a_network_of_numpy_is_evaluated_on_the_device() -> None:
    params, state = NETWORK.init(np.random.default_rng(1))
    arguments = (NETWORK, params, state, split(False).images)
    expected = evaluate_logits(*arguments, normalization=NORMALIZATION)
    with use_backend("device"):
        logits = evaluate_logits(*arguments, normalization=NORMALIZATION)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_array_equal(logits, expected)
