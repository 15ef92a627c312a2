"""python -m serve.bench_confidence: what is gained by verifying less of a block that its drafter is unsure of.

Two tables, and as the last line one JSON object with, greedily, what `serve.bench_trees` says of the ways "whole" and
"cut", and under `sampled` the same at temperature 1, where no answer is expected to equal another. Batch 1, the drafter
alone without copying; both ways choose while decoding: "whole" among blocks that are verified whole, "cut" also one of
twice the width that would pay best, which may end at that width or at its anchor.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from configs.console import command
from configs.errors import UserError
from serve.bench import Opened, parser_of


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_confidence", "Blocks cut by confidence against whole ones.", prompts=4, halves=True)
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from serve.bench_trees import compared

    opened = Opened(options)
    if getattr(opened.engine.drafter, "temperature", None) is None:
        raise UserError(
            f"{options.drafter}: its confidence is not calibrated, so nothing is cut by it; expected a drafter that "
            "python -m train calibrate has been run on"
        )

    def ways(evaluator: Callable[..., Any], title: str) -> dict[str, Any]:
        cut = {name: evaluator(who="drafter", cuts=cuts) for name, cuts in (("whole", False), ("cut", True))}
        return compared(cut, opened.tasks, title)

    return opened.greedily_and_sampled(ways)


if __name__ == "__main__":
    raise SystemExit(main())
