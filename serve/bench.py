"""python -m serve.bench: the speed of the decoder, part by part and per task.

The last line is one JSON object with

    segment_overhead   steps inside a segment that copies where it can, over their T_verify (copied ones) and
                       T_draft + T_verify, each timed alone in a loop of its own
    plain_overhead     the plain loop's ms/token over a bare one-token forward in a loop of its own
    plain_over_matmuls {capacity: ratio}: the plain loop's ms/token over those of its matmuls alone, one token, with so
                       many positions in the cache and a quarter of them filled
    verify_over_matmuls {width: ratio}: T_verify over the matmuls of as many tokens alone
    plain_roofline     the plain loop's ms/token over weight bytes / the read bandwidth, a pass of which is measured in
                       turn with it; read_bandwidth is {median, low, high} over the passes
    verify_cost        {width: ms} of the target's forward over a block, cache updated in place
    draft_cost         {width: ms} of the drafter
    widths             on a few prompts of every task: {fixed: {way: speedup}, chosen: speedup}, means over tasks; a
                       way is a width of the drafter's blocks, or of n-gram drafts, or one of each
    tasks              {name: {tau, speedup, speedup_spread, exact, prompts, width, tokens_per_step}} as in the report,
                       width the one most steps had, speedup_spread its 95 % interval
    llama_cpp          where xllamacpp is installed: {f32_ms_per_token, file_ms_per_token, plain_ms_per_token, prompts,
                       equal_outputs} on a few prompts of every task, in turn (`serve.bench_llama_cpp`); null elsewhere

Batch 1, greedy. Every ratio is of medians taken in turn within this process.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command, say

FIXED = (1, 2, 4, 8)
HALVES = {"greedy": "greedy", "sampled": "temperature 1"}  # of a bench -> its table's title
FEW = 2  # prompts of each task for the comparisons of widths and with llama.cpp


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench", "Speed of the decoder.", prompts=20, tasks="")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options)))
    return 0


def parser_of(
    name: str,
    text: str,
    *,
    prompts: int,
    new: int = 128,
    tasks: str | None = None,
    typed: bool = True,
    halves: bool = False,
) -> argparse.ArgumentParser:
    """The options of the benches that decode tasks, by the names that python -m serve eval has for them; `tasks` are
    those that need not be named, --dtype is there where it is `typed`, --only where it measures `halves`: greedily and
    sampled."""
    parser = argparse.ArgumentParser(prog=f"python -m serve.{name}", description=text)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument(
        "--tasks", required=tasks is None, default=tasks, help="comma-separated, as for python -m serve eval"
    )
    parser.add_argument("--task-dir", type=Path)
    parser.add_argument("--prompts", type=int, default=prompts, help="of each task (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=new, help="(default %(default)s)")
    if halves:
        parser.add_argument("--only", choices=list(HALVES), help="greedy decoding or at temperature 1 (default both)")
    if typed:
        parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default %(default)s)")
    return parser


class Opened:
    """The tasks, target and drafter that a bench's options name, and the `tokens` that the longest answer fills."""

    def __init__(self, options: argparse.Namespace):
        from configs.device import keep_compiled_programs, share_one_heap
        from pipelines.prompt_files import load_tasks
        from serve.evaluate import needed_context
        from serve.load import load_engine

        share_one_heap()
        keep_compiled_programs()
        self.options = options
        self.tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
        self.engine, self.tokenizer, self.artifact = load_engine(options.target, options.drafter, options.dtype)
        self.tokens = needed_context(self.tasks, self.engine.target, self.tokenizer, options.max_new_tokens)

    def evaluator(self, *, widest: int | None = None, **how: Any) -> Any:
        """An `Evaluator` of these that decodes as `how` says, with room for blocks of `widest` (the drafter's)."""
        from serve.evaluate import Evaluator
        from serve.session import context_capacity

        capacity = context_capacity(self.tokens, widest or self.artifact.config.width)
        given = {"prior": self.artifact.acceptance, "capacity": capacity, **how}
        return Evaluator(self.engine, self.tokenizer, self.options.max_new_tokens, **given)

    def greedily_and_sampled(self, measured: Callable[[Callable[..., Any], str], dict[str, Any]]) -> dict[str, Any]:
        """What `measured` says of greedy decoding, and under "sampled" of decoding at temperature 1, or of the one that
        `--only` names; it is given a function that makes evaluators which choose by what steps cost, and a title."""
        from configs.device import describe_device, drop_programs
        from models.sampling import GREEDY, Sampling
        from models.verify import Speculation
        from serve.load import step_cost

        samplings = {"greedy": GREEDY, "sampled": Sampling(temperature=1.0)}
        found = {}
        for half in [self.options.only] if self.options.only else samplings:
            speculation = Speculation(samplings[half])
            cost = step_cost(self.engine, self.artifact, self.tokens, speculation)
            drop_programs()
            found[half] = measured(partial(self.evaluator, cost=cost, speculation=speculation), HALVES[half])
        named = {name: str(getattr(self.options, name)) for name in ("dtype", "drafter")}
        return {"device": describe_device(), **named, **found.pop("greedy", {}), **found}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import keep_compiled_programs
    from models.drafters import Draft
    from pipelines.prompt_files import encode_prompt, load_tasks
    from serve.bench_parts import time_over_matmuls, time_parts
    from serve.load import load_engine, step_cost

    keep_compiled_programs()
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, options.dtype)
    say("bench: plain, draft and verify steps, alone and in their loops")
    parts = time_parts(engine) | time_over_matmuls(engine)
    if not tasks:
        return parts
    say(f"bench: {json.dumps(parts)}")
    encoded = {name: [encode_prompt(tokenizer, prompt) for prompt in prompts] for name, prompts in tasks.items()}
    longest = max(len(ids) for prompts in encoded.values() for ids in prompts)
    cost = step_cost(engine, artifact, longest + options.max_new_tokens)
    evaluators = partial(make_evaluator, engine, tokenizer, artifact, cost, longest, options.max_new_tokens)
    fixed = {str(width): Draft("drafter", width) for width in FIXED}
    fixed |= {"ngram 4": Draft("ngram", 4), "3 copying 8": Draft("drafter", 3, 8)}
    ways = {name: evaluators(draft) for name, draft in fixed.items() if draft.widest <= engine.drafter.width}
    widths = compare_ways({**ways, "chosen": evaluators(None)}, tasks)
    say(f"bench: {json.dumps(widths)}")
    few = [ids for prompts in encoded.values() for ids in prompts[:FEW]]
    beside = beside_llama_cpp(options.target, few, evaluators(None))
    return {**parts, "widths": widths, "llama_cpp": beside, "tasks": per_task(evaluators(None), tasks)}


