"""What decoded answers say: from answers to the numbers of the report, which `serve.report` lists one by one.

Acceptance is of the steps at full width; times are of the batch-1 loops, plain and speculative.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.statistics import REPETITIVE, bootstrap, bootstrap_ratio, outside_share, repetition
from models.tokenizer import Tokenizer
from serve.cost import Cost, expected_tau
from serve.session import Answer

SAMPLES = 2  # answers a task is shown with
POSITION_BIN = 16  # tokens of answer per point of the tau-over-position curve


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One answer: plain, speculative, and the steps it took at full width."""

    task: str
    id: str
    prompt: str
    plain: Answer
    speculative: Answer
    full_width_runs: list[int]
    logit_gap: float | None  # at the first difference; None when equal or sampled, or where no gap explains it

    @property
    def exact(self) -> bool:
        return self.plain.ids == self.speculative.ids


def survival_of(decoded: Sequence[Decoded], width: int) -> list[float]:
    """Share of full-width steps accepting at least j drafts, j = 1..W-1; an answer's last step, cut short, left out."""
    accepted = np.array([run - 1 for answer in decoded for run in answer.full_width_runs[:-1]] or [0])
    return [float((accepted >= slot).mean()) for slot in range(1, width)]


def tau_of(decoded: Sequence[Decoded]) -> float:
    """Tokens committed per verify step at full width."""
    runs = [answer.full_width_runs for answer in decoded]
    return sum(map(sum, runs)) / max(sum(map(len, runs)), 1)


def tau_over_position(decoded: Sequence[Decoded]) -> list[float | None]:
    """tau of the full-width steps that began in each POSITION_BIN tokens of the answer; null where none did."""
    longest = max((sum(answer.full_width_runs) for answer in decoded), default=0)
    tokens, steps = np.zeros(longest // POSITION_BIN + 1), np.zeros(longest // POSITION_BIN + 1)
    for answer in decoded:
        place = 0
        for run in answer.full_width_runs[:-1]:
            tokens[place // POSITION_BIN] += run
            steps[place // POSITION_BIN] += 1
            place += run
    return [float(t / s) if s else None for t, s in zip(tokens, steps, strict=True)]


def summarise(
    decoded: Sequence[Decoded], tokenizer: Tokenizer, *, width: int, greedy: bool, draft_vocab: np.ndarray | None = None
) -> dict[str, Any]:
    """One task's entry of the report. Intervals are 95 % bootstrap over prompts; spreads are quartiles over prompts."""
    survival = survival_of(decoded, width)
    fresh = [a for a in decoded if repetition(a.plain.ids) <= REPETITIVE]
    histogram = np.bincount([run for a in decoded for run in a.full_width_runs], minlength=width + 1)
    fast = [a.speculative for a in decoded]
    steps = [
        ((drafts, width), run)
        for answer in fast
        for drafts, width, run in zip(answer.drafts, answer.widths, answer.runs, strict=True)
    ]
    entry = {
        "prompts": len(decoded),
        "tokens": sum(len(a.speculative.ids) for a in decoded),
        "tau": tau_of(decoded),
        "tau_interval": bootstrap_ratio([(sum(a.full_width_runs), len(a.full_width_runs)) for a in decoded]),
        "acceptance": [
            after / before if before > 0 else None for before, after in zip([1.0, *survival], survival, strict=False)
        ],
        "survival": survival,
        "accepted_lengths": histogram.tolist(),
        "tau_over_position": tau_over_position(decoded),
        "prefill_ms": _spread([a.plain.prefill_ms for a in decoded]),
        "plain_ms_per_token": _spread([a.plain.ms_per_token for a in decoded]),
        "speculative_ms_per_token": _spread([a.speculative.ms_per_token for a in decoded]),
        "tokens_per_step": sum(len(a.speculative.ids) for a in decoded) / len(steps),
        "ways": _ways(steps),
        "speedup": speedup_of(decoded),
        "speedup_interval": bootstrap([_times(a) for a in decoded], _speedup),
        "exact": sum(a.exact for a in decoded) if greedy else None,
        "mismatches": [mismatch(a) for a in decoded if not a.exact and greedy],
        "repetition_rate": 1 - len(fresh) / len(decoded),
        "tau_without_repetition": tau_of(fresh) if fresh else None,
        "samples": [
            {
                "prompt": a.prompt,
                "output": tokenizer.decode(a.speculative.ids),
                "pieces": pieces(tokenizer, a.speculative),
                "runs": a.speculative.runs,
            }
            for a in decoded[:SAMPLES]
        ],
    }
    if draft_vocab is not None:
        entry["outside_draft_vocabulary"] = outside_share([a.plain.ids for a in decoded], draft_vocab)
    return entry


def mismatch(answer: Decoded) -> dict[str, Any]:
    plain, other = answer.plain.ids, answer.speculative.ids
    return {"id": answer.id, "position": num_equal(plain, other), "logit_gap": answer.logit_gap}


def num_equal(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many of their first items are equal."""
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), shorter)


def _ways(steps: Sequence[tuple[tuple[str, int], int]]) -> list[dict[str, Any]]:
    """How the steps were drafted and what they committed, most frequent first."""
    runs = {way: [run for other, run in steps if other == way] for way in {way for way, _ in steps}}
    return [
        {
            "drafts": "none" if width == 1 else drafts,
            "width": width,
            "share": len(runs[drafts, width]) / len(steps),
            "tokens_per_step": float(np.mean(runs[drafts, width])),
        }
        for drafts, width in sorted(runs, key=lambda way: (-len(runs[way]), way))
    ]


def pieces(tokenizer: Tokenizer, answer: Answer) -> list[str]:
    """The answer's text, one piece a step; a character that two steps share is the later one's."""
    whole, out, place, shown = tokenizer.decode(answer.ids), [], 0, 0
    for step, run in enumerate(answer.runs, start=1):
        place += run
        known = num_equal(tokenizer.decode(answer.ids[:place]), whole)
        end = len(whole) if step == len(answer.runs) else max(shown, known)
        out.append(whole[shown:end])
        shown = end
    return out


def speedup_of(decoded: Sequence[Decoded]) -> float:
    """Plain over speculative time per token, each all milliseconds of this run over all its tokens."""
    return float(_speedup(np.sum([_times(a) for a in decoded], axis=0)))


def _times(answer: Decoded) -> tuple[float, int, float, int]:
    plain, fast = answer.plain, answer.speculative
    return plain.decode_ms, len(plain.ids), fast.decode_ms, len(fast.ids)


def _speedup(sums: np.ndarray) -> Any:
    """From sums of `_times`, [4] or [4, draws]."""
    plain_ms, plain_tokens, fast_ms, fast_tokens = sums
    return (plain_ms / plain_tokens) / (fast_ms / fast_tokens)


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def describe_cost(cost: Cost, survival: Sequence[float]) -> dict[str, Any]:
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


def average(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over tasks, as published tables have them; counts are sums."""
    mean = {
        name: float(np.mean([task[name] for task in tasks.values()])) for name in ("tau", "tokens_per_step", "speedup")
    }
    exact = [task["exact"] for task in tasks.values()]
    prompts = sum(task["prompts"] for task in tasks.values())
    return mean | {"exact": None if None in exact else sum(exact), "prompts": prompts}
