"""Section ``conformance``: the tests of the backend on the device, by pytest."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import processes

__all__ = ["run"]

_ROOT = Path(__file__).parents[2]
# In the order in which they are worth having, should the time be up.
_FILES = (
    "tests/backends/test_cupy_device.py",
    "tests/backends/test_cupy_reference.py",
    "tests/backends/test_conformance.py",
)
_SELECTED = "cupy"  # of the tests of every backend
_VERDICT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) (\S+(?:\[[^\n]*?\])?)(?: - ([^\n]*))?$", re.MULTILINE)
_MOST_NAMED = 40
_WORKERS = "12"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
_COLUMNS = "1000"  # of the summary: where a name fills them pytest leaves the message out
_GRACE_SECONDS = 10.0  # for pytest to say why tests have failed, once it is interrupted


def run(seconds: float, add: Callable[[dict[str, Any]], None], log: Path | None) -> None:
    """Run the tests; add a row for all, one for each file and one for each failure.

    ``log`` is where all that pytest prints is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "log"
        code = _run_pytest(seconds, log)
        text = log.read_text(encoding="utf-8", errors="replace")
    counts = _counts(text)
    row: dict[str, Any] = {"row": "pytest", **sum(counts.values(), Counter()), "exit_code": code}
    if code is None:
        row["skipped"] = "the time was up before all tests had run"
    elif code != 0:
        last_words = " | ".join(text.strip().splitlines()[-5:])[-1000:]
        row["error"] = f"pytest ended with {code}: {last_words}"
    add(row)
    for file, of_file in counts.items():
        nothing = {} if of_file["passed"] else {"error": "no test has passed"}
        add({"row": Path(file).name, **of_file, **nothing})
    failures = _failures(text)
    for name, words in failures[:_MOST_NAMED]:
        add({"row": name, "error": words[:300]})
    if len(failures) > _MOST_NAMED:
        add({"row": "pytest", "error": f"and {len(failures) - _MOST_NAMED} more"})


def _run_pytest(seconds: float, log: Path) -> int | None:
    """Return pytest's exit status, or None where the time was up."""
    command = [sys.executable, "-m", "pytest", *_FILES, "-k", _SELECTED, "-v", "--tb=short"]
    command += ["-rfE", "-p", "no:cacheprovider", "-W", "default"]
    environment = os.environ | {"COLUMNS": _COLUMNS}
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", _WORKERS]
        environment |= _ONE_THREAD
    with log.open("w", encoding="utf-8") as file:
        process = processes.start(command, cwd=_ROOT, env=environment, stdout=file)
        try:
            return process.wait(max(0.0, seconds - _GRACE_SECONDS))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
            return None
        finally:
            processes.end(process)


def _counts(text: str) -> dict[str, Counter[str]]:
    """Return the numbers of tests by file and verdict."""
    progress, _, _ = text.partition("short test summary info")
    counts: dict[str, Counter[str]] = {file: Counter() for file in _FILES}
    for line in progress.splitlines():
        verdict = _VERDICT.search(line)
        file = next((file for file in _FILES if f"{file}::" in line), None)
        if verdict and file:
            counts[file][verdict.group(1).lower()] += 1
    return counts


def _failures(text: str) -> list[tuple[str, str]]:
    """Return tests and messages: of the summary, or, where the time was up, of the progress."""
    _, found, summary = text.partition("short test summary info")
    if found:
        return [(name.rpartition("::")[2], words) for name, words in _SUMMARY.findall(summary)]
    lines = [line for line in text.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return [(line.rpartition("::")[2], "failed") for line in lines]
