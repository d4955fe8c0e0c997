"""The MLP workloads: what refkd's side does, and that both sides do the same."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from bench.harness import VerificationError, Worker, check_agreement
from bench.workloads import WORKLOADS, module_of
from bench.workloads.mlp import MLPWorkload
from bench.workloads.mlp_refkd import open_side

_TOLERANCE = MLPWorkload.tolerances["float32"]
MLP = [name for name in WORKLOADS if name.startswith("mlp")]


def test_the_five_rows_are_there() -> None:
    assert MLP == [
        "mlp_student_b32",
        "mlp_kd_b32",
        "mlp_kd_b128",
        "mlp_teacher_b32",
        "mlp_teacher_b128",
    ]


def test_operations_are_those_of_the_products() -> None:
    gflop = [round(WORKLOADS[name].flop / 1e9, 3) for name in MLP]
    assert gflop == [0.002, 0.155, 0.621, 0.399, 1.597]
    # Forward, the gradient of the weights, and that of the input but for the first layer's.
    products = 20 * 784 + 20 * 20 + 10 * 20
    assert WORKLOADS["mlp_student_b32"].flop == 2 * 32 * (3 * products - 20 * 784)


def test_every_run_starts_from_the_same_parameters_and_returns_one_time_per_step() -> None:
    side = open_side("mlp_kd_b32", "numpy", 1)
    before = {name: value.copy() for name, value in side.params.items()}
    times = side.run(40)  # beyond one epoch of 32 batches
    assert len(times) == 40
    assert min(times) > 0
    for name, value in side.params.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("workload", ["mlp_student_b32", "mlp_kd_b32"])
def test_verification_covers_every_parameter_of_the_network_that_learns(workload: str) -> None:
    side = open_side(workload, "numpy", 1)
    outputs = side.verify("float32")
    learning = [name for name in side.params if name.startswith("student.")]
    assert len(learning) == 6
    for name in learning:
        assert np.any(outputs[f"gradient of {name}"])
        assert np.any(outputs[f"{name} after the step"] != side.params[name])
    assert len(outputs) == 1 + 2 * len(learning)


def test_verification_catches_a_gradient_that_is_off_by_a_thousandth_in_its_largest_entry() -> None:
    outputs = open_side("mlp_student_b32", "numpy", 1).verify("float32")
    name = "gradient of student.fc2.weight"
    wrong = outputs[name].copy()
    wrong.flat[np.abs(wrong).argmax()] *= 1.001
    with pytest.raises(VerificationError, match=name):
        check_agreement(outputs | {name: wrong}, outputs, tolerance=_TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("workload", MLP)
def test_refkd_and_torch_take_the_same_step(workload: str) -> None:
    with (
        Worker(module_of(workload, "refkd"), workload, "numpy", threads=1) as refkd,
        Worker(module_of(workload, "torch"), workload, "eager", threads=1) as torch,
    ):
        outputs = refkd.verify("float32")
        check_agreement(outputs, torch.verify("float32"), tolerance=_TOLERANCE)
    assert len(outputs) == 13
