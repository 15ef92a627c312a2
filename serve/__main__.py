"""python -m serve: decode with a drafter, measure what it gains, compare reports, chat, serve an API."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from configs import schema
from configs.console import command, say
from configs.errors import UserError
from configs.paths import at_home, path


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve", description="Decode with a drafter, losslessly.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, add, run in (
        (
            "eval",
            "decode tasks plainly and speculatively in one run; writes report.html, .md and .json",
            add_eval,
            run_eval,
        ),
        ("compare", "put several reports side by side", add_compare, run_compare),
        ("inspect", "say what target and drafter directories are, and whether they fit", add_inspect, run_inspect),
        ("chat", "answer in the terminal, what each step committed tinted", add_chat, run_chat),
        ("cost", "what verifying and drafting cost by width, batch and context: where it is free", add_cost, run_cost),
        ("compile", "compile decoding for TPUs that are not here: fit and estimated cost", add_compile, run_compile),
        ("http", "serve OpenAI's API, and a page to chat on", add_http, run_http),
    ):
        add(subparser := commands.add_parser(name, help=text, description=text))
        subparser.set_defaults(run=run)
    options = parser.parse_args(arguments)
    return options.run(options)


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        required=True,
        type=at_home,
        help="smollm2-135m, a Hugging Face directory, a .gguf file, or a MaxText config",
    )
    parser.add_argument("--drafter", required=True, type=path, help="a drafter artifact directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default %(default)s)")
    parser.add_argument(
        "--chat-template-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as enable_thinking=false (repeatable; default: what the drafter was trained with)",
    )
    parser.add_argument("--mesh", default="", metavar="tensor=N", help="split the model over N devices (default: one)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    add_draft(parser)
    add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the draws when sampling (default %(default)s)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default %(default)s)")
    parser.add_argument("--top-k", type=int, help="sample among the k most likely tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default %(default)s)")
    parser.add_argument("--min-p", type=float, default=0.0, help="fraction of the likeliest (default %(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="sampling: draft the drafter's likeliest tokens")
    parser.add_argument("--block-verification", action="store_true", help="sampling: verify blocks, not single tokens")


def add_draft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, help="one block width to decode with (default: chosen while decoding)")
    parser.add_argument(
        "--drafts",
        choices=["both", "drafter", "ngram"],
        help="who drafts: the drafter, n-gram copies of the text, or both (the default; with --width: the drafter)",
    )
    parser.add_argument(
        "--tree",
        type=int,
        choices=[16, 32, 64],
        help="draft trees of so many tokens from a block, of --width if given (default: chosen while decoding)",
    )


def add_eval(parser: argparse.ArgumentParser) -> None:
    add_engine(parser)
    parser.add_argument(
        "--tasks", required=True, help="comma-separated: shipped names, names in --task-dir, jsonl files"
    )
    parser.add_argument("--task-dir", type=path, help="directory of NAME.jsonl files")
    parser.add_argument("--out", required=True, type=path, help="directory for report.html, report.md and report.json")
    parser.add_argument("--prompts", type=int, default=10, help="prompts per task (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default %(default)s)")


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", type=path, help="report.json files, or directories holding one")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=at_home, help="drafter artifacts, and targets as --target takes them")


def add_chat(parser: argparse.ArgumentParser) -> None:
    add_engine(parser)
    parser.add_argument("--max-new-tokens", type=int, default=512, help="(default %(default)s)")
    parser.add_argument("--stop", action="append", default=[], help="end an answer before this text (repeatable)")
    parser.add_argument("--message", help="answer this and end, in place of a conversation")


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


def add_http(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    add_draft(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any (default %(default)s)")
    parser.add_argument("--name", help="what clients call the model (default: the last part of --target)")
    parser.add_argument("--api-key-file", type=path, help="keys, one a line, of which clients must send one")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name clients may call the server by, beside localhost (repeatable; without keys, on loopback only)",
    )
    for name, default, text in (
        ("rows", 8, "answers written at once"),
        ("context", 1024, "tokens of one prompt and its answer"),
        ("queue", 64, "requests that may wait for others to end; more get 429"),
        ("connections", 256, "that may be open; more get 503"),
        ("max-body-bytes", 2 * 2**20, "of a request"),
        ("peer-seconds", 20, "a client may take to send its headers, its body, or to go on reading"),
        ("request-seconds", 600, "a request may take"),
        ("drain-seconds", 30, "what runs may take to finish after SIGTERM"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default %(default)s)")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="(default: what the context holds)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: the same)")
    parser.add_argument("--log-prompts", action="store_true", help="log what was asked, too")


def run_eval(options: argparse.Namespace) -> int:
    from pipelines.prompt_files import load_tasks

    for name in ("prompts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    if not tasks:
        raise UserError("--tasks: expected comma-separated task names or jsonl files, got nothing")
    from rich.console import Console

    from serve.rendering import print_table
    from serve.report import assemble, check_out, describe, write_report

    check_out(options.out)
    from configs.device import keep_compiled_programs, share_one_heap
    from serve.evaluate import evaluate

    share_one_heap()
    programs = keep_compiled_programs()
    evaluator, artifact = open_evaluator(options, tasks)
    draft = draft_of(options)
    say(f"eval: {f'{draft.name}, width {draft.width}' if draft else 'drafts chosen while decoding'}")
    named = {"target": options.target, "drafter": str(options.drafter), "dtype": options.dtype}
    command_line = ["python", "-m", "serve", *sys.argv[1:]]
    described = describe(artifact, command_line, **named, max_new_tokens=options.max_new_tokens)

    def keep(measured: dict[str, Any]) -> None:
        report = assemble(described, measured, programs)
        write_report(report, options.out)
        print_table(report, Console(width=None if sys.stdout.isatty() else 120), options.out)

    keep(evaluate(evaluator, tasks, keep=keep))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from serve.rendering import print_comparison
    from serve.report import read_report

    print_comparison({str(path): read_report(path) for path in options.reports}, Console())
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    from serve.inspect import inspect

    return inspect(options.paths)


def run_chat(options: argparse.Namespace) -> int:
    from serve.chat import chat
    from serve.load import open_decoder

    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: expected at least 1, got {options.max_new_tokens}")
    if "" in options.stop:
        raise UserError("--stop: expected a text, got an empty one, which every answer begins with; leave it out")
    choices = {"dtype": options.dtype, "draft": draft_of(options), "speculation": speculation_of(options)}
    choices["who"] = options.drafts or "both"
    choices |= {"chat_template_args": template_args_of(options.chat_template_arg), "mesh": mesh_of(options.mesh)}
    decoder = open_decoder(options.target, options.drafter, **choices, context=2 * options.max_new_tokens)
    given = {name: getattr(options, name) for name in ("message", "max_new_tokens", "stop", "seed")}
    try:
        return chat(decoder, **given)
    except KeyboardInterrupt:
        return 128 + 2


def run_http(options: argparse.Namespace) -> int:
    from serve.guard import LOOPBACK, Limits
    from serve.server import bind, open_service, read_keys, run, web_server

    numbers = ("rows", "context", "queue", "connections", "max_body_bytes", "peer_seconds", "request_seconds")
    for name in (*numbers, "max_prompt_tokens", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    keys = read_keys(options.api_key_file) if options.api_key_file else []
    listening = bind(options.host, options.port)
    host, port, *_ = listening.getsockname()
    local = host in ("127.0.0.1", "::1")
    if not (local or keys):
        say(f"http: {host} is open to others and asks for no key; name a file of keys with --api-key-file")
    names = ("prompt_tokens", "new_tokens", "body_bytes")
    limits = Limits(
        **{name: getattr(options, f"max_{name}") for name in names},
        request_seconds=options.request_seconds,
        peer_seconds=options.peer_seconds,
    )
    choices = {"dtype": options.dtype, "draft": draft_of(options), "mesh": mesh_of(options.mesh)}
    choices["who"] = options.drafts or "both"
    sizes = {name: getattr(options, name) for name in ("rows", "context", "queue")}
    service = open_service(
        options.target,
        options.drafter,
        **choices,
        **sizes,
        chat_template_args=template_args_of(options.chat_template_arg),
        name=options.name,
        limits=limits,
        keys=keys,
        hosts=(*LOOPBACK, *options.allow_host) if local and not keys else None,
        log_prompts=options.log_prompts,
    )
    listening.listen(options.connections)  # before the address is told; uvicorn takes over who came
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"http: {service.served.name} on {address}: a page to chat on; {address}/docs lists the API")
    say(
        f"http: curl {address}/v1/chat/completions -d "
        """'{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}'"""
    )
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn's to handle; it raises it again at its end
    server = web_server(service, connections=options.connections, drain_seconds=options.drain_seconds)
    run(server, service.scheduler, listening)
    return 0


def open_evaluator(options: argparse.Namespace, tasks: dict[str, Any]) -> tuple[Any, Any]:
    """The evaluator of what the options name, with room for every prompt of `tasks` and its answer; the artifact.

    Raises:
      UserError: no such target or drafter, one that does not fit the other, a width beyond the trained one, a prompt
        beyond the target's context.
    """
    from configs.device import drop_programs
    from serve.evaluate import Evaluator, needed_context
    from serve.load import check_draft, load_engine, step_cost
    from serve.session import context_capacity

    draft, speculation, new = draft_of(options), speculation_of(options), options.max_new_tokens
    given = template_args_of(options.chat_template_arg), mesh_of(options.mesh)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, options.dtype, *given)
    if draft is not None:
        check_draft(draft, engine.drafter, options.drafter)
    tokens = needed_context(tasks, engine.target, tokenizer, new)
    known = {"cost": step_cost(engine, artifact, tokens, speculation), "prior": artifact.acceptance, "draft": draft}
    known["who"] = options.drafts or "both"
    drop_programs()  # those that timed the steps, and what loading left behind
    capacity = context_capacity(tokens, artifact.config.width)
    more = {"speculation": speculation, "seed": options.seed, "capacity": capacity}
    return Evaluator(engine, tokenizer, new, **known, **more), artifact


def template_args_of(given: Sequence[str]) -> dict[str, bool | int | float | str]:
    """The chat template's arguments in NAME=VALUE words; values are read as YAML reads them."""
    import yaml

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name] = None
        if not (name and equals and type(found[name]) in (bool, int, float, str)):
            raise UserError(
                f"--chat-template-arg {text}: expected NAME=VALUE with a truth value, a number or a text, such as "
                "enable_thinking=false"
            )
    return found


