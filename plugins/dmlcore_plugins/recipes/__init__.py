"""Recipes: a TOML file each, found by listing. The table `[recipe]` says what it is, the rest is a configuration."""
