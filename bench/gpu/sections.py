"""A section's rows, taken by a worker process that is started anew when it dies or hangs."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["PREFIX", "run_section"]

PREFIX = "@bench "
"""What a worker begins the lines with that are meant for here."""

_MOST_STARTS = 5
_START_SECONDS, _ROW_SECONDS = 90.0, 60.0
_WORKER = (sys.executable, "-m", "bench.gpu.worker")


def run_section(
    section: str,
    words: str,
    seconds: float,
    add: Callable[[dict[str, Any]], None],
    *,
    worker: Sequence[str] = _WORKER,
) -> None:
    """Take the rows of a section until the time is up.

    Parameters
    ----------
    section : str
    words : str
        Only rows whose names contain this.
    seconds : float
        After which the rows that are left are given up, and said so.
    add : callable
        Is given each row: ``{"row": name, ...}``, with ``"error"`` or ``"skipped"`` where there is
        no result.
    worker : sequence of str
        The command; it gets the section, the words and the rows to leave out.
    """
    deadline = time.monotonic() + seconds
    done: list[str] = []
    for _ in range(_MOST_STARTS):
        process = _Process([*worker, section, words, json.dumps(done)])
        try:
            outcome = _follow(process, deadline, done, add)
        finally:
            process.end()
        if outcome is None:
            return
        if not done or outcome not in done:
            add({"row": outcome, "error": process.last_words()})
            done.append(outcome)
    add({"row": section, "error": f"its worker failed {_MOST_STARTS} times"})


def _follow(
    process: _Process, deadline: float, done: list[str], add: Callable[[dict[str, Any]], None]
) -> str | None:
    """Return None once all is done or the time is up, else the row in which the worker failed."""
    current, pending = "start", []
    limit = time.monotonic() + _START_SECONDS
    while True:
        message = process.message(min(limit, deadline))
        if message is None:
            if time.monotonic() >= deadline:
                for name in pending or [current]:
                    add({"row": name, "skipped": "the time was up"})
                return None
            return current
        limit = time.monotonic() + _ROW_SECONDS
        if message["kind"] == "rows":
            pending = [name for name in message["names"] if name not in done]
        elif message["kind"] == "begin":
            current = message["row"]
        elif message["kind"] == "row":
            row = {key: value for key, value in message.items() if key != "kind"}
            done.append(row["row"])
            pending = [name for name in pending if name != row["row"]]
            add(row)
        elif message["kind"] == "end":
            return None


class _Process:
    """A worker, and the lines it prints."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.others: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def message(self, limit: float) -> dict[str, Any] | None:
        """Return the worker's next message; None if it has ended or the limit has passed."""
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, limit - time.monotonic()))
            except queue.Empty:
                self.others.append(f"nothing came for {_ROW_SECONDS:.0f} s")
                return None
            if line is None:
                return None
            if line.startswith(PREFIX):
                message: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
                return message
            self.others.append(line.rstrip())

    def last_words(self) -> str:
        """Return the end of what the worker printed besides."""
        code = self.process.poll()
        return f"the worker ended with {code}: " + " | ".join(self.others[-6:])[-1500:]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(2)  # a child of the worker may still hold the pipe

    def _read(self) -> None:
        if self.process.stdout is not None:
            with self.process.stdout as stdout:
                for line in stdout:
                    self.lines.put(line)
        self.lines.put(None)