def sizes_of(given: str) -> schema.Mesh:
    """The mesh in the words data=..,fsdp=..,tensor=.., each 1 unless given; raises UserError for other words."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for word in filter(None, given.split(",")):
        axis, _, size = word.partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {given}: {word!r}: expected data=N, fsdp=N or tensor=N, N at least 1")
        sizes[axis] = int(size)
    return schema.Mesh(**sizes)


def mesh_of(given: str) -> schema.Mesh:
    """The same, for rows that are written one at a time; raises UserError where it would split them."""
    sizes = sizes_of(given)
    if sizes.data * sizes.fsdp > 1:
        raise UserError(
            f"--mesh {given}: data and fsdp split rows, and answers are written one row at a time; expected "
            "data=1,fsdp=1; split the model by tensor=N"
        )
    return sizes


def speculation_of(options: argparse.Namespace) -> Any:
    """How the options want tokens sampled, and drafted and verified while sampling."""
    from models.sampling import Sampling
    from models.verify import Speculation

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    return Speculation(sampling, options.deterministic, options.block_verification)


def draft_of(options: argparse.Namespace) -> Any:
    """The one draft that was asked for; None where it is to be chosen while decoding."""
    from models.drafters import TREES, Draft

    if options.tree is not None:
        if options.drafts == "ngram":
            raise UserError(f"--tree {options.tree}: expected the drafter's blocks, got --drafts ngram; drop one")
        if options.width == 1:
            raise UserError(f"--tree {options.tree}: expected --width 2 or more, got 1, a block without drafts")
        return Draft("drafter", options.width or TREES[options.tree], tree=options.tree)
    if options.width is not None and options.drafts == "both":
        raise UserError(f"--width {options.width}: expected one who drafts, got --drafts both; name drafter or ngram")
    return None if options.width is None else Draft(options.drafts or "drafter", options.width)


if __name__ == "__main__":
    sys.exit(main())
