"""A section's rows, taken by a worker process that is started anew when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.gpu import processes

__all__ = ["PREFIX", "ROW_SECONDS", "run_section"]

PREFIX = "@bench "
"""What a worker begins the messages with that are meant for here."""

ROW_SECONDS = 60.0
"""After which a worker from which nothing has come is given up."""

_MOST_STARTS = 5
_START_SECONDS = 90.0
_WORKER = (sys.executable, "-m", "bench.gpu.worker")

Row = dict[str, Any]


def run_section(
    section: str,
    words: str,
    seconds: float,
    add: Callable[[Row], None],
    *,
    row_seconds: float = ROW_SECONDS,
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
        Is given each row: ``{"row": name, ...}``, with ``"error"`` or ``"skipped"`` where it has
        not come to its end, beside what was found until then.
    row_seconds : float
        How long a worker may be silent before it is killed.
    worker : sequence of str
        The command; it gets the section, the words and the rows to leave out.
    """
    deadline = time.monotonic() + seconds
    done: list[str] = []
    for _ in range(_MOST_STARTS):
        process = _Process([*worker, section, words, json.dumps(done)])
        try:
            failed = _follow(process, deadline, row_seconds, done, add)
        finally:
            process.end()
        if failed is None:
            return
        if failed["row"] not in done:
            add({**failed, "error": process.last_words()})
            done.append(failed["row"])
    add({"row": section, "error": f"its worker failed {_MOST_STARTS} times"})


def _follow(
    process: _Process,
    deadline: float,
    row_seconds: float,
    done: list[str],
    add: Callable[[Row], None],
) -> Row | None:
    """Return None once all is done or the time is up, else the row in which the worker failed."""
    current: Row = {"row": "start"}
    pending: list[str] = []
    limit = time.monotonic() + _START_SECONDS
    while True:
        message = process.message(min(limit, deadline))
        if message is None:
            if time.monotonic() < deadline:
                return current
            begun = [] if current["row"] in done else [current["row"]]
            for name in pending or begun:
                found = current if name == current["row"] else {"row": name}
                add({**found, "skipped": "the time was up"})
            return None
        limit = time.monotonic() + row_seconds
        kind = message.pop("kind")
        if kind == "rows":
            pending = [name for name in message["names"] if name not in done]
        elif kind in ("begin", "part", "row"):
            current = {**(current if current["row"] == message["row"] else {}), **message}
            if kind == "row":
                done.append(current["row"])
                pending = [name for name in pending if name != current["row"]]
                add(current)
        elif kind == "end":
            return None


class _Process:
    """A worker, and the lines it prints."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = processes.start(command, stdout=subprocess.PIPE, bufsize=1)
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.others: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def message(self, limit: float) -> dict[str, Any] | None:
        """Return the worker's next message; None if it has ended or the limit has passed."""
        begun = time.monotonic()
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, limit - time.monotonic()))
            except queue.Empty:
                self.others.append(f"nothing came for {time.monotonic() - begun:.0f} s")
                return None
            if line is None:
                return None
            _, found, text = line.partition(PREFIX)
            if found:
                with contextlib.suppress(json.JSONDecodeError):  # of a line that was cut off
                    message: dict[str, Any] = json.loads(text)
                    return message
            self.others.append(line.rstrip())

    def last_words(self) -> str:
        """Return the end of what the worker printed besides."""
        code = self.process.poll()
        return f"the worker ended with {code}: " + " | ".join(self.others[-6:])[-1500:]

    def end(self) -> None:
        processes.end(self.process)
        self.reader.join(2)

    def _read(self) -> None:
        if self.process.stdout is not None:
            with self.process.stdout as stdout:
                for line in stdout:
                    self.lines.put(line)
        self.lines.put(None)
