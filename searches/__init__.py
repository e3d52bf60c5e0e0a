"""Recipes: NAME.toml is a search anyone can run; its outcome is results/NAME/."""
