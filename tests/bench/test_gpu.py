"""``python -m bench gpu`` without a GPU: what becomes of workers that fail, hang or take long."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bench.gpu as command
from bench.__main__ import main
from bench.gpu import conformance, sections, tables

WORKER = """
import json, sys, time
def say(**message): print("@bench " + json.dumps(message), flush=True)
section, words, done = sys.argv[1:]
names = [n for n in ("fine", "broken", "dies", "hangs", "last") if n not in json.loads(done)]
say(kind="rows", names=names)
for name in names:
    say(kind="begin", row=name)
    if name == "dies":
        print("CUDA error: an illegal memory access", flush=True)
        sys.exit(3)
    if name == "hangs":
        time.sleep(60)
    say(kind="row", row=name, **({"error": "oh"} if name == "broken" else {"us": 1.0}))
say(kind="end")
"""


def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float) -> list[dict[str, Any]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(sections, "_ROW_SECONDS", 1.0)
    found: list[dict[str, Any]] = []
    sections.run_section("any", "", seconds, found.append, worker=[sys.executable, str(script)])
    return found


def test_a_row_that_fails_loses_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {row["row"]: row for row in rows(monkeypatch, tmp_path, 30)}
    assert found["fine"] == {"row": "fine", "us": 1.0}
    assert found["broken"]["error"] == "oh"
    assert "ended with 3" in found["dies"]["error"]
    assert "illegal memory access" in found["dies"]["error"]
    assert "nothing came" in found["hangs"]["error"]
    assert found["last"]["us"] == 1.0


def test_rows_are_left_out_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = time.monotonic()
    found = rows(monkeypatch, tmp_path, 0.01)
    assert time.monotonic() - begun < 10
    assert all("skipped" in row for row in found)
    assert found


def test_without_a_gpu_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "available_backends", lambda: {"cupy": "there is no driver"})
    assert main(["gpu"]) == 4
    assert capsys.readouterr().err == "bench gpu: there is no driver\n"


def test_results_are_written_and_a_section_that_breaks_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def section(name: str, words: str, seconds: float, add: Any) -> None:
        if name == "training":
            raise OSError("no more processes")
        numbers = {"refkd_us": 100.0, "peer_us": 150.0, "ratio": 1.5}
        numbers |= {"refkd_call_us": 101.0, "peer_call_us": 152.0}
        add({"row": "relu", "gbyte": 0.2, "gflop": None, "largest_error": 1e-7} | numbers)
        add({"row": "copy", "gbs": 3000.0})

    monkeypatch.setattr(command, "available_backends", lambda: {"cupy": None})
    monkeypatch.setattr(command, "run_section", section)
    output = tmp_path / "gpu.json"
    only = ["--only", "ceilings", "--only", "training"]
    assert main(["gpu", "--output", str(output), *only]) == 1
    written = json.loads(output.read_text())
    assert written["sections"]["ceilings"][1] == {"row": "copy", "gbs": 3000.0}
    assert written["sections"]["training"] == [
        {"row": "training", "error": "OSError: no more processes"}
    ]
    assert "no more processes" in capsys.readouterr().out


def test_the_table_has_the_part_of_the_peak_that_is_reached() -> None:
    kernel = {
        "row": "relu", "gbyte": 0.3, "gflop": None, "refkd_us": 125.0, "peer_us": 150.0,
        "ratio": 1.2, "refkd_call_us": 126.0, "peer_call_us": 155.0, "largest_error": 1e-7,
    }  # fmt: skip
    step = {
        "row": "mlp", "captured": True, "refkd_eager_ms": 1.0, "refkd_captured_ms": 0.1,
        "torch_eager_ms": 0.5, "torch_graph_ms": 0.2, "ratio_eager": 5.0, "ratio_graph": 2.0,
    }  # fmt: skip
    text = tables.text(
        {
            "sections": {
                "ceilings": [{"row": "copy", "gbs": 3000.0}],
                "kernels": [kernel],
                "training": [step, {"row": "vgg", "skipped": "the time was up"}],
            }
        }
    )
    assert "| relu | 125.0 | 150.0 | 1.20 | 0.80 | 126 | 155 | 1e-07 |" in text
    assert "| mlp | 1.000 | 0.100 | 0.500 | 0.200 | 5.00 | 2.00 |" in text
    assert "training: vgg: skipped the time was up" in text


def test_failures_of_pytest_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "def test_fine(): pass\ndef test_wrong(): assert 1 == 2, 'two is not one'\n"
    )
    monkeypatch.setattr(conformance, "_ROOT", tmp_path)
    monkeypatch.setattr(conformance, "_TESTS", "test_two.py")
    found: list[dict[str, Any]] = []
    conformance.run(60, found.append, tmp_path / "log")
    assert (found[0]["passed"], found[0]["failed"], found[0]["exit_code"]) == (1, 1, 1)
    assert found[1]["row"] == "test_wrong"
    assert "two is not one" in found[1]["error"]
