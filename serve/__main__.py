"""python -m serve: decode with a drafter, measure what it gains, compare reports, chat."""

import argparse
import sys
from collections.abc import Callable, Sequence

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
    ):
        add(subparser := commands.add_parser(name, help=text, description=text))
        subparser.set_defaults(run=run)
    options = parser.parse_args(arguments)
    return options.run(options)


def add_engine(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--width", type=int, help="one block width to decode with (default: chosen while decoding)")
    parser.add_argument(
        "--drafts",
        default="drafter",
        choices=["drafter", "ngram"],
        help="with --width: who drafts (default %(default)s)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default %(default)s)")
    parser.add_argument("--top-k", type=int, help="sample among the k most likely tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default %(default)s)")
    parser.add_argument("--min-p", type=float, default=0.0, help="fraction of the likeliest (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws when sampling (default %(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="sampling: draft the drafter's likeliest tokens")
    parser.add_argument("--block-verification", action="store_true", help="sampling: verify blocks, not single tokens")


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


def run_eval(options: argparse.Namespace) -> int:
    from pipelines.prompt_files import load_tasks

    for name in ("prompts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    if not tasks:
        raise UserError("--tasks: expected comma-separated task names or jsonl files, got nothing")
    from rich.console import Console

    from serve.report import check_out, print_table, write_report

    check_out(options.out)

    def keep(report: dict) -> None:
        write_report(report, options.out)
        print_table(report, Console(width=None if sys.stdout.isatty() else 120), options.out)

    keep(evaluate_artifact(options, tasks, keep))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from serve.report import print_comparison, read_report

    print_comparison({str(path): read_report(path) for path in options.reports}, Console())
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    from serve.inspect import inspect

    return inspect(options.paths)


def run_chat(options: argparse.Namespace) -> int:
    from serve.chat import chat
    from serve.load import how_of, mesh_of, open_decoder, template_args_of, way_of

    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: expected at least 1, got {options.max_new_tokens}")
    if "" in options.stop:
        raise UserError("--stop: expected a text, got an empty one, which every answer begins with; leave it out")
    choices = {"dtype": options.dtype, "way": way_of(options), "how": how_of(options)}
    choices |= {"chat_template_args": template_args_of(options), "mesh": mesh_of(options)}
    decoder = open_decoder(options.target, options.drafter, **choices, context=2 * options.max_new_tokens)
    try:
        return chat(decoder, options)
    except KeyboardInterrupt:
        return 128 + 2


def evaluate_artifact(options: argparse.Namespace, tasks: dict, keep: Callable[[dict], None]) -> dict:
    """The whole report of one evaluation; where that is stopped, `keep` is given the report of what came to its end."""
    from configs.device import drop_programs, keep_compiled_programs, peak_memory_bytes, share_one_heap
    from configs.provenance import provenance
    from pipelines.prompt_files import encode_prompt
    from serve.evaluate import Evaluator, check_room, evaluate
    from serve.load import check_way, how_of, load_engine, mesh_of, step_cost, template_args_of, way_of
    from serve.report import SCHEMA
    from serve.session import context_capacity

    share_one_heap()
    programs = keep_compiled_programs()
    way, how = way_of(options), how_of(options)
    template_args, mesh = template_args_of(options), mesh_of(options)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, options.dtype, template_args, mesh)
    if way is not None:
        check_way(way, artifact, options.drafter)
    tokens = 0
    for prompt in (prompt for prompts in tasks.values() for prompt in prompts):
        ids = encode_prompt(tokenizer, prompt)
        check_room(engine.target, prompt, ids, options.max_new_tokens)
        tokens = max(tokens, len(ids) + options.max_new_tokens)
    cost = step_cost(engine, artifact, tokens, how)
    drop_programs()  # those that timed the steps, and what loading left behind
    evaluator = Evaluator(
        engine,
        tokenizer,
        options.max_new_tokens,
        cost=cost,
        prior=artifact.acceptance,
        way=way,
        how=how,
        seed=options.seed,
        capacity=context_capacity(tokens, artifact.config.width),
    )
    say(f"eval: {'width ' + str(options.width) if options.width else 'widths chosen while decoding'}")
    config = artifact.config
    described = {
        "schema": SCHEMA,
        **provenance(["python", "-m", "serve", *sys.argv[1:]]),
        "target": options.target,
        "drafter": str(options.drafter),
        "dtype": options.dtype,
        "max_new_tokens": options.max_new_tokens,
        "drafter_info": {
            "digest": artifact.digest(),
            "trained width": config.width,
            "layers": config.num_layers,
            "taps": list(config.target_layer_ids),
            "draft vocabulary": config.draft_vocab_size or config.vocab_size,
            "Markov head": config.markov_size or "none",
            "in-block attention": ", ".join(
                dict.fromkeys("causal" if causal else "bidirectional" for causal in config.causal)
            ),
        },
    }

    def whole(measured: dict) -> dict:
        return {**described, "peak_memory_bytes": peak_memory_bytes(), "programs": dict(programs), **measured}

    return whole(evaluate(evaluator, tasks, keep=lambda measured: keep(whole(measured))))


if __name__ == "__main__":
    sys.exit(main())
