"""python -m serve.bench_trees: what draft trees gain over chains from the same blocks.

A table, and as the last line one JSON object with, for each way of drafting ("chain, width 8", "tree of 16, width 8"),

    tau      tokens committed per verify step, the bonus token included
    step_ms  milliseconds of a step, drafting and verification
    speedup  the plain loop's time over its own, all answers together; speedup_spread: the 95 % interval over prompts
    exact    answers that equal the plain loop's, of `answers`; mismatches: the target's logit gaps where one does not
    widths   {width: steps that drafted a block so wide}

and plain_ms, a step of the plain loop. Batch 1, greedy, every way on the same prompts in turn within this process.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from configs.console import command, say
from serve.bench import Opened, in_turn, parser_of

CHAINS = (4, 8, 16)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_trees", "Draft trees against chains.", prompts=2)
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import describe_device
    from models.drafters import Draft
    from serve.cost import Cost, tree_drafts

    opened = Opened(options)
    drafter = opened.engine.drafter
    drafts = [Draft("drafter", width) for width in CHAINS if width <= drafter.width] + tree_drafts(drafter)
    known = {"cost": Cost(1.0, {}, {}), "widest": max(draft.widest for draft in drafts)}  # nothing is chosen here
    ways = {
        f"{draft.name.replace('drafter', 'chain')}, width {draft.width}": opened.evaluator(draft=draft, **known)
        for draft in drafts
    }
    return {"device": describe_device(), "dtype": options.dtype, **compared(ways, opened.tasks)}


def compared(ways: Mapping[str, Any], tasks: Mapping[str, Sequence[Any]], title: str | None = None) -> dict[str, Any]:
    """{plain_ms, ways} as named above, shown as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    answers: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in ways}
    for task, prompts in tasks.items():
        for name, found in in_turn(ways, prompts).items():
            answers[name] += found
        say(f"bench: {task}: " + ", ".join(f"{name} {summary(found)['tau']:.2f}" for name, found in answers.items()))
    found = {name: summary(pairs) | {"mismatches": mismatches(ways[name], pairs)} for name, pairs in answers.items()}
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("drafts", "tau", "ms a step", "speedup (95 % interval)", "exact"):
        table.add_column(column, justify="left" if column == "drafts" else "right")
    for name, row in found.items():
        low, high = row["speedup_spread"]
        shown = (f"{row['tau']:.2f}", f"{row['step_ms']:.1f}", f"{row['speedup']:.2f}x ({low:.2f}-{high:.2f})")
        table.add_row(name, *shown, f"{row['exact']}/{row['answers']}")
    Console(width=100).print(table)
    plain = [plain for _, plain, _ in next(iter(answers.values()))]
    plain_ms = sum(answer.decode_ms for answer in plain) / sum(len(answer.ids) for answer in plain)
    return {"plain_ms": round(plain_ms, 2), "ways": found}


def mismatches(evaluator: Any, pairs: Sequence[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
    """Where greedy answers part from the plain loop's, and how near a tie that was."""
    from serve.summary import mismatch

    if not evaluator.sampling.greedy:
        return []
    return [mismatch(each) for each in evaluator.at_full_width([pair for pair in pairs if pair[1].ids != pair[2].ids])]


def summary(pairs: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """The numbers named above, from questions, plain answers and a way's own."""
    from models.statistics import bootstrap_ratio

    times = [(plain.decode_ms / len(plain.ids) * len(fast.ids), fast.decode_ms) for _, plain, fast in pairs]
    num_steps = sum(len(fast.runs) for _, _, fast in pairs)
    return {
        "tau": round(sum(len(fast.ids) for _, _, fast in pairs) / num_steps, 3),
        "step_ms": round(sum(fast.decode_ms for _, _, fast in pairs) / num_steps, 2),
        "speedup": round(sum(plain for plain, _ in times) / sum(fast for _, fast in times), 3),
        "speedup_spread": [round(value, 3) for value in bootstrap_ratio(times)],
        "exact": sum(plain.ids == fast.ids for _, plain, fast in pairs),
        "answers": len(pairs),
        "widths": dict(sorted(Counter(width for _, _, fast in pairs for width in fast.widths).items())),
    }


if __name__ == "__main__":
    raise SystemExit(main())
