"""Recipes: what a run is. `schema` says which values exist; the YAML files beside it are recipes that work."""
