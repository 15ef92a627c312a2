"""python -m train: prepare data where missing, train a drafter, measure held-out acceptance; export it.

python -m train --config RECIPE [section.field=value ...] [--resume] [--coordinator HOST:PORT --processes N --process I]
python -m train study --grid GRID [section.field=value ...] [--out DIR] [--resume]
python -m train compile --config RECIPE --topology v5p:2x2x1 [section.field=value ...]
python -m train plan --config RECIPE --topologies v5p:2x2x1,v5p:2x4x4 [section.field=value ...]
python -m train calibrate --config RECIPE --drafter DIR [section.field=value ...]
python -m train walk --config RECIPE --drafter DIR [--drafter DIR ...] --tasks TASK,... [section.field=value ...]
python -m train export (--run RUN | --drafter DIR) --out DIR [--format orbax]
python -m train export (--run RUN | --drafter DIR) --out FILE.gguf --format gguf [--target TARGET.gguf]
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence

from configs.console import command, say
from configs.errors import UserError
from configs.paths import path
from configs.processes import add_options, joined
from configs.schema import load_recipe
from configs.study import load_study


@command
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["export"]:
        return run_export(arguments[1:])
    if arguments[:1] == ["calibrate"]:
        return run_calibrate(arguments[1:])
    if arguments[:1] == ["walk"]:
        return run_walk(arguments[1:])
    if arguments[:1] == ["study"]:
        return run_grid(arguments[1:])
    if arguments[:1] == ["compile"]:
        return run_compile(arguments[1:])
    if arguments[:1] == ["plan"]:
        return run_plan(arguments[1:])
    return run_train(arguments)


def run_train(arguments: Sequence[str]) -> int:
    text = "Train a drafter by a recipe. Data are prepared first where they are missing."
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=text,
        epilog="see also: python -m train {export,study,walk,calibrate,compile,plan} --help",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(options.config, options.overrides)

    with joined(options):
        from train.run import train

        return train(recipe, config=options.config, overrides=options.overrides, resume=options.resume)


def run_grid(arguments: Sequence[str]) -> int:
    text = "Train variants of a recipe on the same data for equally many supervised slots, and compare them."
    parser = argparse.ArgumentParser(prog="python -m train study", description=text)
    parser.add_argument("--grid", required=True, help="a YAML file, or the name of one in configs/studies/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="of all variants")
    parser.add_argument("--out", type=path, help="directory to write (default: runs/studies/NAME)")
    parser.add_argument("--resume", action="store_true", help="keep what is finished, go on with the rest")
    options = parser.parse_intermixed_args(arguments)
    study = load_study(options.grid)
    out = options.out or path("runs/studies") / path(options.grid).stem
    study.recipes(out, options.overrides)  # refused before anything is loaded

    from train.study import run_study

    again = shlex.join(["python", "-m", "train", "study", *arguments, *["--resume"] * (not options.resume)])
    code = run_study(study, out, overrides=options.overrides, resume=options.resume)
    if code:
        say(f"next: {again}")
    return code


def run_compile(arguments: Sequence[str]) -> int:
    text = "Compile a recipe's steps for TPUs that are not here: whether they fit, and what they should cost."
    parser = argparse.ArgumentParser(prog="python -m train compile", description=text)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/, such as tpu/NAME")
    parser.add_argument("--topology", required=True, help="such as v5p:2x2x1, v5e:4x4 or v6e:2x4")
    parser.add_argument("--json", action="store_true", help="end with all of it as one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(options.config, options.overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: the devices are not here

    from models.aot import topology
    from train.compile import compile_recipe

    found = compile_recipe(recipe, topology(options.topology))
    if options.json:
        print(json.dumps({recipe.run.name: found}))
    return 0 if found["fits"] else 1


def run_plan(arguments: Sequence[str]) -> int:
    text = "Hours, chips and storage of a recipe at scale, by its FLOPs and a stated use of the chips."
    parser = argparse.ArgumentParser(prog="python -m train plan", description=text)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/, such as tpu/NAME")
    parser.add_argument("--topologies", default="v5p:2x2x1,v5p:2x4x4", help="(default: %(default)s)")
    parser.add_argument("--responses", type=int, default=800_000, help="one packed row each (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--mfu", type=float, default=0.4, help="of training, share of the peak (default: %(default)s)")
    parser.add_argument(
        "--efficiency", type=float, default=0.5, help="of decoding, share of the roofline (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=64, help="decoded together on a chip (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_intermixed_args(arguments)
    for name in ("responses", "epochs", "rows", "mfu", "efficiency"):
        value = getattr(options, name)
        if not 0 < value <= (1 if isinstance(value, float) else math.inf):
            most = "above 0 and at most 1" if isinstance(value, float) else "at least 1"
            raise UserError(f"--{name}: expected {most}, got {value}")
    recipe = load_recipe(options.config, options.overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs

    from train.plan import Scale, plan

    names = [field.name for field in dataclasses.fields(Scale)]
    scale = Scale(**{name: getattr(options, name) for name in names})
    print(json.dumps(plan(recipe, options.topologies.split(","), scale)))
    return 0


def run_calibrate(arguments: Sequence[str]) -> int:
    text = "Measure a drafter on a recipe's held-out prompts: acceptance and confidence, kept in its config.json."
    parser = argparse.ArgumentParser(prog="python -m train calibrate", description=text)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--drafter", required=True, type=path, help="a drafter artifact, which is written to")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(options.config, options.overrides)

    from train.calibrate import calibrate

    calibrate(recipe, options.drafter)
    return 0


def run_walk(arguments: Sequence[str]) -> int:
    text = "Tau of finished drafters over the target's own greedy answers to task prompts, with nothing timed."
    parser = argparse.ArgumentParser(prog="python -m train walk", description=text)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/: target and data")
    parser.add_argument("--drafter", required=True, type=path, action="append", help="an artifact; may be repeated")
    parser.add_argument("--tasks", required=True, help="comma-separated, as for python -m serve eval")
    parser.add_argument("--task-dir", type=path)
    parser.add_argument("--prompts", type=int, default=20, help="of each task (default %(default)s)")
    parser.add_argument("--max-prompt-tokens", type=int, default=512, help="longer ones are left out (default 512)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_intermixed_args(arguments)
    for name, least in (("prompts", 1), ("max_prompt_tokens", 1), ("max_new_tokens", 2)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")
    recipe = load_recipe(options.config, options.overrides)

    from train.walk import Questions, walk_drafters

    folder = None if options.task_dir is None else str(options.task_dir)
    asked = (options.tasks.split(","), folder, options.prompts, options.max_prompt_tokens, options.max_new_tokens)
    print(json.dumps(walk_drafters(recipe, options.drafter, Questions(*asked))))
    return 0


def run_export(arguments: Sequence[str]) -> int:
    text = "Write a drafter as an artifact (config.json and model.safetensors, as DFlash), for Orbax or llama.cpp."
    parser = argparse.ArgumentParser(prog="python -m train export", description=text)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=path, help="a run directory, such as runs/wide_block")
    source.add_argument("--drafter", type=path, help="or a drafter exported before, or another's, to write it anew")
    parser.add_argument("--out", required=True, type=path, help="directory to write; file of --format gguf")
    parser.add_argument(
        "--format",
        default="dflash",
        choices=["dflash", "orbax", "gguf"],
        help="orbax: parameters alone; gguf: a file for llama.cpp (default: dflash)",
    )
    parser.add_argument("--checkpoint", default="best", help="best (held-out tau), last, or a step (default: best)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "q8_0"],
        help="float16 and q8_0 of gguf alone (default: float32 of a run, as it lies of a drafter)",
    )
    parser.add_argument("--target", type=path, help="of gguf: the target's own GGUF file (default: the embedded one's)")
    parser.add_argument("--plain", action="store_true", help="plain DFlash for other engines, or the reason why not")
    options = parser.parse_args(arguments)
    which = int(options.checkpoint) if options.checkpoint.isdecimal() else options.checkpoint
    if which not in ("best", "last") and not isinstance(which, int):
        raise UserError(f"--checkpoint: expected best, last or a step, got {options.checkpoint!r}")

    if options.format == "orbax" and options.dtype not in (None, "float32"):
        raise UserError(f"--dtype {options.dtype}: Orbax parameters are float32, as trained; leave --dtype out")
    if options.format == "dflash" and options.dtype in ("float16", "q8_0"):
        raise UserError(f"--dtype {options.dtype}: expected float32 or bfloat16, or --format gguf")
    if options.format != "gguf" and options.target:
        raise UserError("--target: only a GGUF file is written for a target's; leave it out, or add --format gguf")

    from train.export import Form, convert, export

    how = Form(options.format, options.dtype, options.plain, options.target)
    if options.drafter:
        convert(options.drafter, options.out, how)
    else:
        export(options.run, options.out, which, how)
    if options.format == "orbax":
        say(f"next: orbax.checkpoint.StandardCheckpointer().restore({str((options.out / 'params').resolve())!r})")
        return 0
    out = shlex.quote(str(options.out))
    if options.format == "gguf":
        say(f"next: llama-server -m TARGET.gguf -md {out} --spec-type draft-dflash --spec-draft-n-max DRAFTED")
        return 0
    say(f"next: python -m serve eval --target TARGET --drafter {out} --tasks TASK,... --out DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
