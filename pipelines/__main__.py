"""python -m pipelines prepare --config RECIPE: responses and features, written once."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from configs.console import command, say
from configs.schema import load_recipe


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="Prepare the data of a recipe.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "write the target's responses (and features, when cached); what is there already is reused"
    prepare_parser = commands.add_parser("prepare", help=text, description=text)
    prepare_parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    prepare_parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.config, options.overrides)

    from configs.device import keep_compiled_programs, keep_freed_memory
    from models.sharding import make_mesh
    from models.sources import load_target
    from models.tokenizer import load_tokenizer
    from pipelines.prepare import prepare

    keep_compiled_programs()
    keep_freed_memory()
    say(f"target: loading {recipe.target.source}")
    target = load_target(recipe.target.source, recipe.target.dtype, make_mesh(recipe.mesh))
    prepare(recipe, target, load_tokenizer(recipe.target.source, recipe.target.chat_template_args))
    say(f"next: {shlex.join(['python', '-m', 'train', '--config', options.config, *options.overrides])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
