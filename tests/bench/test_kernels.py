"""The kernel benchmark: its definitions, its two sides, and the command on fake sides."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import harness, kernels
from bench.__main__ import main
from bench.harness import VerificationError, Worker, check_agreement
from bench.workloads import KERNELS
from bench.workloads.kernels import DIRECTIONS, LAYOUTS, ConvKernel, RingSide
from bench.workloads.kernels_refkd import open_side

SMALL = [
    ConvKernel(direction, *shape)
    for direction in DIRECTIONS
    for shape in ((2, 3, 9, 4, 7, 2), (3, 4, 6, 5, 3, 1), (2, 6, 5, 4, 1, 1))
]


@pytest.fixture(autouse=True)
def _small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 1)
    for kernel in SMALL:
        monkeypatch.setitem(KERNELS, kernel.name, kernel)


def test_all_directions_of_the_eight_shapes_are_there() -> None:
    own = [k for k in KERNELS.values() if k not in SMALL]
    assert len(own) == 24
    assert own[0].name == "conv2d_forward:64,3,32,64,3,1"
    assert {k.direction for k in own} == set(DIRECTIONS)
    assert own[12].shape == (8, 3, 224, 64, 7, 2)
    assert (own[12].padding, own[12].output_size) == (3, 112)


def test_operations_are_a_product_and_a_sum_for_every_tap_of_every_output() -> None:
    kernel = ConvKernel("forward", batch=2, channels=3, size=9, filters=4, kernel_size=7, stride=2)
    assert kernel.array_shapes()["dy"] == (2, 4, 5, 5)
    assert kernel.flop == 2 * (2 * 4 * 5 * 5) * (3 * 7 * 7)


def test_the_copies_of_a_ring_exceed_the_cache_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 100_000)
    ring = SMALL[1].ring("contiguous", "float32")
    assert sum(array.nbytes for arrays in ring for array in arrays.values()) >= 100_000
    assert not np.array_equal(ring[0]["x"], ring[1]["x"])
    monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 1)
    assert len(SMALL[1].ring("contiguous", "float32")) == 2


def test_layouts_hold_the_same_values_in_another_order_of_memory() -> None:
    first, last = (SMALL[1].ring(layout, "float32")[0] for layout in LAYOUTS)
    for name in ("x", "weight", "dy"):
        np.testing.assert_array_equal(first[name], last[name])
        assert first[name].flags.c_contiguous
        assert last[name].transpose(0, 2, 3, 1).flags.c_contiguous


def test_calls_go_round_the_ring() -> None:
    seen: list[float] = []

    def make(arrays: dict[str, Any]) -> Callable[[], None]:
        return lambda: seen.append(float(arrays["x"].flat[0]))

    side = RingSide(SMALL[0], "contiguous", make)
    assert len(side.run(3)) == 3
    side.run(2)
    first, second = (arrays["x"].flat[0] for arrays in SMALL[0].ring("contiguous", "float32"))
    assert seen == [first, second, first, second, first]


def test_verification_sees_memory_that_is_taken_for_zeros() -> None:
    kernel = ConvKernel("forward", 4, 8, 16, 8, 3, 1)  # too large for NumPy's cache of blocks

    def make(arrays: dict[str, Any]) -> Callable[[], Any]:
        def call() -> Any:
            y = np.empty(arrays["dy"].shape, np.float32)
            y += arrays["x"]
            return y

        return call

    outputs = RingSide(kernel, "contiguous", make).verify("float32")
    assert np.isnan(outputs["output 0"]).any()


def test_verification_sees_a_buffer_that_is_used_again() -> None:
    buffer = np.zeros(SMALL[1].array_shapes()["x"], np.float32)

    def make(arrays: dict[str, Any]) -> Callable[[], Any]:
        def call() -> Any:
            buffer[...] = arrays["x"]
            return buffer

        return call

    outputs = RingSide(SMALL[1], "contiguous", make).verify("float32")
    expected = [arrays["x"] for arrays in SMALL[1].ring("contiguous", "float32")]
    np.testing.assert_array_equal(outputs["output 1"], expected[1])
    assert not np.array_equal(outputs["output 0"], expected[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", SMALL, ids=lambda kernel: kernel.name)
def test_refkd_and_torch_compute_the_same(kernel: ConvKernel, layout: str) -> None:
    torch = pytest.importorskip("bench.workloads.kernels_torch")
    outputs = open_side(kernel.name, f"numpy/{layout}", 1).verify("float32")
    expected = torch.open_side(kernel.name, layout, 1).verify("float64")
    check_agreement(outputs, expected, tolerance=kernel.tolerance)
    of = {"forward": "dy", "backward_input": "x", "backward_weight": "weight"}[kernel.direction]
    assert outputs["output 0"].shape == kernel.array_shapes()[of]


def test_a_missing_tap_is_seen() -> None:
    kernel = SMALL[1]
    side = open_side(kernel.name, "numpy/contiguous", 1)
    expected = side.verify("float64")
    whole = side.make

    def make(arrays: dict[str, Any]) -> Callable[[], Any]:
        weight = arrays["weight"].copy()
        weight[0, 0, 0, 0] = 0
        return whole(arrays | {"weight": weight})

    side.make = make
    with pytest.raises(VerificationError):
        check_agreement(side.verify("float32"), expected, tolerance=kernel.tolerance)


class FakeWorker(Worker):
    """A worker on the fake side, whose mode is the layout alone."""

    def __init__(self, module: str, workload: str, mode: str, *, threads: int) -> None:
        super().__init__("fake_side", workload, mode.rpartition("/")[2], threads=threads)


@pytest.fixture
def _fake_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(harness, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(kernels, "_TURN_SECONDS", 0.01)
    monkeypatch.setattr(kernels, "Worker", FakeWorker)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    name = "conv2d_forward:64,64,32,64,3,1"
    code = main(["kernels", "--rounds", "2", "--threads", "1", "--kernel", name, *options])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("_fake_sides")
def test_rows_are_rates_of_the_faster_layout(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "rows.json"
    code, out = run(capsys, "--json", "--output", str(output))
    assert code == 0
    (row,) = json.loads(out)
    assert json.loads(output.read_text()) == [row]
    assert row["kernel"] == "conv2d_forward"
    assert row["shape"] == [64, 64, 32, 64, 3, 1]
    assert row["gflop"] == pytest.approx(4.8318, rel=1e-4)
    assert row["refkd_layout"] == row["peer_layout"] == "contiguous"  # 1 ms, and not 3
    assert row["refkd_gflops"] == row["peer_gflops"] == pytest.approx(4831.8, rel=1e-4)
    assert row["environment"]["threads"] == 1


def test_the_table_has_a_line_per_kernel_with_or_without_a_peer() -> None:
    row: dict[str, Any] = {
        "kernel": "conv2d_forward",
        "shape": [64, 64, 32, 64, 3, 1],
        "gflop": 4.8318,
        "refkd_gflops": 81.25,
        "refkd_layout": "contiguous",
    }
    peer = {"ratio": 0.5, "ratio_quartiles": (0.4, 0.6), "peer_ms": 1.0, "peer_gflops": 162.5}
    table = kernels.table(
        [row | peer | {"peer_layout": "channels_last"}, row | {"peer_ms": None}]
    ).splitlines()
    start = "| conv2d_forward | 64,64,32,64,3,1 | 4.83 | 81.2 |"
    assert table[2:] == [
        f"{start} 162.5 | 0.50 (0.40 to 0.60) | contiguous, channels_last |",
        f"{start}  |  | contiguous |",
    ]
    assert {line.count("|") for line in table} == {8}


@pytest.mark.usefixtures("_fake_sides")
def test_without_a_peer_its_columns_are_empty(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--json", "--peer", "none")
    (row,) = json.loads(out)
    assert code == 0
    assert row["refkd_ms"] == pytest.approx(1.0)
    assert row["peer_ms"] is row["ratio"] is row["peer_gflops"] is row["peer_layout"] is None


@pytest.mark.usefixtures("_fake_sides")
def test_a_kernel_that_computes_something_else_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LAYOUTS", ("contiguous", "wrong in float32"))
    code, out = run(capsys, "--json")
    assert (code, json.loads(out)) == (1, [])
