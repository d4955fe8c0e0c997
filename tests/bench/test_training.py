"""The training benchmark end to end, on fake sides in real processes."""

from __future__ import annotations

import importlib.util
import json
import types
from pathlib import Path
from typing import Any

import pytest

from bench import comparison, harness, training
from bench.__main__ import main

COLUMNS = {"workload", "refkd_ms", "peer_ms", "ratio", "refkd_rss_mb", "peer_rss_mb"}


@pytest.fixture(autouse=True)
def _fake_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(harness, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(training, "_TURN_SECONDS", 0.01)
    definition = types.SimpleNamespace(
        torch_modes=("eager", "compile"),
        tolerances={"float64": 1e-12, "float32": 1e-6},
        flop=4_000_000,
    )
    monkeypatch.setattr(training, "WORKLOADS", {"fake": definition, "fake_too": definition})
    monkeypatch.setattr(training, "module_of", lambda workload, side: "fake_side")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    peaks = {"sgemm_gflops": 16.0, "copy_gbs": 20.0}
    monkeypatch.setattr(comparison, "measure_peaks", lambda threads: peaks)


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["training", "--rounds", "2", "--threads", "1", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    code, out, _ = run(capsys, "--json", *options)
    assert code == 0
    parsed: list[dict[str, Any]] = json.loads(out)
    return parsed


def test_json_is_a_list_of_rows_with_peer_over_refkd_as_ratio(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "rows.json"
    measured = rows(capsys, "--workload", "fake", "--output", str(output))
    assert json.loads(output.read_text()) == measured
    (row,) = measured
    assert row.keys() >= COLUMNS
    assert row["ratio"] == pytest.approx(row["peer_ms"] / row["refkd_ms"])
    assert row["ratio"] == pytest.approx(2.0)  # against its compiled mode, the faster one
    assert row["peer_mode"] == "compile"
    assert row["environment"]["threads"] == 1


def test_the_roofline_is_the_part_of_the_peak_that_the_steps_operations_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (row,) = rows(capsys, "--workload", "fake")
    assert row["gflop"] == 0.004
    assert row["environment"]["sgemm_gflops"] == 16
    assert row["roofline"] == pytest.approx(0.25)  # 4 of 16 GFLOP/s
    assert row["peer_roofline"] == pytest.approx(0.125)


def test_several_rows_have_the_geometric_mean_of_their_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [row["geometric_mean_ratio"] for row in rows(capsys)] == pytest.approx([2.0, 2.0])
    assert rows(capsys, "--workload", "fake")[0]["geometric_mean_ratio"] is None
    _, out, _ = run(capsys)
    assert out.splitlines()[-1] == "| geometric mean |  |  | 2.00 |  |  |  |  |"


def test_the_compiled_mode_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, "--workload", "fake", "--no-compile")
    assert row["peer_mode"] == "eager"


def test_all_workloads_run_where_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["workload"] for row in rows(capsys, "--peer", "none")] == ["fake", "fake_too"]


def test_without_a_peer_its_columns_are_empty(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, "--workload", "fake", "--peer", "none")
    assert row["refkd_ms"] == pytest.approx(1.0)
    assert row["peer_ms"] is row["ratio"] is row["peer_rss_mb"] is None


def test_a_peer_that_does_not_compile_runs_eagerly_and_the_row_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCompiler(harness.Worker):
        def __init__(self, module: str, workload: str, mode: str, **options: Any) -> None:
            mode = "raises" if mode == "compile" else mode
            super().__init__(module, workload, mode, **options)

    monkeypatch.setattr(training, "Worker", NoCompiler)
    (row,) = rows(capsys, "--workload", "fake")
    assert row["ratio"] == pytest.approx(4.0)
    assert row["peer_mode"].startswith("eager (compile: ")
    assert "no compiler" in row["peer_mode"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_side_that_computes_something_else_is_an_error_and_is_not_timed(
    capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    code, out, err = run(capsys, "--json", "--workload", "fake", "--backend", f"wrong in {dtype}")
    assert (code, json.loads(out)) == (1, [])
    assert "fake: VerificationError: 'gradient of w' differs by 1.67e-01" in err


def test_a_failed_row_leaves_the_others_standing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_workload(workload: str, arguments: Any) -> dict[str, Any]:
        if workload == "fake":
            raise harness.WorkerError("gone")
        return {
            "workload": workload,
            "gflop": 1.0,
            "refkd_ms": 1.0,
            "peer_ms": None,
            "ratio": None,
        }

    monkeypatch.setattr(training, "measure_workload", measure_workload)
    code, out, err = run(capsys, "--json")
    assert (code, [row["workload"] for row in json.loads(out)]) == (1, ["fake_too"])
    assert "fake: WorkerError: gone" in err


def test_table_has_one_line_per_row_and_the_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "--workload", "fake")
    assert code == 0
    assert "| fake | 1.000 | 2.000 | 2.00 (2.00 to 2.00) | 0.250, 0.125 |" in out
    assert "geometric mean" not in out
    assert "compile cold s" not in out
    for line in ("numpy ", "blas ", "sgemm_gflops 16.0\n", "copy_gbs     20.0\n"):
        assert line in out


class TestCompileTimes:
    @pytest.fixture(autouse=True)
    def _known_times(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def compile_times(backend: str, open_worker: Any) -> dict[str, float]:
            with open_worker({"FAKE_SECONDS": "12.0"}) as worker:
                (cold,) = worker.run(1)
            assert backend == "cold"
            return {"import_s": 0.75, "compile_cold_s": cold, "compile_warm_s": 0.5}

        monkeypatch.setattr(training, "CACHE_VARIABLES", {"cold": "FAKE_SECONDS"})
        monkeypatch.setattr(training, "compile_times", compile_times)
        monkeypatch.setattr(training, "Worker", self.Cold)

    class Cold(harness.Worker):
        """A worker whose mode ``cold`` tells a variable where it has one."""

        def __init__(self, *names: str, variables: Any, **options: Any) -> None:
            module, workload, mode = names
            if variables is not None and mode == "cold":
                mode = "tells a variable"
            super().__init__(module, workload, mode, variables=variables, **options)

    def test_they_are_measured_where_the_backend_compiles(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (row,) = rows(capsys, "--workload", "fake", "--backend", "cold")
        assert (row["import_s"], row["compile_cold_s"], row["compile_warm_s"]) == (0.75, 12.0, 0.5)
        _, out, _ = run(capsys, "--workload", "fake", "--backend", "cold")
        head, _, line = out.splitlines()[-3:]
        assert head.endswith("| mode | import s | compile cold s | compile warm s |")
        assert line.endswith("| compile | 0.8 | 12.0 | 0.5 |")

    @pytest.mark.parametrize(
        "options", [["--backend", "cold", "--no-compile-times"], ["--backend", "numpy"]]
    )
    def test_they_can_be_left_out_and_are_where_nothing_is_compiled(
        self, options: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        (row,) = rows(capsys, "--workload", "fake", *options)
        assert "import_s" not in row

    def test_to_ask_for_those_of_a_backend_that_does_not_compile_is_a_usage_error(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, _, err = run(capsys, "--backend", "numpy", "--compile-times")
        assert code == 2
        assert "the backend numpy does not compile; cold does" in err


def test_a_peer_that_is_not_installed_is_exit_code_4_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys)
    assert code == 4
    assert "pip install 'refkd[torch]'" in err


@pytest.mark.parametrize("option", [["--rounds", "0"], ["--threads", "x"], ["--workload", "no"]])
def test_a_senseless_option_is_a_usage_error(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["training", *option])
    assert exit_info.value.code == 2
    assert option[0] in capsys.readouterr().err
