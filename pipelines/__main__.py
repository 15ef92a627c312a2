"""python -m pipelines prepare --config RECIPE: responses and features, written once.

python -m pipelines show --config RECIPE [--batch N]: what a batch of them supervises.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from configs.console import command, say
from configs.errors import UserError
from configs.processes import add_options, joined
from configs.schema import Recipe, load_recipe


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines", description="Prepare the data of a recipe; look at it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = "write the target's responses (and features, when cached); what is there already is reused"
    preparing = commands.add_parser("prepare", help=text, description=text)
    _add_recipe(preparing)
    add_options(preparing)
    text = "print what a training batch supervises: text, anchors, labels, shares (data are prepared where missing)"
    shown = commands.add_parser("show", help=text, description=text)
    _add_recipe(shown)
    shown.add_argument("--batch", type=int, default=0, help="its number, from 0 (default %(default)s)")
    shown.add_argument("--rows", type=int, default=2, help="rows whose text is printed (default %(default)s)")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.config, options.overrides)
    if options.command == "show" and min(options.batch, options.rows) < 0:
        raise UserError(f"--batch, --rows: expected at least 0, got {options.batch} and {options.rows}")

    if options.command == "show":
        return run_show(recipe, options)
    with joined(options):
        return run_prepare(recipe, options)


def run_prepare(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipelines.prepare import prepare

    prepare(recipe, *_loaded(recipe))
    say(f"next: {shlex.join(['python', '-m', 'train', '--config', options.config, *options.overrides])}")
    return 0


def run_show(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipelines.show import show

    show(recipe, *_loaded(recipe), number=options.batch, rows=options.rows)
    return 0


def _loaded(recipe: Recipe) -> tuple[Any, Any]:
    """The recipe's target and tokenizer."""
    from configs.device import keep_compiled_programs, keep_freed_memory
    from models.sharding import own_mesh
    from models.sources import load_target
    from models.tokenizer import load_tokenizer

    keep_compiled_programs()
    keep_freed_memory()
    say(f"target: loading {recipe.target.source}")
    target = load_target(recipe.target.source, recipe.target.dtype, own_mesh(recipe.mesh))
    return target, load_tokenizer(recipe.target.source, recipe.target.chat_template_args)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")


if __name__ == "__main__":
    sys.exit(main())
