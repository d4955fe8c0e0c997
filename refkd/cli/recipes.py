"""``refkd recipes``: what can be run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from refkd.recipes.config import load_recipe, shipped_recipes

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("recipes", help="list the recipes, or print one")
    parser.add_argument("recipe", nargs="?", help="print this recipe's TOML")
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
        print(f"{recipe.name} (data: {recipe.data})\n    {recipe.title}")
        for name, protocol in recipe.protocols.items():
            print(f"    --protocol {name}: {protocol.description}")
    return 0
