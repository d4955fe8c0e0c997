"""The VGG workloads: what they are, and that both sides do the same on a small one."""

from __future__ import annotations

import numpy as np
import pytest

from bench.harness import VerificationError, check_agreement
from bench.workloads import WORKLOADS
from bench.workloads.vgg import VGGWorkload
from bench.workloads.vgg_refkd import open_side

SMALL = VGGWorkload("small", 3, ((4,), (4,), (6,), (8,), (8,)), ((4, 6), (8,), (8,), (8,), (8,)))


@pytest.fixture(autouse=True)
def _small_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS, "small", SMALL)


def test_the_two_rows_have_the_published_numbers_of_parameters() -> None:
    assert [name for name in WORKLOADS if name.startswith("vgg")] == [
        "vgg_student_b64",
        "vgg_kd_b64",
    ]
    params = WORKLOADS["vgg_kd_b64"].params()
    sizes = dict.fromkeys(("student", "teacher"), 0)
    for name, value in params.items():
        sizes[name.partition(".")[0]] += value.size
    assert sizes == {"student": 437_034, "teacher": 14_728_266}


def test_operations_are_those_of_direct_convolution() -> None:
    gflop = {name: w.flop / 1e9 for name, w in WORKLOADS.items() if name.startswith("vgg")}
    assert gflop == pytest.approx({"vgg_student_b64": 12.23, "vgg_kd_b64": 52.32}, abs=0.005)
    sizes = (32, 16, 8, 4, 2)  # each block's
    widths = (3, 4, 4, 6, 8, 8)
    products = [9 * a * b * s * s for a, b, s in zip(widths, widths[1:], sizes, strict=False)]
    learning = VGGWorkload("small", 3, SMALL.blocks)
    assert learning.flop == 2 * 3 * (3 * (sum(products) + 8 * 10) - products[0])
    teacher = [9 * (3 * 4 + 4 * 6) * 32**2, 9 * 6 * 8 * 16**2, *(9 * 64 * s**2 for s in (8, 4, 2))]
    assert SMALL.flop - learning.flop == 2 * 3 * (sum(teacher) + 8 * 10)


def test_names_and_shapes_are_those_of_refkds_network() -> None:
    networks = open_side("small", "numpy", 1).timed.networks
    params, state = SMALL.params(), SMALL.state()
    expected = [
        {f"{name}.{k}": v for name, network in networks.items() for k, v in shapes(network).items()}
        for shapes in (lambda n: n.shapes()[0], lambda n: n.shapes()[1])
    ]
    assert {k: v.shape for k, v in params.items()} == expected[0]
    assert {k: v.shape for k, v in state.items()} == expected[1]


def test_every_run_starts_from_the_same_parameters_and_statistics() -> None:
    side = open_side("small", "numpy", 1)
    before = {name: value.copy() for name, value in (side.params | side.state).items()}
    times = side.run(18)  # beyond one epoch of 16 batches
    assert len(times) == 18
    assert min(times) > 0
    for name, value in (side.params | side.state).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verification_covers_gradients_parameters_and_running_statistics(dtype: str) -> None:
    side = open_side("small", "numpy", 1)
    outputs = side.verify(dtype)
    learning = [name for name in side.params if name.startswith("student.")]
    moving = [name for name in side.state if name.startswith("student.")]
    assert len(learning) == 5 * 4 + 2
    assert len(moving) == 5 * 3
    assert len(outputs) == 1 + 2 * len(learning) + len(moving)
    for name in learning:
        assert outputs[f"gradient of {name}"].dtype == dtype
        assert np.any(outputs[f"{name} after the step"] != side.params[name])
    for name in moving:
        assert np.any(outputs[f"{name} after the step"] != side.state[name])


def test_the_teachers_logits_depend_on_the_images() -> None:
    # With small weights they would be the last bias, and no error in the teacher would show.
    torch_side = pytest.importorskip("bench.workloads.vgg_torch").open_side("small", "eager", 1)
    logits = torch_side.teacher(torch_side.images[:3].float() / 255).numpy()
    assert (logits.max(axis=0) - logits.min(axis=0)).max() > 0.1


class TestBesideTorch:
    @pytest.mark.parametrize("mode", ["eager", "channels_last"])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_both_sides_take_the_same_step(self, mode: str, dtype: str) -> None:
        torch_side = pytest.importorskip("bench.workloads.vgg_torch").open_side("small", mode, 1)
        tolerance = SMALL.tolerances[dtype]
        check_agreement(
            open_side("small", "numpy", 1).verify(dtype),
            torch_side.verify(dtype),
            tolerance=tolerance,
        )

    @pytest.mark.parametrize(
        "mistake", ["teacher in train mode", "student in eval mode", "other epsilon"]
    )
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_a_network_in_the_wrong_mode_is_seen(self, mistake: str, dtype: str) -> None:
        torch_side = pytest.importorskip("bench.workloads.vgg_torch").open_side("small", "eager", 1)
        if mistake == "teacher in train mode":
            torch_side.teacher.train()
        elif mistake == "student in eval mode":
            torch_side.student.eval()
        else:
            torch_side.student.layers[1].eps = 1e-3
        with pytest.raises(VerificationError):
            check_agreement(
                open_side("small", "numpy", 1).verify(dtype),
                torch_side.verify(dtype),
                tolerance=SMALL.tolerances[dtype],
            )

    def test_a_run_of_torch_starts_from_the_same_parameters_too(self) -> None:
        torch_side = pytest.importorskip("bench.workloads.vgg_torch").open_side("small", "eager", 1)
        before = torch_side.verify("float64")
        assert len(torch_side.run(3)) == 3
        check_agreement(torch_side.verify("float64"), before, tolerance=1e-12)
