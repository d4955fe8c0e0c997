"""``refkd distill``: run a recipe, or continue a run."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from refkd import data
from refkd.cli.display import choose_display
from refkd.data.dataset import Dataset
from refkd.dispatch import use_backend
from refkd.errors import CheckpointError, ConfigError, MissingExtra
from refkd.recipes import estimate
from refkd.recipes.config import Recipe, load_recipe, parse_recipe
from refkd.recipes.result import summarise
from refkd.recipes.run import RecipeRun
from refkd.recipes.tables import from_table
from refkd.report import html_report, text_report
from refkd.train.atomic import atomic_write_text
from refkd.train.run import RunFolder

__all__ = ["register", "run"]


@dataclass(frozen=True)
class Options:
    """What a run was started with, kept in its config.toml as the table ``[run]``."""

    recipe: str
    protocol: str
    data: str
    seeds: int
    first_seed: int = 0
    teacher_logits: str = ""
    backend: str = "numpy"
    cache_teacher: bool = True

    def to_toml(self) -> str:
        """Return the table; a JSON string or number is a TOML one."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in vars(self).items()]
        return "\n".join(["[run]", *lines, ""])


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "distill",
        help="train a teacher, a student alone and a distilled student",
        description="Run a recipe: train a teacher, then students with and without it.",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        help="a name of `refkd recipes`, or a .toml file (default: digits; own-data with --data)",
    )
    parser.add_argument("--protocol", help="one of the recipe's protocols (default: its first)")
    parser.add_argument(
        "--data", metavar="PATH", help="'digits', a folder with MNIST, or an .npz with x and y"
    )
    parser.add_argument(
        "--teacher-logits", metavar="NPY", help="stored logits (N, C) instead of a teacher network"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="students of each kind")
    parser.add_argument("--first-seed", type=int, default=0, metavar="K", help="(default: 0)")
    parser.add_argument("--backend", default="numpy", help="who serves the kernels")
    parser.add_argument(
        "--no-cache-teacher",
        action="store_true",
        help="evaluate the teacher in every step; the results are the same bit for bit",
    )
    parser.add_argument("--run", metavar="DIR", dest="folder", help="run folder to create")
    parser.add_argument("--resume", metavar="DIR", help="continue the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print shapes, sizes, expected memory and time"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if arguments.resume is not None:
        folder = RunFolder.open(Path(arguments.resume))
        recipe, options = _read_config(folder)
        dataset = _load_data(options)
    else:
        recipe, text = load_recipe(_recipe_name(arguments))
        options = _options(arguments, recipe)
        dataset = _load_data(options)
        if not arguments.dry_run:
            path = Path(arguments.folder or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            folder = RunFolder.create(path, f"{text.rstrip()}\n\n{options.to_toml()}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    protocol = recipe.protocol(options.protocol)[1]
    with use_backend(options.backend):
        if arguments.dry_run:
            print(estimate.describe(recipe, protocol, dataset, seeds))
            return 0
        with _stop_on_interrupt() as stop:
            recipe_run = RecipeRun(
                recipe,
                protocol,
                dataset,
                folder,
                seeds,
                choose_display(quiet=arguments.quiet),
                cache_teacher=options.cache_teacher,
                stop_requested=stop,
            )
            result = _run(recipe_run, options.protocol)
    _write_report(folder, result)
    print(json.dumps(result) if arguments.json else text_report(result))
    return 0


def _run(recipe_run: RecipeRun, protocol: str) -> dict[str, Any]:
    folder = recipe_run.folder
    started = time.monotonic()
    try:
        trained = recipe_run.train_all()
    except KeyboardInterrupt:
        print(
            f"stopped; continue with: refkd distill --resume {shlex.quote(str(folder.path))}",
            file=sys.stderr,
        )
        raise
    result = summarise(recipe_run, trained, protocol, time.monotonic() - started)
    atomic_write_text(folder.path / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _write_report(folder: RunFolder, result: dict[str, Any]) -> None:
    try:
        html = html_report(result)
    except MissingExtra:
        return  # the text report says so
    atomic_write_text(folder.path / "report.html", html)


def _options(arguments: argparse.Namespace, recipe: Recipe) -> Options:
    name, protocol = recipe.protocol(arguments.protocol)
    seeds = protocol.seeds if arguments.seeds is None else arguments.seeds
    if seeds < 1 or arguments.first_seed < 0:
        raise ConfigError(
            f"--seeds must be at least 1 and --first-seed at least 0, "
            f"got {seeds} and {arguments.first_seed}"
        )
    if arguments.data is None and recipe.data != "digits":
        fetch = "; `refkd data fetch mnist` downloads it" if recipe.data == "mnist" else ""
        raise ConfigError(f"recipe {recipe.name!r} needs --data: {recipe.data}{fetch}")
    source = arguments.data or recipe.data
    return Options(
        _recipe_name(arguments),
        name,
        source if source == "digits" else str(Path(source).resolve()),
        seeds,
        arguments.first_seed,
        str(Path(arguments.teacher_logits).resolve()) if arguments.teacher_logits else "",
        arguments.backend,
        not arguments.no_cache_teacher,
    )


def _recipe_name(arguments: argparse.Namespace) -> str:
    if arguments.recipe is not None:
        return str(arguments.recipe)
    return "digits" if arguments.data in (None, "digits") else "own-data"


def _read_config(folder: RunFolder) -> tuple[Recipe, Options]:
    path = folder.path / "config.toml"
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)["run"]
        options = from_table(Options, table, "run")
        name = options.recipe
        return parse_recipe(text, Path(name).stem if name.endswith(".toml") else name), options
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start the run anew") from error


def _load_data(options: Options) -> Dataset:
    return data.load(options.data, options.teacher_logits or None)


@contextmanager
def _stop_on_interrupt() -> Iterator[Any]:
    """Turn the first Ctrl-C into a request to stop between two steps; the second is immediate."""
    requested = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        print("stopping after this step; Ctrl-C again to stop at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
