"""python -m serve.bench_study DIR: what the drafters of a study cost in decoding on this device, and what they gain.

DIR is one of `python -m train study`. Of every training that came to its end, the steps of its drafter are timed beside
the plain loop's (`serve.cost`; kept, once for all drafters of one shape), and priced with the acceptance of its slots
over the study's task answers, all tasks together. A table, and as the last line one JSON object: variant.seed ->

    tau       tokens a step at full width, as the study has it (the mean of its tasks)
    width     the width at which its chains would decode fastest; 1 where none would be faster than single tokens
    plain_ms, draft_ms, verify_ms   of a step: of the plain loop, and of that width's drafting and verification
    speedup   of that width over the plain loop, by these times and the slots' acceptance
    full      width, draft_ms, verify_ms and speedup of blocks as wide as the drafter

and DIR/survival.svg: the share of the steps that reached a slot and had it accepted, a curve for each of them.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command
from configs.errors import UserError
from configs.files import write_atomic
from configs.paths import path, read_object
from serve import charts
from serve.cost import Cost

CONTEXT = 384  # positions of the steps that are timed
COLUMNS = ("tau", "best width", "draft ms", "verify ms", "speedup", "full width", "draft ms", "verify ms", "speedup")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.bench_study", description="Decoding by a study's drafters.")
    parser.add_argument("study", type=path, metavar="DIR", help="what python -m train study wrote")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default %(default)s)")
    options = parser.parse_args(arguments)
    results = finished(options.study)
    survival = {name: survival_of(result["tasks"]) for name, result in results.items()}
    write_atomic(options.study / "survival.svg", charts.alone(charts.survival_curves(survival)))
    found = measure(options.study, results, options.dtype)
    show(found)
    print(json.dumps(found))
    return 0


def finished(study: Path) -> dict[str, dict[str, Any]]:
    """variant.seed -> the result of a training that came to its end.

    Raises:
      UserError: nothing of a study lies there, or it has no such training.
    """
    results = {file.parent.name: read_object(file) for file in sorted(study.glob("*/result.json"))}
    done = {name: result for name, result in results.items() if result["failed"] is None}
    if not done:
        raise UserError(f"{study}: expected what python -m train study writes, with a finished training; found none")
    return done


def survival_of(tasks: dict[str, Any]) -> list[float]:
    """Of `tasks`, {slots: [{acceptance: share or None}]} in the study's result."""
    return np.cumprod([slot["acceptance"] or 0.0 for slot in tasks["slots"]]).tolist()


def measure(study: Path, results: dict[str, dict[str, Any]], dtype: str) -> dict[str, dict[str, Any]]:
    """variant.seed -> the numbers above."""
    from configs.device import keep_compiled_programs, share_one_heap

    share_one_heap()
    keep_compiled_programs()
    return {name: priced(study / name / "artifact", result, dtype) for name, result in results.items()}


def priced(artifact: Path, result: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The numbers above, of one drafter, after timing its steps where they are not known."""
    from serve.load import load_engine, step_cost

    engine, _, drafter = load_engine(result["asked"]["recipe"]["target"]["source"], artifact, dtype)
    return best_chain(step_cost(engine, drafter, CONTEXT), result["tasks"])


def best_chain(cost: Cost, tasks: dict[str, Any]) -> dict[str, Any]:
    """The numbers above, of `tasks`: {tau, slots} in the study's result."""
    survival = survival_of(tasks)
    gains = {width: cost.expected_speedup(width, survival) for width in cost.verify_ms}

    def at(width: int) -> dict[str, float]:
        times = {"draft_ms": cost.draft_ms[width], "verify_ms": cost.verify_ms[width]}
        return {"width": width} | times | {"speedup": gains[width]}

    best = max(gains, key=lambda width: gains[width])
    return {"tau": tasks["tau"], "plain_ms": cost.plain_ms} | at(best) | {"full": at(max(gains))}


def show(found: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    plain = math.fsum(row["plain_ms"] for row in found.values()) / len(found)
    table = Table("variant", box=SIMPLE_HEAD, title=f"a plain step: {plain:.1f} ms")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, row in found.items():
        shown = [
            text
            for at in (row, row["full"])
            for text in (f"{at['width']}", f"{at['draft_ms']:.1f}", f"{at['verify_ms']:.1f}", f"{at['speedup']:.2f}x")
        ]
        table.add_row(name, f"{row['tau']:.2f}", *shown)
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
