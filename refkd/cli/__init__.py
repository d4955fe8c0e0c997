"""The command line: one file per subcommand, and here what they share.

Results go to stdout, progress and errors to stderr. Exit codes: 0 fine, 1 a check
failed or training diverged, 2 usage, 3 bad data or checkpoint, 4 a missing extra or
backend, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import numpy as np

import refkd
from refkd.errors import (
    BackendUnavailable,
    ConfigError,
    MissingExtra,
    NonFiniteError,
    RefkdError,
)

__all__ = ["build_parser", "main"]

_EPILOG = """\
exit codes: 0 fine, 1 a check failed or training diverged, 2 usage, 3 bad data
or checkpoint, 4 a missing extra or backend, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; ``sys.argv`` by default.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a "±" that the terminal cannot show
    program = "refkd"
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        program = f"refkd {arguments.command}"
        # What overflows is found where it matters, and said better than by a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except RefkdError as error:
        return _fail(program, error, _exit_code(error))
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except BrokenPipeError:  # the reader went away (| head)
        _drop_stdout()
        return 0
    except OSError as error:
        _drop_stdout()
        return _fail(program, error, 3)
    except MemoryError as error:
        return _fail(program, f"not enough memory: {error}", 1)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    from refkd.cli import data, distill, doctor, gradcheck, predict, recipes, report

    parser = argparse.ArgumentParser(
        prog="refkd",
        description="Knowledge distillation in NumPy with hand-written gradients.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refkd {refkd.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (distill, predict, report, recipes, gradcheck, data, doctor):
        module.register(subparsers)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"an argument is not valid Unicode: {argument!r}") from error
    return build_parser().parse_args(argv)


def _fail(program: str, reason: object, code: int) -> int:
    print(f"{program}: {reason}", file=sys.stderr)
    return code


def _drop_stdout() -> None:
    # Python flushes stdout once more at exit: give what cannot be written a sink.
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: RefkdError) -> int:
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, (MissingExtra, BackendUnavailable)):
        return 4
    if isinstance(error, (NonFiniteError, AssertionError)):
        return 1
    return 3
