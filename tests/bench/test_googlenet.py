"""The GoogLeNet workloads: what they are, and that both sides do the same on one image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bench.harness import VerificationError, check_agreement
from bench.workloads import WORKLOADS, googlenet
from bench.workloads.googlenet import GoogLeNetWorkload
from bench.workloads.googlenet_refkd import open_side
from refkd.ops import conv

TEACHER = GoogLeNetWorkload("teacher", 1, distils=False)
KD = GoogLeNetWorkload("kd", 2, distils=True)


@pytest.fixture(autouse=True)
def _small_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS, "teacher", TEACHER)
    monkeypatch.setitem(WORKLOADS, "kd", KD)
    monkeypatch.setattr(googlenet, "_BATCHES", 2)


def open_torch(name: str) -> Any:
    return pytest.importorskip("bench.workloads.googlenet_torch").open_side(name, "eager", 1)


def test_the_two_rows_have_the_published_numbers_of_parameters() -> None:
    rows = [name for name in WORKLOADS if name.startswith("googlenet")]
    assert rows == ["googlenet_teacher_b8", "googlenet_kd_b32"]
    params = WORKLOADS["googlenet_kd_b32"].params()
    sizes = dict.fromkeys(("student", "teacher"), 0)
    for name, value in params.items():
        sizes[name.partition(".")[0]] += value.size
    assert sizes == {"student": 41_029, "teacher": 10_318_655}
    assert sum(v.size for v in TEACHER.params().values()) == 10_318_655


def test_operations_are_those_of_direct_convolution() -> None:
    gflop = [WORKLOADS[f"googlenet_{name}"].flop / 1e9 for name in ("teacher_b8", "kd_b32")]
    assert gflop == pytest.approx([74.34, 110.58], abs=0.005)


def test_sizes_are_those_of_refkds_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions: list[int] = []

    def counting(x: Any, weight: Any, *others: Any, **options: Any) -> Any:
        y = conv.conv2d_forward(x, weight, *others, **options)
        convolutions.append(y[0].size * weight[0].size)
        return y

    monkeypatch.setattr("refkd.nn.conv.conv2d_forward", counting)
    for name, shapes, sizes in (
        ("teacher", googlenet._googlenet_shapes(), googlenet._SIZES),
        ("student", googlenet._STUDENT_SHAPES, googlenet._STUDENT_SIZES),
    ):
        network = open_side("kd", "numpy", 1).timed.networks[name]
        params, state = network.init(np.random.default_rng(0))
        images = np.zeros((1, 3, 224, 224), np.float32)
        network.forward(params, state, images, train=True, rng=np.random.default_rng(0))
        linear = [math.prod(shape) for shape in shapes.values() if len(shape) == 2]
        assert sorted(convolutions + linear) == sorted(googlenet._products(shapes, sizes))
        convolutions.clear()


@pytest.mark.parametrize("workload", [TEACHER, KD])
def test_names_and_shapes_are_those_of_refkds_networks(workload: GoogLeNetWorkload) -> None:
    networks = open_side(workload.name, "numpy", 1).timed.networks
    expected = {
        f"{name}.{k}": shape
        for name, network in networks.items()
        for k, shape in network.shapes()[0].items()
    }
    assert {k: v.shape for k, v in workload.params().items()} == expected


def test_what_is_timed_drops_and_what_is_verified_does_not() -> None:
    side = open_side("kd", "numpy", 1)
    params, _ = side.timed.networks["student"].init(np.random.default_rng(0))
    images = np.random.default_rng(1).random((2, 3, 224, 224), np.float32)
    for objective, same in ((side.timed, False), (side.verified, True)):
        first, second = (
            objective.networks["student"].forward(
                params, {}, images, train=True, rng=np.random.default_rng(seed)
            )[0]
            for seed in (2, 3)
        )
        assert np.array_equal(first, second) == same


@pytest.mark.parametrize(
    ("name", "dtype"), [("teacher", "float32"), ("kd", "float64"), ("kd", "float32")]
)
def test_both_sides_take_the_same_step(name: str, dtype: str) -> None:
    outputs = open_side(name, "numpy", 1).verify(dtype)
    assert len(outputs) == 1 + 2 * (128 if name == "teacher" else 6)
    tolerance = WORKLOADS[name].tolerances[dtype]
    check_agreement(outputs, open_torch(name).verify(dtype), tolerance=tolerance)


@pytest.mark.parametrize("mistake", ["heads exchanged", "head dropped", "teacher in train mode"])
def test_a_wrong_use_of_the_heads_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = open_torch("kd")
    if mistake == "teacher in train mode":
        side.teacher.train()
    else:
        weights = (0.3, 1.0, 0.3) if mistake == "heads exchanged" else (1.0, 0.3, 0.0)
        monkeypatch.setattr("bench.workloads.googlenet_torch.HEAD_WEIGHTS", weights)
    # A head weighs so little that only float64 is sure to see it: .45 · .3 / T of (s − t).
    with pytest.raises(VerificationError):
        check_agreement(
            open_side("kd", "numpy", 1).verify("float64"),
            side.verify("float64"),
            tolerance=KD.tolerances["float64"],
        )
