"""Complete systems of the literature, one TOML file each, and running them."""

from refkd.recipes.config import Recipe
from refkd.recipes.load import load_recipe, shipped_recipes

__all__ = ["Recipe", "load_recipe", "shipped_recipes"]
