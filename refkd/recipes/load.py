"""Finding a recipe and reading its TOML: the shipped ones by name, others by path."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from refkd.errors import ConfigError, suggest
from refkd.recipes.config import Recipe
from refkd.recipes.tables import from_table, parse_toml

__all__ = ["load_recipe", "parse_recipe", "recipe_from_table", "shipped_recipes"]


def shipped_recipes() -> dict[str, str]:
    """Return the text of every shipped recipe by name."""
    entries = (e for e in resources.files("refkd.recipes").iterdir() if e.name.endswith(".toml"))
    texts = {e.name.removesuffix(".toml"): e.read_text(encoding="utf-8") for e in entries}
    return dict(sorted(texts.items()))


def load_recipe(name: str) -> tuple[Recipe, str]:
    """Return a recipe and its text.

    Parameters
    ----------
    name : str
        A shipped recipe, or the path of a ``.toml`` file.

    Raises
    ------
    ConfigError
        If there is no such recipe (with a suggestion), or it does not parse.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"recipe {name}: cannot be read ({error.strerror}); check the path; "
                f"`refkd recipes` lists the shipped ones"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {name}: not valid TOML: {error}") from error
        return parse_recipe(text, Path(name).stem), text
    shipped = shipped_recipes()
    if name not in shipped:
        raise ConfigError(
            f"there is no recipe {name!r}{suggest(name, shipped)}; there are "
            f"{', '.join(shipped)}, or give the path of a .toml file"
        )
    return parse_recipe(shipped[name], name), shipped[name]


def parse_recipe(text: str, name: str) -> Recipe:
    """Return the recipe that a TOML text describes.

    A protocol's ``student`` table holds what its ``students`` have in common.

    Raises
    ------
    ConfigError
        If the text is no TOML, a key is unknown, or a value makes no sense.
    """
    return recipe_from_table(parse_toml(text, f"recipe {name!r}"), name)


def recipe_from_table(table: dict[str, Any], name: str) -> Recipe:
    """Return the recipe of a parsed TOML table, as `parse_recipe` does."""
    if isinstance(table.get("protocols"), Mapping):
        table["protocols"] = {k: _spread_common(p) for k, p in table["protocols"].items()}
    return from_table(Recipe, {**table, "name": name}, f"recipe {name!r}")


def _spread_common(protocol: Any) -> Any:
    if not isinstance(protocol, Mapping) or not isinstance(protocol.get("students"), Mapping):
        return protocol
    common = protocol.get("student", {})
    if not isinstance(common, Mapping):
        return protocol
    rest = {k: v for k, v in protocol.items() if k != "student"}
    students = {
        name: {**common, **student} if isinstance(student, Mapping) else student
        for name, student in protocol["students"].items()
    }
    return {**rest, "students": students}
