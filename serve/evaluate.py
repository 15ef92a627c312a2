"""Evaluation: decode every prompt of some tasks plainly and speculatively in one alternating run, and compare.

In: a target, a drafter artifact, tasks. Out: the report dictionary of `serve.report`. Batch 1, greedy. Both loops run
on device from a prefilled prompt to their last token; prefill is not in the times. Every output is compared with the
plain one; where they differ, the target's logit gap at the first difference tells a near-tie from a fault.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.console import progress, say
from models import generate
from models.masks import packed_mask
from models.prompts import Prompt
from models.statistics import bootstrap_ratio
from models.target import Target
from models.tokenizer import Tokenizer
from serve.cost import Cost, best_width, candidate_widths, expected_tau, measure_cost
from serve.decoder import DecodeState, Engine, speculative_segment, start

UNBOUNDED = 1 << 20  # steps; the row's own stop comes first


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One answer, decoded twice."""

    task: str
    id: str
    prompt: str
    prompt_ids: list[int]
    plain_ids: list[int]
    speculative_ids: list[int]
    runs: list[int]  # tokens committed by each step
    plain_ms: float  # whole answer, prefill apart
    speculative_ms: float
    logit_gap: float | None  # at the first difference, None when equal

    @property
    def exact(self) -> bool:
        return self.plain_ids == self.speculative_ids


class Evaluator:
    """Decodes conversations with one engine; compiled once per bucket of context capacity."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, max_new_tokens: int):
        self.engine, self.tokenizer, self.max_new_tokens = engine, tokenizer, max_new_tokens
        self._warm: set[tuple[int, int, int]] = set()

    def conversation(self, prompt: Prompt, width: int) -> list[Decoded]:
        """Every answer of a conversation: one after each user turn that has none yet."""
        said, out = [], []
        turns = prompt.chat()
        for index, turn in enumerate(turns):
            said.append(turn)
            following = turns[index + 1]["role"] if index + 1 < len(turns) else "user"
            if turn["role"] == "user" and following == "user":
                decoded = self.decode(prompt, said, width)
                said.append(
                    {
                        "role": "assistant",
                        "content": self.tokenizer.decode(decoded.plain_ids, skip_special=True),
                    }
                )
                out.append(decoded)
        return out

    def decode(self, prompt: Prompt, messages: Sequence[dict[str, str]], width: int) -> Decoded:
        """One answer, plain and speculative; which goes first alternates by the prompt's length."""
        ids = self.tokenizer.encode_chat(messages)
        bucket, capacity = self._shapes(prompt, ids, width)
        if (bucket, capacity, width) not in self._warm:
            self._plain(ids, bucket, capacity)
            self._speculative(ids, bucket, capacity, width)
            self._warm.add((bucket, capacity, width))
        if len(ids) % 2:
            plain, plain_ms = self._plain(ids, bucket, capacity)
            state, speculative_ms = self._speculative(ids, bucket, capacity, width)
        else:
            state, speculative_ms = self._speculative(ids, bucket, capacity, width)
            plain, plain_ms = self._plain(ids, bucket, capacity)
        speculative = _written(state, len(ids))
        return Decoded(
            prompt.task,
            prompt.id,
            messages[-1]["content"],
            ids,
            plain,
            speculative,
            np.asarray(state.runs)[0, : int(state.num_steps[0])].tolist(),
            plain_ms,
            speculative_ms,
            None if plain == speculative else logit_gap(self.engine.target, ids, plain, speculative),
        )

    def states(self, prompt: Prompt, width: int) -> tuple[DecodeState, generate.PlainState]:
        """Freshly prefilled states, for timing steps."""
        ids = self.tokenizer.encode_chat(prompt.chat())
        bucket, capacity = self._shapes(prompt, ids, width)
        return self._start(ids, bucket, capacity), self._insert(ids, bucket, capacity)

    def _shapes(self, prompt: Prompt, ids: Sequence[int], width: int) -> tuple[int, int]:
        """Prompt bucket and context capacity, powers of two where the target's context allows."""
        limit = self.engine.target.config.max_positions
        if len(ids) + self.max_new_tokens > limit:
            raise ValueError(
                f"prompt {prompt.task}/{prompt.id}: {len(ids)} tokens + --max-new-tokens {self.max_new_tokens} exceed "
                f"the context of {self.engine.target.config.name} ({limit}); lower --max-new-tokens or drop the prompt"
            )
        bucket = max(64, 1 << (len(ids) - 1).bit_length())
        return bucket, max(256, 1 << (len(ids) + self.max_new_tokens + width - 1).bit_length())

    def _padded(self, ids: Sequence[int], bucket: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = np.zeros((1, bucket), np.int32)
        row[0, : len(ids)] = ids
        length = np.array([len(ids)], np.int32)
        return row, length, length + self.max_new_tokens

    def _start(self, ids: Sequence[int], bucket: int, capacity: int) -> DecodeState:
        return start(self.engine, *self._padded(ids, bucket), capacity=capacity)

    def _insert(self, ids: Sequence[int], bucket: int, capacity: int) -> generate.PlainState:
        row = np.zeros(1, np.int32)
        empty = generate.empty_rows(self.engine.target, 1, capacity)
        return generate.insert(self.engine.target, empty, row, *self._padded(ids, bucket), row)

    def _plain(self, ids: Sequence[int], bucket: int, capacity: int) -> tuple[list[int], float]:
        state = jax.block_until_ready(self._insert(ids, bucket, capacity))
        began = time.perf_counter()
        state = jax.block_until_ready(generate.plain_segment(self.engine.target, state, UNBOUNDED))
        return _written(state, len(ids)), (time.perf_counter() - began) * 1e3

    def _speculative(self, ids: Sequence[int], bucket: int, capacity: int, width: int) -> tuple[DecodeState, float]:
        state = jax.block_until_ready(self._start(ids, bucket, capacity))
        began = time.perf_counter()
        state = jax.block_until_ready(speculative_segment(self.engine, state, UNBOUNDED, width))
        return state, (time.perf_counter() - began) * 1e3


def _written(state: DecodeState | generate.PlainState, prompt_length: int) -> list[int]:
    return np.asarray(state.tokens)[0, prompt_length : int(state.length[0])].tolist()


def logit_gap(target: Target, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]) -> float:
    """Target logit of the plain token minus that of the other at the first position where they differ.

    Infinite when one answer is a proper prefix of the other, which no near-tie explains.
    """
    same = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if same is None:
        return float("inf")
    ids = [*prompt, *plain[:same]]
    size = 1 << (len(ids) - 1).bit_length()
    row = np.zeros((1, size), np.int32)
    row[0, : len(ids)] = ids
    values = np.asarray(_last_logits(target, row, np.array([len(ids) - 1])))[0]
    return float(values[plain[same]] - values[other[same]])


