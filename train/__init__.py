"""Training a drafter: loss, trainer, checkpoints, held-out acceptance, export.

The stable surface for programs (loaded on first use, so that `--help` stays quick):

    from train import load_recipe, train_drafter, export_drafter

    recipe = load_recipe("wide_block.yaml", ["train.steps=200", "run.name=mine"])
    export_drafter(train_drafter(recipe), "exports/mine")
"""

import importlib
from typing import Any

_SURFACE = {
    "load_recipe": ("configs.schema", "load_recipe"),
    "train_drafter": ("train.run", "train_drafter"),
    "export_drafter": ("train.export", "export"),
}
__all__ = list(_SURFACE)


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module 'train' has no attribute {name!r}; it has {', '.join(_SURFACE)}")
    module, attribute = _SURFACE[name]
    return getattr(importlib.import_module(module), attribute)
