"""``refkd recipes``: what can be run."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from refkd.recipes.load import load_recipe, shipped_recipes

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("recipes", help="list the recipes, or print one")
    parser.add_argument(
        "recipe", nargs="?", help="print the TOML of this recipe, a name or a .toml file"
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if arguments.recipe is not None:
        print(load_recipe(arguments.recipe)[1], end="")
        return 0
    recipes = [load_recipe(name)[0] for name in shipped_recipes()]
    if arguments.json:
        rows = [
            {
                "name": r.name,
                "title": r.title,
                "data": r.data,
                "protocols": {k: p.description for k, p in r.protocols.items()},
            }
            for r in recipes
        ]
        print(json.dumps(rows))
        return 0
    for recipe in recipes:
        print(f"{recipe.name} (data: {recipe.data})")
        print(_indented(recipe.title))
        for name, protocol in recipe.protocols.items():
            print(_indented(f"--protocol {name}: {protocol.description}"))
        print()
    print("run one with `refkd distill NAME`, print its TOML with `refkd recipes NAME`")
    return 0


def _indented(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent="    ", subsequent_indent="        ")
