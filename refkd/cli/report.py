"""``refkd report``: print a run's result again and draw its report anew."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refkd.errors import CheckpointError, MissingExtra
from refkd.report import html_report, read_attachments, text_report
from refkd.train.atomic import atomic_write_text
from refkd.train.run import RunFolder

__all__ = ["read_result", "register", "run", "show_result", "write_page"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="print a run's result and redraw its report",
        description="Print the result of a finished run and draw its report.html anew.",
    )
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="only print the result, as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    folder = RunFolder.open(Path(arguments.folder))
    result = read_result(folder)
    complaints: tuple[str, ...] = ()
    if not arguments.json:
        try:
            complaints = write_page(folder, result)
        except MissingExtra:
            show_result(folder, result, as_json=False)
            raise
    show_result(folder, result, as_json=arguments.json)
    if complaints:
        raise CheckpointError("the report lacks a part: " + "; and: ".join(complaints))
    return 0


def read_result(folder: RunFolder) -> dict[str, Any]:
    """Return the result of a finished run.

    Raises
    ------
    CheckpointError
        If there is none, or it is damaged.
    """
    with _damage_named(folder):
        try:
            result = json.loads(folder.result.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{folder.result}: {error.strerror}; an unfinished run has no result, "
                f"continue it with: refkd distill --resume {folder.path}"
            ) from error
        if not isinstance(result, Mapping):
            raise ValueError(f"expected an object, got {type(result).__name__}")
        return dict(result)


def write_page(folder: RunFolder, result: dict[str, Any]) -> tuple[str, ...]:
    """Draw the report of a run into its folder.

    Returns
    -------
    tuple of str
        Why parts of it could not be drawn, a line each; the page says so too.

    Raises
    ------
    MissingExtra
        If matplotlib is not installed.
    CheckpointError
        If the result is damaged, or the page cannot be written.
    """
    with _damage_named(folder):
        attachments = read_attachments(folder, result)
        page = html_report(result, attachments)
    atomic_write_text(folder.report, page)
    return attachments.complaints


def show_result(folder: RunFolder, result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result, as JSON or as a table that says where the report is."""
    with _damage_named(folder):
        text = json.dumps(result, allow_nan=False) if as_json else text_report(result)
    if as_json:
        print(text)
        return
    print(text)
    print(f"report: {folder.report}" if folder.report.exists() else f"run folder: {folder.path}")


@contextmanager
def _damage_named(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{folder.result} is damaged ({type(error).__name__}: {error}); delete it and "
            f"make it anew with: refkd distill --resume {folder.path}"
        ) from error
