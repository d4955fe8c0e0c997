"""The options a run was started with: from the command line, to its config.toml and back."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from refkd.errors import CheckpointError, ConfigError
from refkd.recipes.config import Recipe
from refkd.recipes.load import recipe_from_table
from refkd.recipes.tables import from_table, parse_toml
from refkd.train.run import RunFolder

__all__ = ["Options", "chosen_options", "read_config", "recipe_name", "refuse_changes"]

_SOURCES = {
    "mnist": "the folder of MNIST; `refkd data fetch mnist` downloads it and prints it",
    "cifar10": (
        "the folder of CIFAR-10's binary version (data_batch_1.bin ...), or one with its images "
        "in train/CLASS/ and test/CLASS/"
    ),
    "flowers": "a folder of images in train/CLASS/ and val/CLASS/, such as flower_photos",
}
_FIXED_BY_A_RUN = {
    "recipe": "the recipe",
    "protocol": "--protocol",
    "data": "--data",
    "teacher_logits": "--teacher-logits",
    "seeds": "--seeds",
    "first_seed": "--first-seed",
    "backend": "--backend",
    "no_cache_teacher": "--no-cache-teacher",
    "skip_corrupt": "--skip-corrupt",
    "folder": "--run",
}
_MOST_SEEDS = 1_000_000


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
    skip_corrupt: bool = False
    data_sha256: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= _MOST_SEEDS or self.first_seed < 0:
            raise ConfigError(
                f"--seeds must be at least 1, and at most {_MOST_SEEDS:,}, and --first-seed at "
                f"least 0, got {self.seeds} and {self.first_seed}"
            )

    def to_toml(self) -> str:
        """Return the table.

        JSON's strings, numbers and booleans are valid TOML, except for DEL.
        """
        lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in vars(self).items()]
        return "\n".join(["[run]", *lines, ""]).replace("\x7f", "\\u007f")


def chosen_options(arguments: argparse.Namespace, recipe: Recipe) -> Options:
    """Return the options of a new run of ``recipe``.

    Raises
    ------
    ConfigError
        If one makes no sense, or the recipe needs data that is not given.
    """
    name, protocol = recipe.protocol(arguments.protocol)
    if not arguments.data and recipe.data != "digits":
        needed = _SOURCES.get(recipe.data, recipe.data)
        raise ConfigError(f"recipe {recipe.name!r} needs --data PATH: {needed}")
    source = arguments.data or recipe.data
    return Options(
        recipe_name(arguments),
        name,
        source if source == "digits" else _absolute(source),
        protocol.seeds if arguments.seeds is None else arguments.seeds,
        arguments.first_seed or 0,
        _absolute(arguments.teacher_logits) if arguments.teacher_logits else "",
        arguments.backend or "numpy",
        not arguments.no_cache_teacher,
        arguments.skip_corrupt,
    )


def recipe_name(arguments: argparse.Namespace) -> str:
    """Return the recipe asked for, or the default for the data."""
    if arguments.recipe is not None:
        return str(arguments.recipe)
    return "digits" if arguments.data in (None, "digits") else "own-data"


def refuse_changes(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if a run is to be resumed with other options than its own."""
    given = [
        option
        for name, option in _FIXED_BY_A_RUN.items()
        if getattr(arguments, name) is not None and getattr(arguments, name) is not False
    ]
    if given:
        raise ConfigError(
            f"--resume continues a run as it was started; leave out {', '.join(given)}"
        )


def read_config(folder: RunFolder) -> tuple[Recipe, Options]:
    """Return the recipe and the options of a run.

    Raises
    ------
    CheckpointError
        If its config.toml is damaged.
    """
    try:
        table = parse_toml(folder.config.read_text(encoding="utf-8"), "config.toml")
        options = from_table(Options, table.pop("run", None), "run")
        name = options.recipe
        recipe = recipe_from_table(table, Path(name).stem if name.endswith(".toml") else name)
        recipe.protocol(options.protocol)
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(
            f"{folder.config} is damaged ({error}); start the run anew"
        ) from error
    return recipe, options


def _absolute(path: str) -> str:
    return str(Path(path).resolve())