def beside_llama_cpp(target: str, prompts: Sequence[Sequence[int]], evaluator: Any) -> dict[str, Any] | None:
    """Our plain loop and llama.cpp on the target's GGUF file in turn; None without such a file or llama.cpp."""
    from serve.bench_llama_cpp import llama_cpp_ms, target_file

    file = target_file(target)
    if file is None:
        return None

    def plain(ids: Sequence[int]) -> tuple[list[int], float]:
        (answer,) = evaluator.plain.generate([ids], max_new_tokens=evaluator.max_new_tokens)
        return answer.ids, answer.ms_per_token

    return llama_cpp_ms(file, prompts, plain)


def make_evaluator(engine: Any, tokenizer: Any, artifact: Any, cost: Any, longest: int, new: int, draft: Any):
    from serve.evaluate import Evaluator
    from serve.session import context_capacity

    capacity = context_capacity(longest + new, artifact.config.width)
    known = {"cost": cost, "prior": artifact.acceptance, "draft": draft, "capacity": capacity}
    return Evaluator(engine, tokenizer, new, **known)


def per_task(evaluator: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The report's numbers, those named above."""
    from serve.evaluate import evaluate
    from serve.rendering import most_used_width

    measured = evaluate(evaluator, dict(tasks))["tasks"]
    return {
        name: {
            "tau": round(task["tau"], 3),
            "speedup": round(task["speedup"], 3),
            "speedup_spread": [round(value, 3) for value in task["speedup_interval"]],
            "exact": task["exact"],
            "prompts": task["prompts"],
            "width": most_used_width({name: task}),
            "tokens_per_step": round(task["tokens_per_step"], 3),
        }
        for name, task in measured.items()
    }


def compare_ways(ways: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Mean speedup over tasks of fixed ways and of chosen ones, on FEW prompts of each."""
    speedups: dict[str, list[float]] = {name: [] for name in ways}
    for task, prompts in tasks.items():
        for name, answers in in_turn(ways, prompts[:FEW]).items():
            plain_ms, fast_ms = np.sum([(plain.decode_ms, fast.decode_ms) for _, plain, fast in answers], axis=0)
            speedups[name].append(plain_ms / fast_ms)
        say(f"bench: {task}: " + ", ".join(f"{name} {values[-1]:.2f}x" for name, values in speedups.items()))
    means = {name: round(float(np.mean(values)), 3) for name, values in speedups.items()}
    return {"chosen": means.pop("chosen"), "fixed": means}


def in_turn(ways: Mapping[str, Any], prompts: Sequence[Any]) -> dict[str, list[tuple[Any, Any, Any]]]:
    """Questions, their plain answers and every way's own, one after the other.

    A plain answer's time is the mean of two, one written before the ways' answers and one after.
    """
    answers: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in ways}
    decoders = {name: evaluator.speculative() for name, evaluator in ways.items()}
    first = next(iter(ways.values()))
    for prompt in prompts:
        for question in first.questions(prompt):
            for name, evaluator in ways.items():
                evaluator.warm(question, decoders[name])
            before = first.answer(question, None)
            fast = {name: evaluator.answer(question, decoders[name]) for name, evaluator in ways.items()}
            after = first.answer(question, None)
            plain = dataclasses.replace(before, decode_ms=(before.decode_ms + after.decode_ms) / 2)
            for name, answer in fast.items():
                answers[name].append((question, plain, answer))
    return answers


if __name__ == "__main__":
    raise SystemExit(main())
