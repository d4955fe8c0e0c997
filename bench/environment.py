"""What a figure was measured on: processor, threads and library versions. No host names."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

from refkd.threads import usable_cores

__all__ = ["describe", "environment"]


def environment(*, threads: int, backend: str, peer: str) -> dict[str, Any]:
    """Return machine, settings and versions by name; versions of absent packages are None."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "backend": backend,
        "torch": _version("torch") if peer == "torch" else None,
    }


def describe(values: dict[str, Any]) -> str:
    """Return the environment as lines of ``name value``."""
    lines = []
    for name, value in values.items():
        if value is not None:
            lines.append(f"{name:12} {f'{value:.1f}' if isinstance(value, float) else value}")
    return "\n".join(lines)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
