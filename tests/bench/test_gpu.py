"""``python -m bench gpu`` without a GPU: what becomes of workers that fail, hang or take long."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench.gpu as command
from bench.__main__ import main
from bench.gpu import conformance, processes, sections, tables, worker

WORKER = """
import json, sys, time
def say(**message): print("@bench " + json.dumps(message), flush=True)
section, words, done = sys.argv[1:]
every = "fine", "broken", "dies", "half", "hangs", "last"
names = [name for name in every if name not in json.loads(done)]
say(kind="rows", names=names)
for name in names:
    say(kind="begin", row=name)
    if name == "dies":
        print("CUDA error: an illegal memory access", flush=True)
        sys.exit(3)
    if name == "hangs":
        time.sleep(60)
    say(kind="part", row=name, us=1.0)
    if name == "half":
        print('@bench {"kind": "part", "row": "half", "ms"', end="", flush=True)
        sys.exit(4)
    say(kind="row", row=name, **({"error": "oh"} if name == "broken" else {}))
say(kind="end")
"""


def rows(tmp_path: Path, seconds: float) -> list[dict[str, Any]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    found: list[dict[str, Any]] = []
    given = {"row_seconds": 1.0, "worker": [sys.executable, str(script)]}
    sections.run_section("any", "", seconds, found.append, **given)
    return found


def test_a_row_that_fails_loses_no_other_nor_its_beginning(tmp_path: Path) -> None:
    found = {row["row"]: row for row in rows(tmp_path, 30)}
    assert found["fine"] == {"row": "fine", "us": 1.0}
    assert found["broken"] == {"row": "broken", "us": 1.0, "error": "oh"}
    assert "ended with 3" in found["dies"]["error"]
    assert "illegal memory access" in found["dies"]["error"]
    assert found["half"]["us"] == 1.0
    assert "ended with 4" in found["half"]["error"]
    assert "nothing came for 1 s" in found["hangs"]["error"]
    assert found["last"]["us"] == 1.0


def test_a_worker_says_what_it_finds_part_by_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"us": 1.0}
        raise ArithmeticError("error 1.0 exceeds 0.1")

    section = SimpleNamespace(rows=lambda: {"done": broken, "broken": broken, "late": broken})
    monkeypatch.setitem(sys.modules, "bench.gpu.any", section)
    worker.main("any", "n", '["done"]')
    lines = capsys.readouterr().out.splitlines()
    said = [json.loads(line.removeprefix("@bench ")) for line in lines]
    assert said[:3] == [
        {"kind": "rows", "names": ["broken"]},
        {"kind": "begin", "row": "broken"},
        {"kind": "part", "row": "broken", "us": 1.0},
    ]
    assert said[3]["error"].startswith("ArithmeticError: error 1.0 exceeds 0.1 (test_gpu.py:")
    assert said[4:] == [{"kind": "end"}]


def test_rows_are_left_out_when_the_time_is_up(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = rows(tmp_path, 0.01)
    assert time.monotonic() - begun < 10
    assert all("skipped" in row for row in found)
    assert found


def test_a_row_that_is_done_is_not_left_out_when_its_worker_does_not_end(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    lasting = WORKER.replace('say(kind="end")', "time.sleep(60)")
    script.write_text(re.sub("every = .*", "every = ('fine',)", lasting))
    found: list[dict[str, Any]] = []
    worker = [sys.executable, str(script)]
    sections.run_section("any", "", 3.0, found.append, row_seconds=9.0, worker=worker)
    assert found == [{"row": "fine", "us": 1.0}]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--budget", "-1"], "a number of seconds above 0, got -1"), (["--budget", "nan"], "got nan")],
)
def test_a_budget_is_a_number_of_seconds(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["gpu", *options])
    assert words in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "available_backends", lambda: {"cupy": None})
    monkeypatch.setattr(command, "_run", None)
    assert main(["gpu", "--output", str(tmp_path / "no folder" / "gpu.json")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_without_a_gpu_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "available_backends", lambda: {"cupy": "there is no driver"})
    assert main(["gpu"]) == 4
    assert capsys.readouterr().err == "bench gpu: there is no driver\n"


def run(monkeypatch: pytest.MonkeyPatch, section: Any, *arguments: str) -> int:
    monkeypatch.setattr(command, "available_backends", lambda: {"cupy": None})
    monkeypatch.setattr(command, "run_section", section)
    return main(["gpu", *arguments])


KERNEL = {
    "row": "relu", "gbyte": 0.3, "gflop": None, "refkd_us": 125.0, "peer_us": 150.0,
    "ratio": 1.2, "refkd_call_us": 126.0, "peer_call_us": 155.0, "largest_error": 1e-7,
}  # fmt: skip
STEP = {
    "row": "mlp", "gflop": 2.0, "refkd_eager_ms": 1.0, "refkd_captured_ms": 0.1,
    "torch_eager_ms": 0.5, "torch_graph_ms": 0.2, "ratio_eager": 5.0, "ratio_graph": 2.0,
}  # fmt: skip


def test_results_are_written_and_a_section_that_breaks_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output, seen = tmp_path / "gpu.json", []

    def section(name: str, words: str, seconds: float, add: Any, **_: Any) -> None:
        if name == "training":
            raise OSError("no more processes")
        for row in ({"row": "copy", "gbs": 3000.0}, KERNEL):
            add(row)
            seen.append(json.loads(output.read_text())["sections"]["ceilings"][-1])

    only = ["--only", "training", "--only", "ceilings"]
    assert run(monkeypatch, section, "--output", str(output), *only) == 1
    assert [row["row"] for row in seen] == ["copy", "relu"]
    written = json.loads(output.read_text())
    assert written["sections"]["training"] == [
        {"row": "training", "error": "OSError: no more processes"}
    ]
    printed = capsys.readouterr().out
    assert "no more processes" in printed
    assert output.with_suffix(".md").read_text() in printed


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([{"row": "a", "skipped": "the time was up"}], 1),
        ([], 1),
        ([{"row": "a", "us": 1.0}, {"row": "b", "skipped": "the time was up"}], 0),
        ([{"row": "a", "us": 1.0}, {"row": "b", "us": 2.0, "error": "oh"}], 1),
    ],
)
def test_the_status_is_that_of_a_failure_where_something_failed_or_nothing_was_found(
    monkeypatch: pytest.MonkeyPatch, found: list[dict[str, Any]], status: int
) -> None:
    def section(name: str, words: str, seconds: float, add: Any, **_: Any) -> None:
        for row in found:
            add(row)

    assert run(monkeypatch, section, "--only", "ceilings") == status


def test_the_table_has_the_part_of_the_peak_that_is_reached() -> None:
    norm = KERNEL | {"row": "norm", "gbyte_of_all_passes": 0.45}
    product = KERNEL | {"row": "linear", "gflop": 5.0}
    product |= {f"{k}_tf32": v for k, v in KERNEL.items() if "_" in k or k == "ratio"}
    partial = {k: STEP[k] for k in ("row", "gflop", "refkd_captured_ms")}
    partial |= {"row": "vgg tf32", "error": "out of memory"}
    text = tables.text(
        {
            "sections": {
                "ceilings": [
                    {"row": "copy", "gbs": 3000.0},
                    {"row": "sgemm", "tflops": 50.0},
                    {"row": "sgemm tf32", "tflops": 400.0},
                ],
                "kernels": [KERNEL, norm, product],
                "training": [STEP, partial, {"row": "more", "skipped": "the time was up"}],
                "torch_compile": [{"row": "mlp", "torch_compile_ms": 0.3}],
            }
        }
    )
    assert "| relu | 125.0 | 150.0 | 1.20 | 0.80 | 126 | 155 | 1e-07 |" in text
    assert "| norm | 125.0 | 150.0 | 1.20 | 0.80 (1.20) |" in text
    assert "| linear | 125.0 | 150.0 | 1.20 | 0.80 |" in text
    assert "| linear tf32 | 125.0 | 150.0 | 1.20 | 0.10 |" in text
    assert "| mlp | 1.000 | 0.100 | 0.500 | 0.200 | 0.300 | 5.00 | 2.00 | 0.40 | 0.20 |" in text
    assert "| vgg tf32 |  | 0.100 |  |  |  |  |  | 0.05 |  |" in text
    assert "- training: vgg tf32: out of memory" in text
    assert "- training: more: the time was up" in text


def conformance_rows(
    monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float = 60
) -> list[dict[str, Any]]:
    monkeypatch.setattr(conformance, "_ROOT", folder)
    monkeypatch.setattr(conformance, "_FILES", ("test_cupy_two.py",))
    monkeypatch.setattr(conformance, "_WORKERS", "1")
    found: list[dict[str, Any]] = []
    conformance.run(seconds, found.append, folder / "log")
    return found


def test_failures_of_pytest_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "test_cupy_two.py").write_text(
        "def test_fine(): pass\ndef test_wrong(): assert 1 == 2, 'two is not one'\n"
    )
    found = conformance_rows(monkeypatch, tmp_path)
    assert (found[0]["passed"], found[0]["failed"], found[0]["exit_code"]) == (1, 1, 1)
    assert found[1] == {"row": "test_cupy_two.py", "passed": 1, "failed": 1}
    assert found[2]["row"] == "test_wrong"
    assert "two is not one" in found[2]["error"]
    assert "error" in found[0]


def test_a_failure_has_its_message_however_long_its_name_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "test_" + 30 * "long_"
    (tmp_path / "test_cupy_two.py").write_text(f"def {name}(): assert 1 == 2, 'not one'\n")
    *_, failed = conformance_rows(monkeypatch, tmp_path)
    assert failed["row"] == name
    assert "not one" in failed["error"]


@pytest.mark.parametrize("code", [-9, 3])
def test_a_pytest_that_ends_without_a_word_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    def run_pytest(seconds: float, log: Path) -> int:
        log.write_text("")
        return code

    monkeypatch.setattr(conformance, "_run_pytest", run_pytest)
    assert str(code) in conformance_rows(monkeypatch, tmp_path)[0]["error"]


def test_an_error_without_words_is_left_out_in_the_tables_and_no_error_of_them() -> None:
    results = {"sections": {"training": [{"row": "mlp", "error": ""}]}}
    assert "- training: mlp: " in tables.text(results)


@pytest.mark.slow
def test_tests_whose_time_is_up_have_said_why_others_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "test_cupy_two.py").write_text(
        "import time\ndef test_wrong(): assert 1 == 2, 'not one'\ndef test_long(): time.sleep(60)\n"
    )
    *_, failed = conformance_rows(monkeypatch, tmp_path, seconds=conformance._GRACE_SECONDS + 15)
    assert failed["row"] == "test_wrong"
    assert "not one" in failed["error"]


@pytest.mark.parametrize("line", ["", "[gw0] [ 50%] PASSED test_cupy_two.py::test_fine \n"])
def test_tests_whose_time_is_up_count_as_far_as_they_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    def run_pytest(seconds: float, log: Path) -> None:
        log.write_text(f"{line}test_cupy_two.py::test_long \n")

    monkeypatch.setattr(conformance, "_run_pytest", run_pytest)
    all_tests, of_file = conformance_rows(monkeypatch, tmp_path)
    assert "the time was up" in all_tests["skipped"]
    assert of_file.get("passed", 0) == bool(line)
    assert ("error" in of_file) == (not line)


def test_the_tests_of_the_device_are_those_that_there_are() -> None:
    assert all((conformance._ROOT / file).exists() for file in conformance._FILES)


def test_a_process_is_ended_with_what_it_has_started() -> None:
    child = f"import time; print(1, flush=True); time.sleep({(late := 20)})"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = processes.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "1\n"
        begun = time.monotonic()
        processes.end(process)
        assert stdout.read() == ""  # once nobody can write any more
    assert time.monotonic() - begun < late / 2
