"""``refkd distill``: run a recipe, or continue a run."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from refkd.cli.display import choose_display
from refkd.cli.options import chosen_options, read_config, recipe_name, refuse_changes
from refkd.cli.report import read_result, show_result, write_page
from refkd.dispatch import use_backend
from refkd.errors import DataError, MissingExtra
from refkd.recipes import estimate
from refkd.recipes.config import Recipe
from refkd.recipes.load import load_recipe
from refkd.recipes.rehearsal import rehearse
from refkd.recipes.result import summarise
from refkd.recipes.run import RecipeRun
from refkd.recipes.source import load_data
from refkd.train.atomic import atomic_write_text
from refkd.train.run import RunFolder

__all__ = ["register", "run"]


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
        "--data",
        metavar="PATH",
        help="'digits', a folder with MNIST, CIFAR-10 or images, or an .npz with x and y",
    )
    parser.add_argument(
        "--teacher-logits", metavar="NPY", help="stored logits (N, C) instead of a teacher network"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="students of each kind (default: the protocol's)"
    )
    parser.add_argument(
        "--first-seed", type=int, metavar="K", help="the seeds are K to K + N - 1 (default: 0)"
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="one that `refkd doctor` calls ready (default: numpy)"
    )
    parser.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="leave out images of a folder that cannot be decoded, and count them",
    )
    parser.add_argument(
        "--no-cache-teacher",
        action="store_true",
        help="evaluate the teacher in every step; the results are the same bit for bit",
    )
    parser.add_argument(
        "--run", metavar="DIR", dest="folder", help="folder to create (default: runs/RECIPE-TIME)"
    )
    parser.add_argument(
        "--resume", metavar="DIR", help="continue the run in this folder, bit for bit"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing; print shapes, parameters, expected memory and time",
    )
    output.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if arguments.resume is not None:
        refuse_changes(arguments)
        folder = RunFolder.open(Path(arguments.resume))
        recipe, options = read_config(folder)
        if folder.result.exists() and not arguments.dry_run:
            return _report(folder, read_result(folder), as_json=arguments.json)
    else:
        recipe, text = load_recipe(recipe_name(arguments))
        options = chosen_options(arguments, recipe)
        folder = RunFolder(Path(arguments.folder or _new_folder(recipe)))
    corrupt = "skip" if options.skip_corrupt else "raise"
    dataset = load_data(recipe, options.data, options.teacher_logits or None, corrupt=corrupt)
    if dataset.skipped:
        images = "1 image that cannot" if dataset.skipped == 1 else f"{dataset.skipped} that cannot"
        print(f"{options.data}: left out {images} be decoded", file=sys.stderr)
    protocol = recipe.protocol(options.protocol)[1]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    display = choose_display(
        quiet=arguments.quiet,
        trainings=len(seeds) * len(protocol.students) + (dataset.train.teacher_logits is None),
        finished=len(folder.networks()),
    )
    interrupts = _Interrupts()
    recipe_run = RecipeRun(
        recipe,
        protocol,
        dataset,
        folder,
        seeds,
        display,
        cache_teacher=options.cache_teacher,
        stop_requested=lambda: interrupts.requested,
    )
    rehearse(recipe_run)
    with use_backend(options.backend):
        if arguments.dry_run:
            print(estimate.describe(recipe_run))
            return 0
        if arguments.resume is None:
            options = replace(options, data_sha256=dataset.sha256())
            RunFolder.create(folder.path, f"{text.rstrip()}\n\n{options.to_toml()}")
        elif dataset.sha256() != options.data_sha256:
            raise DataError(
                f"{options.data}: not the data this run was started with; restore it, or start "
                f"a new run"
            )
        try:
            with interrupts.caught(), closing(display):
                result = _train(recipe_run, options.protocol)
        except KeyboardInterrupt:
            resume = f"refkd distill --resume {shlex.quote(str(folder.path))}"
            print(f"stopped; continue with: {resume}", file=sys.stderr)
            raise
    return _report(folder, result, as_json=arguments.json)


def _train(recipe_run: RecipeRun, protocol: str) -> dict[str, Any]:
    started = time.monotonic()
    class_to_idx = {name: i for i, name in enumerate(recipe_run.dataset.class_names)}
    text = json.dumps(class_to_idx, indent=1)
    atomic_write_text(recipe_run.folder.class_to_idx, f"{text}\n")
    trained = recipe_run.train_all()
    result = summarise(recipe_run, trained, protocol, time.monotonic() - started)
    text = json.dumps(result, indent=1, allow_nan=False)
    atomic_write_text(recipe_run.folder.result, f"{text}\n")
    return result


def _report(folder: RunFolder, result: dict[str, Any], *, as_json: bool) -> int:
    with suppress(MissingExtra):  # the printed table says so
        write_page(folder, result)
    show_result(folder, result, as_json=as_json)
    return 0


def _new_folder(recipe: Recipe) -> str:
    name = f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())


@dataclass
class _Interrupts:
    """The first Ctrl-C asks to stop between two steps, the second stops at once."""

    requested: bool = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle Ctrl-C within the block."""
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # On a terminal the cursor stands behind the bar and the ^C. Past sys.stderr, which
        # the training may be writing to at this moment.
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}stopping after this step; Ctrl-C again to stop at once\n".encode())
