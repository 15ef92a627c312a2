"""The commands cost and compile: what decoding costs, here or on TPUs that are not here."""

import argparse
import json
import os
import sys
from typing import Any

from configs import schema
from configs.console import say
from configs.errors import UserError
from configs.paths import at_home, path
from serve.options import add_sampling, sizes_of, speculation_of


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", required=True, help="a Hugging Face directory (config.json is enough), or a shape such as qwen3-8b"
    )
    parser.add_argument(
        "--drafter",
        action="append",
        default=[],
        metavar="DRAFTER",
        help="an artifact's directory, or dflash/WIDTH and after it /tree=NODES or /vocab=SIZE (repeatable; default: "
        "dflash/16)",
    )
    parser.add_argument("--topology", required=True, help="such as v5p:2x2x1, v5e:4x4 or v6e:2x4")
    parser.add_argument("--mesh", default="", metavar="data=..,fsdp=..,tensor=..", help="(default: one chip)")
    parser.add_argument("--rows", type=int, default=1, help="decoding together (default %(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="positions filled (default %(default)s)")
    parser.add_argument("--page", type=int, help="keep the cache in pages of so many positions (default: slots)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="(default %(default)s)")
    add_sampling(parser)
    parser.add_argument("--save", type=path, metavar="FILE", help="write the last program, where it is of one chip")
    parser.add_argument("--json", action="store_true", help="end with all of it as one JSON object")


def add_cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        required=True,
        type=at_home,
        help="as for eval; with --topology a directory with a config.json, or a shape such as qwen3-4b",
    )
    parser.add_argument("--drafter", help="an artifact directory; with --topology also dflash/16 (default: none)")
    parser.add_argument("--widths", default="1,8,16,32,64,128,256,512,1024", help="(default %(default)s)")
    parser.add_argument("--batches", default="1,4,16", help="rows that decode together (default %(default)s)")
    parser.add_argument("--contexts", default="512,2048,8192", help="positions before a block (default %(default)s)")
    parser.add_argument(
        "--topology", help="estimate for one chip of it, such as v5p:2x2x1, in place of measuring on this device"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="(default: float32; bfloat16 with --topology)")
    parser.add_argument(
        "--acceptance",
        metavar="REPORT",
        help="predicts speedups from the acceptance in a report.json of eval, or from a number below 1, of every slot",
    )
    parser.add_argument("--out", type=path, help="directory for cost.json and charts")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run_cost(options: argparse.Namespace) -> int:
    grid = {name: numbers_of(options, name) for name in ("widths", "batches", "contexts")}
    if grid["widths"][0] != 1:
        raise UserError(f"--widths {options.widths}: expected 1 among them, which the others are compared with")
    if options.topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: the devices are not here
    from rich.console import Console

    from serve.cost_report import assemble, print_study, write_study

    survivals = accepted(options.acceptance, grid["widths"][-1])
    curves, machine = estimated_curves(options, grid) if options.topology else measured_curves(options, grid)
    described = {"target": options.target, "source": "estimated" if options.topology else "measured"}
    described |= {"dtype": cost_dtype(options), "command": " ".join(["python", "-m", "serve", *sys.argv[1:]])}
    study = assemble(curves, machine, survivals, described)
    if not options.json:
        print_study(study, Console(width=None if sys.stdout.isatty() else 120))
    if options.out:
        for file in write_study(study, options.out):
            say(f"cost: {file}")
    print(json.dumps(study))
    return 0


def accepted(given: str | None, width: int) -> dict[str, list[float]] | None:
    """Survival by task of what --acceptance names, over the slots of a block of `width` where it is a number."""
    from serve.report import read_report
    from serve.scaling import survivals_of

    if given is None:
        return None
    try:
        number = float(given)
    except ValueError:
        return survivals_of(read_report(path(given)), given)
    if not 0 < number < 1 or width == 1:
        raise UserError(
            f"--acceptance {given}: expected a report or a number above 0 and below 1, and --widths with one above 1"
        )
    return {f"acceptance {given}": [number**slot for slot in range(1, width)]}


def numbers_of(options: argparse.Namespace, name: str) -> list[int]:
    """The numbers of an option, ascending, each once."""
    words = getattr(options, name).split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(
            f"--{name} {getattr(options, name)}: expected numbers of at least 1 with commas, such as 1,8,64"
        )
    return sorted({int(word) for word in words})


def cost_dtype(options: argparse.Namespace) -> str:
    return options.dtype or ("bfloat16" if options.topology else "float32")


def measured_curves(options: argparse.Namespace, grid: dict[str, list[int]]) -> tuple[Any, Any]:
    """Of the device at hand: the curves of a cost study, and the machine."""
    from configs.device import describe_device, keep_compiled_programs
    from models.decode import Engine
    from models.drafters import Nothing
    from models.roofline import measured_machine
    from models.sources import load_target
    from serve.cost_study import measure
    from serve.load import load_engine

    keep_compiled_programs()
    dtype = cost_dtype(options)
    machine = measured_machine(describe_device(), dtype)
    if options.drafter:
        engine, _, _ = load_engine(options.target, path(options.drafter), dtype)
    else:
        engine = Engine(load_target(options.target, dtype), Nothing())
    most = engine.target.config.max_positions
    fitting = {context: [width for width in grid["widths"] if context + width <= most] for context in grid["contexts"]}
    for context, widths in fitting.items():
        if left := len(grid["widths"]) - len(widths):
            say(f"cost: context {context}: {left} widths left out, which go past the target's {most} positions")
    if not any(fitting.values()):
        raise UserError(f"--contexts: expected contexts of less than the target's {most} positions; lower one")
    curves = []
    for batch in grid["batches"]:
        for context, widths in fitting.items():
            if widths:
                say(f"cost: timing batch {batch}, context {context}, widths {', '.join(map(str, widths))}")
                curves.append(measure(engine, batch, context, widths, machine))
    return curves, machine


def estimated_curves(options: argparse.Namespace, grid: dict[str, list[int]]) -> tuple[Any, Any]:
    """The same of one chip of the topology asked for, by its compiler."""
    from models.aot import mesh_over, topology
    from models.roofline import Machine
    from models.sources import abstract_target
    from serve.compile import engine_of
    from serve.cost_study import estimate

    chips = topology(options.topology)
    mesh = mesh_over(chips, schema.Mesh(data=1, fsdp=1, tensor=1))
    target = abstract_target(options.target, cost_dtype(options), mesh)
    engine, _ = engine_of(options.drafter or "plain", target, mesh)
    machine = Machine(f"one {chips.chip.name} chip", chips.chip.peak, chips.chip.bandwidth)
    places = [(batch, context) for batch in grid["batches"] for context in grid["contexts"]]
    return [estimate(engine, batch, context, grid["widths"], chips) for batch, context in places], machine


def run_compile(options: argparse.Namespace) -> int:
    for name in ("rows", "context", "page"):
        given = getattr(options, name)
        if given is not None and given < 1:
            raise UserError(f"--{name}: expected at least 1, got {given}")
    sizes = sizes_of(options.mesh)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: the devices are not here

    from models.aot import topology
    from serve.compile import Asked, compile_decoding

    asked = Asked(options.rows, options.context, options.page, options.dtype, speculation_of(options))
    drafters = options.drafter or ["dflash/16"]
    found = compile_decoding(options.target, drafters, topology(options.topology), sizes, asked, options.save)
    if options.json:
        print(json.dumps(found))
    return 0 if found["fits"] else 1
