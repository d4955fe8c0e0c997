"""``refkd report``: print a run's result again and draw its report anew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from refkd.errors import CheckpointError
from refkd.report import html_report, text_report
from refkd.train.atomic import atomic_write_text
from refkd.train.run import RunFolder

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("report", help="print a run's result and redraw its report")
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    folder = RunFolder.open(Path(arguments.folder))
    path = folder.path / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; an unfinished run has no result, "
            f"continue it with: refkd distill --resume {folder.path}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(text_report(result))
    atomic_write_text(folder.path / "report.html", html_report(result))
    return 0
