"""The kernel benchmark: its definitions, its two sides, and the command on fake sides."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import comparison, harness, kernels
from bench.__main__ import main
from bench.harness import VerificationError, Worker, check_agreement
from bench.workloads import KERNELS
from bench.workloads import kernel_families as families
from bench.workloads.kernels import LAYOUTS, Kernel, RingSide
from bench.workloads.kernels_refkd import open_side

CONV = families.conv2d(3, 4, 6, 5, 3, 1)
SMALL = [
    *families.conv2d(2, 3, 9, 4, 7, 2),
    *CONV,
    *families.conv2d(2, 6, 5, 4, 1, 1),
    *families.linear(5, 7, 3),
    *families.attention(2, 3, 5, 4),
    *families.batch_norm(3, 4, 5, 6),
    *families.group_norm(3, 6, 5, 4, num_groups=2),
    *families.layer_norm(2, 5, 8),
    *families.activation("relu", 2, 3, 4, 5),
    *families.activation("gelu", 2, 3, 4, 5),
    *families.activation("silu", 2, 3, 4, 5),
    *families.max_pool2d(2, 3, 6, 8, kernel_size=2, stride=2),
    *families.max_pool2d(2, 3, 6, 7, kernel_size=3, stride=1, padding=1),
    *families.max_pool2d(2, 3, 8, 7, kernel_size=3, stride=2, ceil_mode=True),
    *families.avg_pool2d(2, 3, 8, 9, kernel_size=5, stride=3),
    *families.upsample_nearest2d(2, 3, 4, 5, scale_factor=2),
    *families.softmax_kd(6, 11),
    *families.adam(50),
]


@pytest.fixture(autouse=True)
def _small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 1)
    for kernel in SMALL:
        monkeypatch.setitem(KERNELS, kernel.name, kernel)


class TestDefinitions:
    def test_the_rows_that_the_results_list_are_there(self) -> None:
        names = [kernel.name for kernel in families.KERNELS]
        assert len(names) == len(set(names)) == 24 + 2 * 17 + 2
        assert names[0] == "conv2d_forward:64,3,32,64,3,1"
        for name in (
            "linear_backward:128,1200,1200",
            "attention_forward:8,3,197,64",
            "attention_backward:64,4,65,32",
            "batch_norm_backward:64,64,32,32",
            "group_norm_forward:32,64,28,28,g8",
            "layer_norm_forward:8,197,192",
            "layer_norm_backward:64,65,128",
            "gelu_backward:64,64,32,32",
            "max_pool2d_forward:64,64,32,32,k2,s2",
            "max_pool2d_backward:8,192,56,56,k3,s1,p1",
            "max_pool2d_forward:8,64,112,112,k3,s2,ceil",
            "avg_pool2d_backward:8,512,14,14,k5,s3",
            "upsample_nearest2d_forward:32,64,14,14,x2",
            "softmax_kd_backward:128,1000",
            "adam_update:14728266",
        ):
            assert name in names

    def test_every_kernel_of_the_command_is_tested_here_on_a_small_shape(self) -> None:
        assert {k.kernel for k in families.KERNELS} == {k.kernel for k in SMALL}

    def test_operations_are_a_product_and_a_sum_for_every_tap_of_every_output(self) -> None:
        for kernel in families.conv2d(2, 3, 9, 4, 7, 2):
            assert kernel.shape_of("dy") == (2, 4, 5, 5)
            assert kernel.flop == 2 * (2 * 4 * 5 * 5) * (3 * 7 * 7)
        forward, backward = families.linear(5, 7, 3)
        assert (forward.flop, backward.flop) == (2 * 5 * 7 * 3, 4 * 5 * 7 * 3)

    def test_attention_has_two_products_forward_and_four_backward(self) -> None:
        # q kᵀ and P v; dy vᵀ, Pᵀ dy, dS k and dSᵀ q.
        forward, backward = families.attention(2, 3, 5, 4)
        assert forward.flop == 2 * (2 * 2 * 3 * 5 * 5 * 4)
        assert backward.flop == 2 * forward.flop

    def test_bytes_are_those_of_all_arrays_read_and_written(self) -> None:
        forward, backward = families.layer_norm(2, 5, 8)
        assert forward.nbytes == 4 * (80 + 8 + 8 + 80 + 10 + 10)
        assert backward.nbytes == 4 * (80 + 80 + 8 + 10 + 10 + 80 + 8 + 8)
        (update,) = families.adam(50)
        assert update.nbytes == 28 * 50

    def test_an_index_has_eight_bytes(self) -> None:
        forward, backward = families.max_pool2d(2, 3, 6, 8, kernel_size=2, stride=2)
        assert forward.nbytes == 4 * 288 + (4 + 8) * 72
        assert backward.nbytes == forward.nbytes

    def test_only_what_moves_bytes_is_counted_in_bytes(self) -> None:
        counted = {k.operation for k in families.KERNELS if k.flop}
        assert counted == {"conv2d", "linear", "attention"}

    def test_only_images_have_layouts(self) -> None:
        with_layouts = {k.operation for k in families.KERNELS if k.layouts == LAYOUTS}
        pools = {"max_pool2d", "avg_pool2d", "upsample_nearest2d"}
        assert with_layouts == {"conv2d", "batch_norm", "group_norm"} | pools

    def test_backwards_draw_what_their_forward_reads_and_not_what_it_returns(self) -> None:
        forward, backward = families.max_pool2d(2, 3, 6, 8, kernel_size=2, stride=2)
        assert forward.drawn == ("x",)
        assert backward.drawn == ("x", "dy")
        assert families.adam(50)[0].drawn == ("param", "grad", "exp_avg", "exp_avg_sq")


class TestRing:
    def test_its_copies_exceed_the_cache_and_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 100_000)
        kernel = CONV[0]
        ring = list(kernel.ring("contiguous", "float32"))
        assert sum(array.nbytes for arrays in ring for array in arrays.values()) >= 100_000
        assert not np.array_equal(ring[0]["x"], ring[1]["x"])
        monkeypatch.setattr("bench.workloads.kernels._MOST_COPIES", 7)
        assert len(list(kernel.ring("contiguous", "float32"))) == 7
        monkeypatch.setattr("bench.workloads.kernels._RING_BYTES", 1)
        assert len(list(kernel.ring("contiguous", "float32"))) == 2

    def test_layouts_hold_the_same_values_in_another_order_of_memory(self) -> None:
        first, last = (next(CONV[2].ring(layout, "float32")) for layout in LAYOUTS)
        for name in ("x", "weight", "dy"):
            np.testing.assert_array_equal(first[name], last[name])
            assert first[name].flags.c_contiguous
            assert last[name].transpose(0, 2, 3, 1).flags.c_contiguous

    def test_values_suit_their_names(self) -> None:
        arrays = next(families.softmax_kd(6, 11)[0].ring("contiguous", "float32"))
        assert arrays["labels"].dtype == np.int64
        assert 0 <= arrays["labels"].min() <= arrays["labels"].max() < 11
        arrays = next(families.adam(50)[0].ring("contiguous", "float32"))
        assert arrays["exp_avg_sq"].min() > 0 > arrays["exp_avg"].min()

    def test_dtypes_have_the_same_values(self) -> None:
        ring = families.adam(50)[0].ring
        single, double = (next(ring("contiguous", dtype)) for dtype in ("float32", "float64"))
        for name, value in double.items():
            assert value.dtype == np.float64
            np.testing.assert_array_equal(value, single[name])

    def test_calls_go_round_it(self) -> None:
        seen: list[float] = []

        def make(arrays: dict[str, Any]) -> Callable[[], None]:
            return lambda: seen.append(float(arrays["x"].flat[0]))

        side = RingSide(CONV[0], "contiguous", make, dict)
        assert len(side.run(3)) == 3
        side.run(2)
        first, second = (arrays["x"].flat[0] for arrays in CONV[0].ring("contiguous", "float32"))
        assert seen == [first, second, first, second, first]


class TestVerification:
    def test_it_sees_memory_that_is_taken_for_zeros(self) -> None:
        # Too large for NumPy's cache of blocks.
        kernel, _ = families.activation("relu", 4, 8, 16, 16)

        def make(arrays: dict[str, Any]) -> Callable[[], Any]:
            def call() -> Any:
                y = np.empty(arrays["x"].shape, np.float32)
                y += arrays["x"]
                return y

            return call

        outputs = RingSide(kernel, "contiguous", make, lambda y: {"y": y}).verify("float32")
        assert np.isnan(outputs["y 0"]).any()

    def test_it_sees_a_buffer_that_is_used_again(self) -> None:
        buffer = np.zeros(CONV[0].shape_of("x"), np.float32)

        def make(arrays: dict[str, Any]) -> Callable[[], Any]:
            def call() -> Any:
                buffer[...] = arrays["x"]
                return buffer

            return call

        outputs = RingSide(CONV[0], "contiguous", make, lambda y: {"y": y}).verify("float32")
        expected = [arrays["x"] for arrays in CONV[0].ring("contiguous", "float32")]
        np.testing.assert_array_equal(outputs["y 1"], expected[1])
        assert not np.array_equal(outputs["y 0"], expected[0])

    def test_what_is_written_in_place_is_an_output(self) -> None:
        (kernel,) = families.adam(50)
        outputs = open_side(kernel.name, "numpy/contiguous", 1).verify("float32")
        assert {name.partition(" ")[0] for name in outputs} == set(kernel.writes)
        drawn = next(kernel.ring("contiguous", "float32"))
        for name in kernel.writes:
            assert np.all(outputs[f"{name} 0"] != drawn[name])

    def test_a_missing_tap_is_seen(self) -> None:
        kernel = CONV[0]
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

    def test_every_output_of_the_peer_is_compared_and_what_refkd_has_beyond_them_is_not(
        self,
    ) -> None:
        kernels._verify({"a": Answers(y=1.0, var=7.0)}, Answers(y=1.0), 1e-6)
        with pytest.raises(VerificationError, match="only one side has 'rstd'"):
            kernels._verify({"a": Answers(y=1.0)}, Answers(y=1.0, rstd=1.0), 1e-6)
        with pytest.raises(VerificationError, match="'y' differs"):
            kernels._verify({"a": Answers(y=1.0), "b": Answers(y=1.1)}, Answers(y=1.0), 1e-6)

    def test_only_a_backend_that_uses_winograd_has_a_wider_tolerance(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = pytest.importorskip("refkd_numba.settings")
        kernel, other = CONV[0], families.conv2d(2, 3, 9, 4, 5, 1)[0]
        for winograd, expected in ((True, 3e-5), (False, 5e-6)):
            monkeypatch.setattr(settings, "winograd", winograd)
            assert kernels.tolerance(kernel, "numba") == expected
            assert kernels.tolerance(kernel, "numpy") == 5e-6
            assert kernels.tolerance(other, "numba") == 5e-6

    def test_a_stride_or_another_window_leaves_no_room_for_winograd(self) -> None:
        wide = {k.label for k in families.KERNELS if k.winograd_tolerance is not None}
        assert wide == {
            "64,3,32,64,3,1",
            "64,64,32,64,3,1",
            "64,128,16,128,3,1",
            "16,512,4,512,3,1",
            "8,64,56,192,3,1",
        }


class Answers:
    """A worker whose outputs are given."""

    def __init__(self, **outputs: float) -> None:
        self.outputs = outputs

    def verify(self, dtype: str) -> dict[str, np.ndarray]:
        return {name: np.array([value], dtype) for name, value in self.outputs.items()}


class TestBesideTorch:
    @pytest.mark.parametrize(
        ("kernel", "layout"),
        [(kernel, layout) for kernel in SMALL for layout in kernel.layouts],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_both_sides_compute_the_same(self, kernel: Kernel, layout: str) -> None:
        torch = pytest.importorskip("bench.workloads.kernels_torch")
        outputs = open_side(kernel.name, f"numpy/{layout}", 1).verify("float32")
        expected = torch.open_side(kernel.name, layout, 1).verify("float64")
        compared = {name: outputs[name] for name in expected}
        check_agreement(compared, expected, tolerance=kernel.tolerance)
        for name, value in outputs.items():
            assert value.shape == kernel.shape_of(name.partition(" ")[0])
        assert set(outputs) == {f"{name} {i}" for name in kernel.writes for i in range(2)}

    @pytest.mark.parametrize("kernel", SMALL, ids=lambda kernel: kernel.name)
    def test_the_result_of_a_forward_and_all_gradients_are_compared(self, kernel: Kernel) -> None:
        torch = pytest.importorskip("bench.workloads.kernels_torch")
        outputs = torch.open_side(kernel.name, "contiguous", 1).verify("float64")
        compared = {name.partition(" ")[0] for name in outputs}
        needed = kernel.writes[:1] if kernel.direction == "forward" else kernel.writes
        assert set(needed) <= compared <= set(kernel.writes)

    @pytest.mark.parametrize("kernel", SMALL, ids=lambda kernel: kernel.name)
    def test_torch_times_what_it_verifies(self, kernel: Kernel) -> None:
        torch = pytest.importorskip("bench.workloads.kernels_torch")
        assert len(torch.open_side(kernel.name, "contiguous", 1).run(3)) == 3


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
    peaks = {"sgemm_gflops": 10_000.0, "copy_gbs": 40.0}
    monkeypatch.setattr(comparison, "measure_peaks", lambda threads: peaks)


CONV_ROW = "conv2d_forward:64,64,32,64,3,1"
BYTE_ROW = "adam_update:2395210"


def run(
    capsys: pytest.CaptureFixture[str], *options: str, kernel: str = CONV_ROW
) -> tuple[int, str]:
    code = main(["kernels", "--rounds", "2", "--threads", "1", "--kernel", kernel, *options])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("_fake_sides")
class TestCommand:
    def test_rows_are_rates_of_the_faster_layout(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        output = tmp_path / "rows.json"
        code, out = run(capsys, "--json", "--output", str(output))
        assert code == 0
        (row,) = json.loads(out)
        assert json.loads(output.read_text()) == [row]
        assert row["kernel"] == "conv2d_forward"
        assert row["shape"] == "64,64,32,64,3,1"
        assert row["gflop"] == pytest.approx(4.8318, rel=1e-4)
        assert row["refkd_layout"] == row["peer_layout"] == "contiguous"  # 1 ms, and not 3
        assert row["refkd_rate"] == row["peer_rate"] == pytest.approx(4831.8, rel=1e-4)
        assert row["rate_unit"] == "GFLOP/s"
        assert row["roofline"] == row["peer_roofline"] == pytest.approx(0.48318, rel=1e-4)
        assert row["environment"]["threads"] == 1
        assert row["environment"]["sgemm_gflops"] == 10_000
        assert row["environment"]["copy_gbs"] == 40

    def test_what_has_no_operations_to_speak_of_is_measured_by_bytes(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out = run(capsys, "--json", kernel=BYTE_ROW)
        (row,) = json.loads(out)
        assert row["gflop"] is None
        assert row["gbyte"] == pytest.approx(28e-9 * 2_395_210)
        assert row["rate_unit"] == "GB/s"
        assert row["refkd_rate"] == pytest.approx(67.066, rel=1e-4)
        assert row["roofline"] == pytest.approx(67.066 / 40, rel=1e-4)

    def test_without_a_peer_its_columns_are_empty(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out = run(capsys, "--json", "--peer", "none")
        (row,) = json.loads(out)
        assert code == 0
        assert row["refkd_ms"] == pytest.approx(1.0)
        for name in ("peer_ms", "ratio", "peer_rate", "peer_roofline", "peer_layout"):
            assert row[name] is None

    def test_a_kernel_that_computes_something_else_is_not_timed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layouts = ("contiguous", "wrong in float32")
        kernel = dataclasses.replace(KERNELS[CONV_ROW], layouts=layouts)
        monkeypatch.setitem(KERNELS, CONV_ROW, kernel)
        code, out = run(capsys, "--json")
        assert (code, json.loads(out)) == (1, [])

    def test_several_rows_have_the_geometric_mean_of_their_ratios(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out = run(capsys, "--kernel", BYTE_ROW, "--json")
        rows = json.loads(out)
        assert [row["geometric_mean_ratio"] for row in rows] == [1.0, 1.0]
        _, out = run(capsys, "--kernel", BYTE_ROW)
        assert out.splitlines()[-1] == "| geometric mean |  |  |  |  | 1.00 |  |  |  |"


def test_the_table_has_a_line_per_kernel_with_or_without_a_peer() -> None:
    row: dict[str, Any] = {
        "kernel": "conv2d_forward",
        "shape": "64,64,32,64,3,1",
        "gflop": 4.8318,
        "gbyte": 0.0337,
        "refkd_ms": 59.47,
        "refkd_rate": 81.25,
        "rate_unit": "GFLOP/s",
        "refkd_layout": "contiguous",
        "roofline": 0.4321,
    }
    peer = {"ratio": 0.5, "ratio_quartiles": (0.4, 0.6), "peer_ms": 29.7, "peer_roofline": 0.864}
    alone = {"ratio": None, "peer_ms": None, "peer_roofline": None}
    copied = alone | {"gflop": None, "rate_unit": "GB/s"}
    table = kernels.table(
        [row | peer | {"peer_layout": "channels_last"}, row | alone, row | copied]
    ).splitlines()
    start = "| conv2d_forward | 64,64,32,64,3,1 |"
    assert table[2:] == [
        f"{start} 4.83 GFLOP | 59.470 | 29.700 | 0.50 (0.40 to 0.60) | 81.2 GFLOP | 0.43, 0.86 "
        "| contiguous, channels_last |",
        f"{start} 4.83 GFLOP | 59.470 |  |  | 81.2 GFLOP | 0.43 | contiguous |",
        f"{start} 33.70 MB | 59.470 |  |  | 81.2 GB | 0.43 | contiguous |",
    ]
    assert {line.count("|") for line in table} == {10}


def test_the_geometric_mean_leaves_out_rows_without_a_ratio() -> None:
    rows = [{"ratio": ratio} for ratio in (0.5, None, 4.5)]
    assert comparison.geometric_mean_ratio(rows) == pytest.approx(math.sqrt(0.5 * 4.5))
    assert comparison.geometric_mean_ratio(rows[:2]) is None
