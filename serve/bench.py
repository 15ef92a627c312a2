"""python -m serve.bench: the speed of the decoder, part by part and per task.

The last line is one JSON object with

    segment_overhead   steps inside a segment that copies where it can, over their T_verify (copied ones) and
                       T_draft + T_verify, each timed alone in a loop of its own
    plain_overhead     the plain loop's ms/token over a bare one-token forward in a loop of its own
    plain_roofline     the plain loop's ms/token over weight bytes / the read bandwidth, a pass of which is measured in
                       turn with it; read_bandwidth is {median, low, high} over the passes
    verify_cost        {width: ms} of the target's forward over a block, cache updated in place
    draft_cost         {width: ms} of the drafter
    widths             on a few prompts of every task: {fixed: {way: speedup}, chosen: speedup}, means over tasks; a
                       way is a width of the drafter's blocks, or of n-gram drafts, or one of each
    tasks              {name: {tau, speedup, speedup_spread, exact, prompts, width, tokens_per_step}} as in the report,
                       width the one most steps had, speedup_spread its 95 % interval

Batch 1, greedy, float32. Every ratio is of medians taken in turn within this process.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command, say

REPEATS = 9
STEPS = 16  # per repeat
FIXED = (1, 2, 4, 8)
FEW = 2  # prompts of each task for the comparison of widths


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.bench", description="Speed of the decoder.")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--tasks", default="", help="comma-separated, as for python -m serve eval; none: parts alone")
    parser.add_argument("--task-dir", type=Path)
    parser.add_argument("--prompts", type=int, default=20, help="prompts per task (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default %(default)s)")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options)))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import keep_compiled_programs
    from models.prompts import load_tasks
    from serve.load import load_engine, step_cost

    keep_compiled_programs()
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, "float32")
    say("bench: plain, draft and verify steps, alone and in their loops")
    parts = time_parts(engine)
    if not tasks:
        return parts
    say(f"bench: {json.dumps(parts)}")
    lengths = [len(tokenizer.encode_chat(prompt.chat())) for prompts in tasks.values() for prompt in prompts]
    cost = step_cost(engine, artifact, max(lengths) + options.max_new_tokens)
    evaluators = partial(make_evaluator, engine, tokenizer, artifact, cost, max(lengths), options.max_new_tokens)
    widths = compare_widths(evaluators, {name: prompts[:FEW] for name, prompts in tasks.items()})
    say(f"bench: {json.dumps(widths)}")
    return {**parts, "widths": widths, "tasks": per_task(evaluators(None), tasks)}


def make_evaluator(engine: Any, tokenizer: Any, artifact: Any, cost: Any, longest: int, new: int, way: Any):
    from serve.evaluate import Evaluator
    from serve.session import context_capacity

    capacity = context_capacity(longest + new, artifact.config.width)
    known = {"cost": cost, "prior": artifact.acceptance, "way": way, "capacity": capacity}
    return Evaluator(engine, tokenizer, new, **known)


def per_task(evaluator: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The report's numbers, those named above."""
    from serve.evaluate import evaluate
    from serve.report import most_used_width

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


