"""Recipes: TOML files as checked models."""

from haqsearch.config.files import flat, load_recipe, to_toml
from haqsearch.config.recipe import AFTERTHOUGHTS, Recipe
from haqsearch.config.sections import LadderSettings, PtqSettings, QatSettings, SplitSettings, TrainSettings

__all__ = [
    "AFTERTHOUGHTS", "LadderSettings", "PtqSettings", "QatSettings", "Recipe", "SplitSettings", "TrainSettings",
    "flat", "load_recipe", "to_toml",
]  # fmt: skip
