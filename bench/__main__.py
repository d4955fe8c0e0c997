"""``python -m bench COMMAND``: the measurements of this repository."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
    "training": "training steps beside PyTorch's",
    "kernels": "single kernels beside PyTorch's",
    "profile": "where the time of a training step on Numba goes",
    "dispatch": "what a kernel call costs",
    "mutations": "wrong gradients planted, and how many the checker finds",
    "false-alarms": "right gradients, and how many the checker calls wrong",
    "checkers": "the checker beside those of PyTorch and JAX on the same errors",
    "gradcheck": "what a check costs: seconds, passes and memory",
    "gpu": "the CuPy backend on a GPU, tested and measured beside PyTorch",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; only its own module is imported."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command, summary in _COMMANDS.items():
        if given[:1] == [command]:
            importlib.import_module(f"bench.{command.replace('-', '_')}").register(subparsers)
        else:
            subparsers.add_parser(command, help=summary)
    parsed = parser.parse_args(given)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
