"""python -m serve: decode with a drafter, measure what it gains, compare reports, chat, serve an API."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from configs.console import command, say
from configs.errors import UserError
from configs.paths import at_home, path
from serve.cost_commands import add_compile, add_cost, run_compile, run_cost
from serve.options import (
    add_draft,
    add_engine,
    add_models,
    draft_of,
    mesh_of,
    speculation_of,
    template_args_of,
)


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


if __name__ == "__main__":
    sys.exit(main())
