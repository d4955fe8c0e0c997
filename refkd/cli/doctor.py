"""``refkd doctor``: what is installed here, what works, and one gradient checked."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import sys
from typing import Any

from refkd.cli.warm_up import warm_up
from refkd.dispatch import available_backends, get_backend
from refkd.errors import ConfigError
from refkd.recipes.environment import environment
from refkd.testing.pairs import check_all

__all__ = ["register", "run"]

_EXTRAS = {
    "matplotlib": "plot",
    "tqdm": "progress",
    "pooch": "data",
    "pillow": "data",
    "hypothesis": "testing",
    "numba": "numba",
    "torch": "torch",
    "cupy": "cuda13",
}
_DISTRIBUTIONS = {"cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy")}


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("doctor", help="say what is installed and what works here")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--warm-up",
        action="store_true",
        help="compile all that the backends have, so that no training waits for it",
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="the one to warm up (default: all that are ready)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand; 1 if the gradient check fails."""
    seconds = _warm_up(arguments)
    row = next(iter(check_all(["softmax_kd"])))
    facts: dict[str, Any] = {
        "environment": environment(),
        "extras": {package: _version(package) for package in _EXTRAS},
        "backends": available_backends(),
        "gradient_check": {
            "name": row.name,
            "ok": row.ok,
            "worst": row.worst if math.isfinite(row.worst) else None,
        },
    }
    if arguments.warm_up:
        facts["warm_up_seconds"] = seconds
    if arguments.json:
        print(json.dumps(facts))
        return 0 if row.ok else 1
    for key, value in facts["environment"].items():
        name = "BLAS threads" if key == "threads" else key
        print(f"{name:<14}{'unknown' if value is None else value}")
    for package, extra in _EXTRAS.items():
        missing = f"not installed; pip install 'refkd[{extra}]' brings it"
        print(f"{package:<14}{facts['extras'][package] or missing}")
    for name, reason in facts["backends"].items():
        print(reason or f"backend {name!r}: ready")
    verdict = "right" if row.ok else "WRONG"
    print(f"gradient of {row.name}: {verdict}, worst scaled error {row.worst:.1e}")
    return 0 if row.ok else 1


def _warm_up(arguments: argparse.Namespace) -> dict[str, float]:
    """Warm up what is asked for, and return how many seconds each backend took."""
    if not arguments.warm_up:
        if arguments.backend is not None:
            raise ConfigError("--backend names what --warm-up compiles; it wants that option")
        return {}
    ready = [name for name, reason in available_backends().items() if reason is None]
    seconds = {}
    for name in ready if arguments.backend is None else [arguments.backend]:
        backend = get_backend(name)
        if name != "numpy":  # which has nothing to compile
            seconds[name] = warm_up(backend)
            print(f"backend {name!r}: warmed up in {seconds[name]:.1f} s", file=sys.stderr)
    return seconds


def _version(package: str) -> str | None:
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None