@jax.jit
def _last_logits(target: Target, tokens: jax.Array, last: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _, _ = target(tokens, positions, packed_mask(jnp.zeros_like(tokens)))
    return target.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def evaluate(
    evaluator: Evaluator, tasks: dict[str, list[Prompt]], width: int | None, *, sample: int = 2
) -> dict[str, Any]:
    """The measured part of the report: width, cost, tasks, average.

    Without a width, one prompt a task is decoded at the drafter's own width to learn how slots survive, and the width
    with the highest expected speedup is taken for everything that is reported.
    """
    trained = evaluator.engine.drafter.config.width
    first = [prompts[0] for prompts in tasks.values()]
    with progress("eval: one prompt a task at full width", len(first), "prompts") as bar:
        probe = []
        for prompt in first:
            probe += evaluator.conversation(prompt, trained)
            bar.advance(1)
    survival = survival_of(probe, trained)
    say("eval: timing draft and verify")
    widths = [width] if width else candidate_widths(trained)
    cost = measure_cost(evaluator.engine, *evaluator.states(first[0], trained), widths)
    chosen = width or best_width(cost, survival)
    say(f"eval: decoding at width {chosen} ({'as asked' if width else 'the fastest expected'}), trained at {trained}")
    results: dict[str, list[Decoded]] = {}
    total = sum(map(len, tasks.values()))
    with progress("eval: plain and speculative", total, "prompts") as bar:
        for name, prompts in tasks.items():
            results[name] = []
            for prompt in prompts:
                results[name] += evaluator.conversation(prompt, chosen)
                bar.advance(1, f"{name}: tau {tau_of(results[name]):.2f}")
    summaries = {name: summarise(evaluator, decoded, chosen, sample) for name, decoded in results.items()}
    return {
        "width": chosen,
        "full_width_tau": tau_of(probe),
        "cost": _describe_cost(cost, survival),
        "tasks": summaries,
        "average": _average(summaries),
    }


def survival_of(decoded: Sequence[Decoded], width: int) -> list[float]:
    """Share of steps that accepted at least j drafts, j = 1..W-1; the last step of an answer, cut short, left out."""
    accepted = np.array([run - 1 for answer in decoded for run in answer.runs[:-1]] or [0])
    return [float((accepted >= slot).mean()) for slot in range(1, width)]


def tau_of(decoded: Sequence[Decoded]) -> float:
    """Tokens committed per verify step."""
    return sum(len(answer.speculative_ids) for answer in decoded) / max(sum(len(answer.runs) for answer in decoded), 1)


def summarise(evaluator: Evaluator, decoded: Sequence[Decoded], width: int, sample: int) -> dict[str, Any]:
    """One task's entry of the report. Intervals are 95 % bootstrap over prompts; spreads are quartiles over prompts."""
    survival = survival_of(decoded, width)
    plain = np.array([answer.plain_ms / len(answer.plain_ids) for answer in decoded])
    speculative = np.array([answer.speculative_ms / len(answer.speculative_ids) for answer in decoded])
    fresh = [a for a in decoded if generate.repetition(a.plain_ids) <= generate.REPETITIVE]
    differing = [answer for answer in decoded if not answer.exact]
    histogram = np.bincount([run for answer in decoded for run in answer.runs], minlength=width + 1)
    return {
        "prompts": len(decoded),
        "tokens": sum(len(answer.speculative_ids) for answer in decoded),
        "tau": tau_of(decoded),
        "tau_interval": bootstrap_ratio([(len(a.speculative_ids), len(a.runs)) for a in decoded]),
        "acceptance": [
            after / before if before > 0 else None for before, after in zip([1.0, *survival], survival, strict=False)
        ],
        "survival": survival,
        "accepted_lengths": histogram.tolist(),
        "plain_ms_per_token": _spread(plain),
        "speculative_ms_per_token": _spread(speculative),
        "speedup": speedup_of(decoded),
        "speedup_interval": bootstrap_ratio(
            [(a.plain_ms / len(a.plain_ids), a.speculative_ms / len(a.speculative_ids)) for a in decoded]
        ),
        "exact": len(decoded) - len(differing),
        "mismatches": [
            {
                "id": a.id,
                "position": next(
                    (i for i, (x, y) in enumerate(zip(a.plain_ids, a.speculative_ids, strict=False)) if x != y),
                    min(len(a.plain_ids), len(a.speculative_ids)),
                ),
                "logit_gap": a.logit_gap,
            }
            for a in differing
        ],
        "repetition_rate": 1 - len(fresh) / len(decoded),
        "tau_without_repetition": tau_of(fresh) if fresh else None,
        "samples": [
            {
                "prompt": answer.prompt,
                "output": evaluator.tokenizer.decode(answer.speculative_ids),
                "pieces": _pieces(evaluator.tokenizer, answer),
                "runs": answer.runs,
            }
            for answer in decoded[:sample]
        ],
    }


def _pieces(tokenizer: Tokenizer, answer: Decoded) -> list[str]:
    """The answer's text, one piece a step."""
    pieces, place = [], 0
    for run in answer.runs:
        pieces.append(tokenizer.decode(answer.speculative_ids[place : place + run]))
        place += run
    return pieces


def speedup_of(decoded: Sequence[Decoded]) -> float:
    """Plain over speculative time per token, totals over all prompts of this run."""
    plain = sum(a.plain_ms / len(a.plain_ids) for a in decoded)
    return plain / sum(a.speculative_ms / len(a.speculative_ids) for a in decoded)


def _spread(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _describe_cost(cost: Cost, survival: Sequence[float]) -> dict[str, Any]:
    widths = [
        {
            "width": width,
            "draft_ms": cost.draft_ms[width],
            "verify_ms": cost.verify_ms[width],
            "expected_tau": expected_tau(width, survival),
            "expected_speedup": cost.expected_speedup(width, survival),
        }
        for width in cost.verify_ms
    ]
    return {"plain_ms": cost.plain_ms, "widths": widths}


def _average(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over tasks, as published tables have them; counts are sums."""
    return {
        "tau": float(np.mean([task["tau"] for task in tasks.values()])),
        "speedup": float(np.mean([task["speedup"] for task in tasks.values()])),
        "exact": sum(task["exact"] for task in tasks.values()),
        "prompts": sum(task["prompts"] for task in tasks.values()),
    }
