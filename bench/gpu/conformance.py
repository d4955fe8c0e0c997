"""Section ``conformance``: the tests of the backend on the device, by pytest."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["run"]

_ROOT = Path(__file__).parents[2]
_TESTS = "tests/backends/test_cupy_device.py"
_VERDICT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) (\S+(?:\[[^\n]*?\])?) - ([^\n]*)", re.MULTILINE)
_MOST_NAMED = 40
_WORKERS = "6"


def run(seconds: float, add: Callable[[dict[str, Any]], None], log: Path | None) -> None:
    """Run the tests; add a row with the counts and one for each failure.

    ``log`` is where all that pytest prints is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "log"
        command = [sys.executable, "-m", "pytest", _TESTS, "-v", "--tb=short", "-rfE"]
        command += ["-p", "no:cacheprovider", "-W", "default"]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", _WORKERS]
        with log.open("w", encoding="utf-8") as file:
            try:
                code = subprocess.run(
                    command,
                    cwd=_ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        text = log.read_text(encoding="utf-8", errors="replace")
    counts = _counts(text)
    row: dict[str, Any] = {"row": "pytest", **counts, "exit_code": code}
    if code is None:
        row["skipped"] = "the time was up before all tests had run"
    elif code != 0 and not counts.get("failed"):
        row["error"] = " | ".join(text.strip().splitlines()[-5:])[-1000:]
    add(row)
    failures = _failures(text)
    for name, words in failures[:_MOST_NAMED]:
        add({"row": name, "error": words[:300]})
    if len(failures) > _MOST_NAMED:
        add({"row": "pytest", "error": f"and {len(failures) - _MOST_NAMED} more"})


def _counts(text: str) -> dict[str, int]:
    progress, _, _ = text.partition("short test summary info")
    counts: dict[str, int] = {}
    for verdict in _VERDICT.findall(progress):
        counts[verdict.lower()] = counts.get(verdict.lower(), 0) + 1
    return counts


def _failures(text: str) -> list[tuple[str, str]]:
    """Return tests and messages: of the summary, or, where the time was up, of the progress."""
    _, found, summary = text.partition("short test summary info")
    if found:
        return [(name.rpartition("::")[2], words) for name, words in _SUMMARY.findall(summary)]
    lines = [line for line in text.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    return [(line.rpartition("::")[2], "failed") for line in lines]
