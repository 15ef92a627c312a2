"""python -m serve.bench_release: what a drafter gains, alone and beside copying, greedy and sampled.

Two tables, and as the last line one JSON object with, greedily,

    tasks      {name: {tau, alone, speedup, ...}}: tau is the drafter's at its full width; alone and speedup are the
               plain loop's time over that of the drafter without copying and with it, alone_spread and speedup_spread
               their 95 % intervals over prompts; exact the answers of `prompts` that equal the plain loop's both ways,
               with mismatches the target's logit gaps where one does not; repetition the share of answers that repeat
               themselves, tau_without_repetition the tau of the others
    average    means over tasks, exact and prompts summed; plain_ms the plain loop's milliseconds a token
    sampled    the same object at temperature 1, where no answer is expected to equal another; --only leaves out one

Batch 1, drafts chosen while decoding; a plain answer, both speculative ones and a second plain one take turns.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from configs.console import command, say
from serve.bench import Opened, in_turn, parser_of


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_release", "What a drafter gains.", prompts=20, halves=True)
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    opened = Opened(options)

    def ways(evaluator: Callable[..., Any], title: str) -> dict[str, Any]:
        return per_task(
            {"alone": evaluator(who="drafter"), "beside copies": evaluator(who="both")}, opened.tasks, title
        )

    return opened.greedily_and_sampled(ways)


def per_task(ways: Mapping[str, Any], tasks: Mapping[str, Sequence[Any]], title: str) -> dict[str, Any]:
    """{tasks, average} as named above, shown as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("task", "tau", "fresh", "drafter alone", "beside copies", "exact", "repeating"):
        table.add_column(column, justify="left" if column == "task" else "right")
    found = {}
    for name, prompts in tasks.items():
        task = found[name] = measure_task(ways, prompts)
        shown = json.dumps({key: value for key, value in task.items() if key != "mismatches"})
        say(f"bench: {title}: {name}: {shown}")
        spread = {
            way: "{:.2f}x ({:.2f}-{:.2f})".format(task[way], *task[f"{way}_spread"]) for way in ("alone", "speedup")
        }
        exact = "" if task["exact"] is None else f"{task['exact']}/{task['prompts']}"
        fresh = "" if task["tau_without_repetition"] is None else f"{task['tau_without_repetition']:.2f}"
        table.add_row(name, f"{task['tau']:.2f}", fresh, *spread.values(), exact, f"{task['repetition']:.0%}")
    average: dict[str, Any] = {
        key: round(float(np.mean([task[key] for task in found.values()])), 3) for key in ("tau", "alone", "speedup")
    }
    average["plain_ms"] = round(float(np.mean([task["plain_ms"] for task in found.values()])), 2)
    exact = [task["exact"] for task in found.values()]
    average |= {"exact": None if None in exact else sum(exact), "prompts": sum(t["prompts"] for t in found.values())}
    table.add_row("average", f"{average['tau']:.2f}", "", f"{average['alone']:.2f}x", f"{average['speedup']:.2f}x")
    Console(width=100).print(table)
    return {"tasks": found, "average": average}


def measure_task(ways: Mapping[str, Any], prompts: Sequence[Any]) -> dict[str, Any]:
    """A task's entry: its questions decoded in turn, then walked at full width."""
    from serve.summary import summarise

    first = next(iter(ways.values()))
    known = {"width": first.engine.drafter.width, "greedy": first.sampling.greedy}
    answers = in_turn(ways, prompts)
    alone, both = (
        summarise(evaluator.at_full_width(answers[name]), first.tokenizer, **known) for name, evaluator in ways.items()
    )
    equal = None
    if first.sampling.greedy:
        pairs = zip(*answers.values(), strict=True)
        equal = sum(all(plain.ids == fast.ids for _, plain, fast in each) for each in pairs)
    return {
        "tau": round(both["tau"], 3),
        "tau_without_repetition": both["tau_without_repetition"] and round(both["tau_without_repetition"], 3),
        "alone": round(alone["speedup"], 3),
        "alone_spread": [round(value, 3) for value in alone["speedup_interval"]],
        "speedup": round(both["speedup"], 3),
        "speedup_spread": [round(value, 3) for value in both["speedup_interval"]],
        "plain_ms": round(both["plain_ms_per_token"]["median"], 2),
        "exact": equal,
        "mismatches": alone["mismatches"] + both["mismatches"],
        "prompts": both["prompts"],
        "repetition": round(both["repetition_rate"], 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
