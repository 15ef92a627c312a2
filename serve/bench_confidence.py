"""python -m serve.bench_confidence: what is gained by verifying less of a block that its drafter is unsure of.

Two tables, and as the last line one JSON object with, greedily, what `serve.bench_trees` says of the ways "whole" and
"cut", and under `sampled` the same at temperature 1, where no answer is expected to equal another. Batch 1, the drafter
alone without copying; both ways choose while decoding: "whole" among blocks that are verified whole, "cut" also one of
twice the width that would pay best, which may end at that width or at its anchor.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from configs.console import command
from configs.errors import UserError
from serve.bench import parser_of


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_confidence", "Blocks cut by confidence against whole ones.", prompts=4)
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import describe_device, drop_programs, keep_compiled_programs, share_one_heap
    from models.sampling import GREEDY, Sampling
    from models.verify import Speculation
    from pipelines.prompt_files import load_tasks
    from serve.bench_trees import compared
    from serve.evaluate import Evaluator, needed_context
    from serve.load import load_engine, step_cost
    from serve.session import context_capacity

    share_one_heap()
    keep_compiled_programs()
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, options.dtype)
    if getattr(engine.drafter, "temperature", None) is None:
        raise UserError(
            f"{options.drafter}: its confidence is not calibrated, so nothing is cut by it; expected a drafter that "
            "python -m train calibrate has been run on"
        )
    tokens = needed_context(tasks, engine.target, tokenizer, options.max_new_tokens)
    known = {"prior": artifact.acceptance, "capacity": context_capacity(tokens, artifact.config.width)}
    found = []
    for sampling in (GREEDY, Sampling(temperature=1.0)):
        speculation = Speculation(sampling)
        known |= {"cost": step_cost(engine, artifact, tokens, speculation), "speculation": speculation}
        drop_programs()
        ways = {
            name: Evaluator(engine, tokenizer, options.max_new_tokens, who="drafter", cuts=cuts, **known)
            for name, cuts in (("whole", False), ("cut", True))
        }
        found.append(compared(ways, tasks, "greedy" if sampling.greedy else "temperature 1"))
    greedy, sampled = found
    return {"device": describe_device(), "dtype": options.dtype, **greedy, "sampled": sampled}


if __name__ == "__main__":
    raise SystemExit(main())