def compare_widths(evaluators: Callable[[Any], Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Mean speedup over tasks of fixed ways and of chosen ones, on the same prompts, one after the other."""
    from serve.choose import Way

    fixed = {str(width): Way("drafter", width) for width in FIXED}
    fixed |= {"ngram 4": Way("ngram", 4), "3 copying 8": Way("drafter", 3, 8)}
    trained = evaluators(None).engine.drafter.config.width
    fixed = {name: way for name, way in fixed.items() if max(way.width, way.copy) <= trained}
    ways = {name: evaluators(way) for name, way in fixed.items()} | {"chosen": evaluators(None)}
    speedups: dict[str, list[float]] = {name: [] for name in ways}
    for task, prompts in tasks.items():
        times = {name: [0.0, 0.0] for name in ways}
        decoders = {name: evaluator.speculative() for name, evaluator in ways.items()}
        for prompt in prompts:
            for question in ways["chosen"].questions(prompt):
                for name, evaluator in ways.items():
                    evaluator.warm(question, decoders[name])
                before = ways["chosen"].answer(question, None)
                fast = {name: evaluator.answer(question, decoders[name]) for name, evaluator in ways.items()}
                after = ways["chosen"].answer(question, None)
                for name, answer in fast.items():
                    times[name][0] += (before.ms_per_token + after.ms_per_token) / 2
                    times[name][1] += answer.ms_per_token
        for name, (plain_ms, fast_ms) in times.items():
            speedups[name].append(plain_ms / fast_ms)
        say(f"bench: {task}: " + ", ".join(f"{name} {values[-1]:.2f}x" for name, values in speedups.items()))
    means = {name: round(float(np.mean(values)), 3) for name, values in speedups.items()}
    return {"chosen": means.pop("chosen"), "fixed": means}


def time_parts(engine: Any, capacity: int = 512, context: int = 200, width: int = 4) -> dict[str, Any]:
    """Loops timed in turn: plain, bare forward, draft alone, verify alone, whole steps."""
    import jax
    import jax.numpy as jnp

    from models import generate
    from models.sampling import keys
    from serve.cost import candidate_widths
    from serve.decoder import Speculation, draft, speculative_segment, start, verify

    target, trained = engine.target, engine.drafter.config.width
    ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (1, context)).astype(np.int32)
    length, zero = np.array([context], np.int32), np.zeros(1, np.int32)
    stop = length + STEPS * width
    state = start(engine, ids, length, stop, zero, capacity=capacity)
    plain = generate.insert(target, generate.empty_rows(target, 1, capacity), zero, ids, length, stop, zero)

    @partial(jax.jit, donate_argnums=1)
    def bare(target, cache):
        def forward(step, carry):
            token, cache = carry
            positions = jnp.full((1, 1), context - 1) + step
            hidden, _, cache = target(token, positions, cache=cache)
            return jnp.argmax(target.logits(hidden), axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, STEPS, forward, (jnp.zeros((1, 1), jnp.int32), cache))

    @partial(jax.jit, static_argnames="width", donate_argnums=1)
    def verifying(engine, state, width):
        def forward(_, carry):
            block, state = carry
            said, _, cache = verify(engine, block, state)
            return jnp.argmax(said, axis=-1).astype(jnp.int32), state.replace(cache=cache)

        return jax.lax.fori_loop(0, STEPS, forward, (jnp.zeros((1, width), jnp.int32), state))

    @partial(jax.jit, static_argnames="width", donate_argnums=1)
    def drafting(engine, state, width):
        def forward(_, state):
            drafts, _ = draft(engine, state, Speculation(width), keys(state.seed, state.length))
            return state.replace(tokens=jax.lax.dynamic_update_slice(state.tokens, drafts[:, -1:], (0, context - 1)))

        return jax.lax.fori_loop(0, STEPS, forward, state)

    def num_steps(name, end):
        if name == "plain":
            return int(end.length[0]) - context
        return int(end.num_steps[0]) if name == "step" else STEPS

    widths = [w for w in candidate_widths(trained) if w in (1, 2, 4, 8, 16, 32, trained)]
    width, copy = min(width, trained), min(2 * width, trained)
    loops: dict[Any, tuple[Callable[[Any], Any], Any]] = {
        "plain": (lambda s: generate.plain_segment(target, s, STEPS), plain),
        "bare": (lambda cache: bare(target, cache), plain.cache),
        "step": (lambda s: speculative_segment(engine, s, STEPS, Speculation(width, copy=copy)), state),
    }
    for w in widths:
        loops["verify", w] = (partial(lambda w, s: verifying(engine, s, w), w), state)
        if w > 1:
            loops["draft", w] = (partial(lambda w, s: drafting(engine, s, w), w), state)
    times: dict[Any, list[float]] = {name: [] for name in loops}
    bandwidths, memory, kinds = [], np.ones(1 << 27, np.float32), np.zeros(1, bool)
    for repeat in range(REPEATS + 1):
        for name, (loop, given) in loops.items():
            fresh = jax.block_until_ready(jax.tree.map(jnp.copy, given))
            began = time.perf_counter()
            end = jax.block_until_ready(loop(fresh))
            taken = (time.perf_counter() - began) * 1e3
            if name == "step":
                kinds = np.asarray(end.copied)[0, : int(end.num_steps[0])]
            times[name] += [taken / max(num_steps(name, end), 1)] if repeat else []
        bandwidths.append(read_bandwidth(memory))
    ms = {name: float(np.median(values)) for name, values in times.items()}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(target) if hasattr(leaf, "nbytes"))
    low, bandwidth, high = np.percentile(bandwidths, [25, 50, 75])
    floor = weights / bandwidth * 1e3
    alone = kinds.mean() * ms["verify", copy] + (1 - kinds.mean()) * (ms.get(("draft", width), 0) + ms["verify", width])
    return {
        "segment_overhead": round(ms["step"] / alone, 3),
        "plain_overhead": round(ms["plain"] / ms["bare"], 3),
        "plain_roofline": round(ms["plain"] / floor, 3),
        "plain_ms": round(ms["plain"], 2),
        "weight_bytes": weights,
        "read_bandwidth_bytes_per_second": {"median": round(bandwidth), "low": round(low), "high": round(high)},
        "verify_cost": {w: round(ms["verify", w], 2) for w in widths},
        "draft_cost": {w: round(ms["draft", w], 2) for w in widths if w > 1},
    }


def read_bandwidth(memory: np.ndarray) -> float:
    """Bytes per second of one pass over `memory`, which is far larger than the caches, by all cores."""
    cores = os.cpu_count() or 1
    parts = np.array_split(memory, cores)
    with ThreadPoolExecutor(cores) as pool:
        began = time.perf_counter()
        list(pool.map(np.max, parts))
        return memory.nbytes / (time.perf_counter() - began)


if __name__ == "__main__":
    raise SystemExit(main())
