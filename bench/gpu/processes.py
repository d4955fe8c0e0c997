"""Processes that are ended together with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

__all__ = ["end", "start"]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that leads a group of its own; what it prints is one text.

    ``options`` are those of :class:`subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    )


def end(process: subprocess.Popen[str]) -> None:
    """Kill the process and those of its group that still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
