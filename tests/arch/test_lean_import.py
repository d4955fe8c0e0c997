"""Importing refkd is cheap: NumPy, the standard library, and a few milliseconds."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import refkd

PACKAGE = pathlib.Path(refkd.__file__).parent
HEAVY = {
    *("numba", "cupy", "torch", "scipy", "matplotlib", "PIL", "hypothesis", "pooch", "tqdm"),
    *("pytest", "safetensors", "threadpoolctl"),
}
SUBPACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def run_python(code: str) -> str:
    """Return what a fresh interpreter prints; it sees refkd and the installed packages only."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_packages(*modules: str) -> dict[str, set[str]]:
    """Import the modules in turn and return what is loaded after each."""
    code = (
        "import importlib, json, sys\n"
        "loaded = {}\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = sorted({m.partition('.')[0] for m in sys.modules})\n"
        "print(json.dumps(loaded))\n"
    )
    return {name: set(loaded) for name, loaded in json.loads(run_python(code)).items()}


def test_import_refkd_loads_nothing_else_not_even_numpy() -> None:
    code = "import sys, refkd; print(*(m for m in sys.modules if m.startswith('refkd')))"
    assert run_python(code).split() == ["refkd"]
    assert loaded_packages("refkd")["refkd"] & {"numpy", *HEAVY} == set()


def test_the_dispatcher_loads_on_first_use() -> None:
    code = "import refkd; print(*refkd.available_backends()); refkd.use_backend('numpy')"
    assert "numpy" in run_python(code).split()


def test_no_subpackage_loads_an_optional_package() -> None:
    loaded = loaded_packages(*(f"refkd.{name}" for name in SUBPACKAGES))
    assert {name: packages & HEAVY for name, packages in loaded.items()} == {
        f"refkd.{name}": set() for name in SUBPACKAGES
    }


def test_a_loaded_package_would_be_seen() -> None:
    assert loaded_packages("hypothesis")["hypothesis"] & HEAVY == {"hypothesis"}


def test_import_takes_little_more_than_numpys() -> None:
    # The smallest of interleaved runs is what the code costs; more runs can only lower it.
    numpy_s: list[float] = []
    refkd_s: list[float] = []
    while len(numpy_s) < 5 or (len(numpy_s) < 15 and min(refkd_s) > limit(min(numpy_s))):
        numpy_s.append(import_seconds("numpy"))
        refkd_s.append(import_seconds("refkd"))
    assert min(refkd_s) <= limit(min(numpy_s))


def limit(numpy_seconds: float) -> float:
    return 1.3 * numpy_seconds + 0.06


def import_seconds(module: str) -> float:
    clock = "time.perf_counter()"
    return float(run_python(f"import time; t = {clock}; import {module}; print({clock} - t)"))
