"""python -m serve eval: decode tasks plainly and speculatively, and report what the drafter gains."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.console import command, say


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve", description="Decode with a drafter, losslessly.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "decode tasks plainly and speculatively in one run; writes report.html and report.json"
    add_eval(commands.add_parser("eval", help=text, description=text))
    return run_eval(parser.parse_args(arguments))


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="smollm2-135m, or a Hugging Face directory")
    parser.add_argument("--drafter", required=True, type=Path, help="a drafter artifact directory")
    parser.add_argument(
        "--tasks", required=True, help="comma-separated: shipped names, names in --task-dir, jsonl files"
    )
    parser.add_argument("--task-dir", type=Path, help="directory of NAME.jsonl files")
    parser.add_argument("--out", required=True, type=Path, help="directory for report.html and report.json")
    parser.add_argument("--prompts", type=int, default=10, help="prompts per task (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--width", type=int, help="block width to decode with (default: the one that measures fastest)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default %(default)s)")


def run_eval(options: argparse.Namespace) -> int:
    from models.prompts import load_task

    for name in ("prompts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    names = [name for name in options.tasks.split(",") if name]
    if not names:
        raise ValueError("--tasks: expected comma-separated task names or jsonl files, got nothing")
    tasks = {Path(name).name.split(".")[0]: load_task(name, options.task_dir)[: options.prompts] for name in names}
    report = evaluate_artifact(options, tasks)

    from rich.console import Console

    from serve.report import print_table, write_report

    write_report(report, options.out)
    print_table(report, Console(), options.out)
    return 0


def evaluate_artifact(options: argparse.Namespace, tasks: dict) -> dict:
    """The whole report of one evaluation."""
    from configs.provenance import provenance
    from models.artifact import check_fit, read_artifact
    from models.sources import load_target
    from models.tokenizer import load_tokenizer
    from serve.decoder import make_engine
    from serve.evaluate import Evaluator, evaluate

    artifact = read_artifact(options.drafter)
    width = artifact.config.width
    if options.width is not None and not 2 <= options.width <= width:
        raise ValueError(f"--width: expected 2 to {width} (what {options.drafter} was trained at), got {options.width}")
    say(f"eval: loading {options.target} and {options.drafter}")
    target = load_target(options.target, options.dtype)
    check_fit(artifact, target, options.drafter)
    evaluator = Evaluator(make_engine(target, artifact), load_tokenizer(options.target), options.max_new_tokens)
    measured = evaluate(evaluator, tasks, options.width)
    full_width_tau = round(measured.pop("full_width_tau"), 3)
    return {
        "schema": 1,
        **provenance(["python", "-m", "serve", *sys.argv[1:]]),
        "target": options.target,
        "drafter": str(options.drafter),
        "dtype": options.dtype,
        "max_new_tokens": options.max_new_tokens,
        "drafter_info": {
            "trained width": width,
            "layers": artifact.config.num_layers,
            "taps": list(artifact.config.target_layer_ids),
            "draft vocabulary": artifact.config.draft_vocab_size or artifact.config.vocab_size,
            f"tau at width {width}, one prompt a task": full_width_tau,
            "in-block attention": "causal" if artifact.config.causal else "bidirectional",
        },
        **measured,
    }


if __name__ == "__main__":
    sys.exit(main())
