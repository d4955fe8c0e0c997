"""The command line: one file per subcommand, and here what they share.

Results go to stdout, progress and errors to stderr. Exit codes: 0 fine, 1 a check
failed or training diverged, 2 usage, 3 bad data or checkpoint, 4 a missing extra or
backend, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import refkd
from refkd.errors import (
    BackendUnavailable,
    ConfigError,
    MissingExtra,
    NonFiniteError,
    RefkdError,
)

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; ``sys.argv`` by default.
    """
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except RefkdError as error:
        print(f"refkd {arguments.command}: {error}", file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        print(f"refkd {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (| head). Python flushes stdout at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    from refkd.cli import data, distill, doctor, gradcheck, predict, recipes, report

    parser = argparse.ArgumentParser(
        prog="refkd",
        description="Knowledge distillation in NumPy with hand-written gradients.",
    )
    parser.add_argument("--version", action="version", version=f"refkd {refkd.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (distill, predict, report, recipes, gradcheck, data, doctor):
        module.register(subparsers)
    return parser


def _exit_code(error: RefkdError) -> int:
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, (MissingExtra, BackendUnavailable)):
        return 4
    if isinstance(error, (NonFiniteError, AssertionError)):
        return 1
    return 3
