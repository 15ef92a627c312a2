"""python -m train.compile_recipes: every recipe of configs/tpu/ compiled for its topology, one after the other.

The last line is one JSON object: recipe -> what `train.compile` says of it in short. Each is compiled in a process of
its own, which gives its gigabytes back, and kept with its log in ~/.cache/wideblock/compiled under a digest of recipe,
code and compiler: a second call goes on where the first one stopped.
"""

import argparse
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.console import command, say
from configs.device import cache_directory
from configs.errors import UserError
from configs.files import write_atomic
from configs.schema import find_recipe, load_recipe

TOPOLOGIES = {"v5p8": "v5p:2x2x1", "v5e16": "v5e:4x4", "v6e8": "v6e:2x4"}  # by the last part of a recipe's name
ROOMS = ("configs", "models", "pipelines", "train")
IN_SHORT = ("fits", "hbm_fraction", "step_flops", "estimated_step_seconds", "estimated_mfu", "collective_bytes")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.compile_recipes", description="Compile configs/tpu/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes of configs/tpu/ (default: all)")
    options = parser.parse_args(arguments)
    folder = find_recipe("wide_block").parent / "tpu"
    names = options.names or sorted(file.stem for file in folder.glob("*.yaml"))
    found = {name: compiled(name) for name in names}
    print(json.dumps(found))
    return 0 if all(recipe["fits"] for recipe in found.values()) else 1


def compiled(name: str) -> dict[str, object]:
    """What a recipe's steps take of its topology, in short.

    Raises:
      UserError: it cannot be compiled; the line before says why.
    """
    topology = TOPOLOGIES.get(name.rpartition("_")[2])
    if topology is None:
        raise UserError(f"{name}: expected a recipe whose name ends in one of {', '.join(TOPOLOGIES)}")
    kept = cache_directory() / "compiled" / f"{name}-{digest(name)}"
    result = kept.with_suffix(".json")
    if not result.is_file():
        say(f"compile: {name} for {topology} (minutes, and some GB of memory); log: {kept}.log")
        call = ["-m", "train", "compile", "--config", f"tpu/{name}", "--topology", topology, "--json"]
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{kept}.log", "a") as log:
            done = subprocess.run([sys.executable, *call], stdout=subprocess.PIPE, stderr=log, text=True)
            log.write(done.stdout)
        if done.returncode not in (0, 1) or not done.stdout:  # 1: it does not fit, or Python gave up
            raise UserError(f"{name}: expected it to compile for {topology}; why it does not: {kept}.log")
        write_atomic(result, done.stdout.splitlines()[-1])
    (whole,) = json.loads(result.read_text()).values()
    short = {key: whole[key] for key in (*IN_SHORT, "compile_seconds") if key in whole}
    shown = ", ".join(f"{key} {value:.3g}" for key, value in short.items())
    say(f"compile: {name}: {shown}")
    return short


def digest(name: str) -> str:
    """Names all that decides what comes out: the recipe's values, the code, the compiler."""
    said = hashlib.sha256(json.dumps(load_recipe(f"tpu/{name}").to_dict(), sort_keys=True).encode())
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            said.update(importlib.metadata.version(package).encode())
        except importlib.metadata.PackageNotFoundError:
            said.update(b"none")
    root = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            said.update(file.read_bytes())
    return said.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
