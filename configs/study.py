"""The grid of a study: variants of one recipe, and the tasks they are compared on; read as strictly as a recipe.

In: a YAML file (a path, or a bare name looked up in configs/studies/). Out: a `Study`.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from configs.schema import STRICT, Place, Recipe, RecipeError, build, find_recipe, load_recipe, read_yaml


def _from_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_from_list)]
Numbers = Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_from_list)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Study:
    base: str = Field(min_length=1)  # the recipe every variant starts from
    overrides: Words  # section.field=value, of all variants
    variants: dict[str, Words] = Field(min_length=1)  # name -> further ones, or base=FILE; the first is compared with
    seeds: Numbers  # run.seed of the trainings of every variant
    positions: int | None = Field(ge=1)  # supervised slots each training sees, which sets train.steps; null: as it says
    tasks: Words = Field(min_length=1)  # shipped names, names in task_dir, jsonl files
    task_dir: Place | None
    task_prompts: int = Field(ge=1)  # the first so many of each task
    max_prompt_tokens: int = Field(ge=1)
    max_new_tokens: int = Field(ge=2)

    def recipes(self, out: Path, overrides: Sequence[str]) -> dict[tuple[str, int], Recipe]:
        """(variant, seed) -> its recipe, its run below `out`; `overrides` come last.

        Raises:
          UserError: a recipe cannot be used, or two are of different targets or data directories.
        """
        found = {}
        for variant, words in self.variants.items():
            bases = [word.removeprefix("base=") for word in words if word.startswith("base=")]
            changes = [word for word in words if not word.startswith("base=")]
            recipe = load_recipe([self.base, *bases][-1], [*self.overrides, *changes, *overrides])
            for seed in self.seeds:
                name = f"{variant}.{seed}"
                run = dataclasses.replace(recipe.run, name=name, dir=str(out / name / "run"), seed=seed)
                found[variant, seed] = dataclasses.replace(recipe, run=run)
        first = next(iter(found.values()))
        for (variant, _), recipe in found.items():
            shared = (recipe.target, recipe.mesh, recipe.run.data_dir)
            if shared != (first.target, first.mesh, first.run.data_dir):
                raise RecipeError(
                    f"variant {variant}: target, mesh and run.data_dir are those of all variants; change them in the "
                    "study's own overrides"
                )
        return found


def load_study(name: str) -> Study:
    """The study in file `name`.

    Raises:
      UserError: file missing or not YAML, or a key unknown, missing or of the wrong type.
    """
    path = find_recipe(name, "studies")
    study = build(Study, read_yaml(path), str(path))
    for variant in study.variants:
        if not re.fullmatch(r"[\w-]+", variant):
            raise RecipeError(f"{path}: variants: expected names of letters, digits, - and _, got {variant!r}")
    return study
