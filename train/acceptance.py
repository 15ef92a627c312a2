"""Held-out acceptance: what the drafter would gain on responses it was not trained on.

Not token accuracy but the greedy walk a decoder takes: draft at the anchor, accept the leading slots that equal the
response, commit them with the bonus token, move on. The response is the target's own greedy text, so "equals the
response" is "the target would have said so", and the walk needs no target. (With sampled responses it is the
acceptance of that one sample.) In: a trainee and packed held-out rows, or an exported drafter and answers. Out:
`Acceptance`.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from configs.console import progress
from models.decode import Engine, replayed
from models.sharding import on_host, same_rows, whole_rows
from models.statistics import bootstrap_ratio, wilson
from pipelines.batches import RowSource
from pipelines.packing import starts
from pipelines.records import Responses
from train.calibration import Calibration, calibration
from train.objectives import Objective

ROWS = 4
ANCHORS = 32  # per row and call
WALKED = 16  # answers walked together
ROUND = 128  # capacities are multiples of this


@dataclasses.dataclass(frozen=True)
class Walk:
    """One response walked: the task, and the tokens each step committed."""

    task: str
    runs: list[int]


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Walks over all held-out responses, at block width `width`."""

    width: int
    walks: list[Walk]
    confidence: Calibration | None = None  # of the steps' drafts

    @property
    def tau(self) -> float:
        """Mean over tasks of tokens per step."""
        return float(np.mean([task["tau"] for task in self.tasks().values()]))

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Per task: tau with its 95 % interval over responses, responses, tokens."""
        grouped: dict[str, list[Walk]] = defaultdict(list)
        for walk in self.walks:
            grouped[walk.task].append(walk)
        return {
            task: {
                "tau": sum(sum(walk.runs) for walk in walks) / sum(len(walk.runs) for walk in walks),
                "tau_interval": bootstrap_ratio([(sum(walk.runs), len(walk.runs)) for walk in walks]),
                "responses": len(walks),
                "tokens": sum(sum(walk.runs) for walk in walks),
            }
            for task, walks in sorted(grouped.items())
        }

    @property
    def whole(self) -> float:
        """Share of the blocks accepted whole, of those that end before their response does; 0 where none does."""
        taken = [
            run == self.width
            for walk in self.walks
            for run, left in zip(walk.runs, sum(walk.runs) - np.cumsum([0, *walk.runs[:-1]]), strict=True)
            if left >= self.width
        ]
        return float(np.mean(taken)) if taken else 0.0

    def slots(self) -> list[dict[str, Any]]:
        """Conditional acceptance of slots 1..W-1: share of the steps that got there, with its 95 % interval.

        The last step of a response is left out: its end, not the drafter, may have cut it short.
        """
        accepted = np.array([run - 1 for walk in self.walks for run in walk.runs[:-1]], np.int64)
        out = []
        for slot in range(1, self.width):
            reached, passed = int((accepted >= slot - 1).sum()), int((accepted >= slot).sum())
            share = passed / reached if reached else None
            out.append({"slot": slot, "acceptance": share, "interval": wilson(passed, reached), "reached": reached})
        return out

    def scalars(self) -> dict[str, float]:
        """For metrics.jsonl and TensorBoard: tau, tau per task, the first slots' acceptance, blocks accepted whole."""
        out = {"tau": self.tau, f"whole/w{self.width}": self.whole}
        out |= {f"tau/{name}": task["tau"] for name, task in self.tasks().items()}
        first = [slot for slot in self.slots()[:8] if slot["acceptance"] is not None]
        return out | {f"acceptance/slot{slot['slot']}": slot["acceptance"] for slot in first}

    def to_dict(self) -> dict[str, Any]:
        out = {"width": self.width, "tau": self.tau, "tasks": self.tasks(), "slots": self.slots()}
        return out if self.confidence is None else out | {"confidence": dataclasses.asdict(self.confidence)}


def heldout_acceptance(
    objective: Objective, trainee: Any, source: RowSource, width: int, head_chunk: int
) -> Acceptance:
    """The greedy walk over every held-out response, in blocks of `width`."""
    hits_at, responses = partial(objective.leading_hits, width=width, head_chunk=head_chunk), source.responses
    walks: list[Walk] = []
    chances, right = [], []
    for numbers, batch, startable in _batches(source, whole_rows(ROWS, trainee.mesh)):
        rows = same_rows(batch, trainee.mesh)
        context = objective.read_rows(trainee, rows)
        rows.pop("features", None)
        accepted, sure = _everywhere(startable, partial(hits_at, trainee, rows, context), trainee.mesh)
        for row, hits, given in zip(numbers, accepted, sure, strict=False):
            held = source.packing[row]
            for number, begin in zip(held.tolist(), starts(responses.lengths[held]), strict=True):
                response = responses[number]
                first = begin + len(response.prompt_ids) - 1
                last = begin + response.length - 1
                walks.append(Walk(response.task, runs := walk(hits, first, last)))
                for place, run in zip(first + np.cumsum([0, *runs]), runs[:-1], strict=False):
                    known = min(run, width - 1)  # drafts accepted, and the one after them
                    chances.append(given[place, :known])
                    right.append(np.arange(known) < run - 1)
    fitted = calibration(np.concatenate(chances), np.concatenate(right)) if chances else None
    return Acceptance(width, walks, fitted)


def task_acceptance(engine: Engine, answers: Responses) -> Acceptance:
    """The greedy steps of an exported drafter over the target's own answers, in their order, at its full width.

    These are the steps of decoding (`models.decode.replay`), taken by the decoder's own drafting.
    """
    width, walks = engine.drafter.width, {}
    order, rows = np.argsort(answers.lengths, kind="stable").tolist(), whole_rows(WALKED, engine.target.mesh)
    capacity = -(-(int(answers.lengths.max()) + width) // ROUND) * ROUND
    with progress("tasks: walked", len(answers), "answers") as bar:
        for start in range(0, len(order), rows):
            part = [answers[number] for number in order[start : start + rows]]
            texts = [(answer.ids, len(answer.prompt_ids)) for answer in part]
            runs = replayed(engine, texts, rows=rows, capacity=capacity)
            for number, answer, taken in zip(order[start:], part, runs, strict=False):
                walks[number] = Walk(answer.task, taken)
            bar.advance(len(part))
    return Acceptance(width, [walks[number] for number in range(len(answers))])


def walk(accepted: Sequence[int] | np.ndarray, first: int, last: int) -> list[int]:
    """Tokens committed by each step from the anchor at `first` until the token at `last` is written.

    `accepted[p]` is how many drafts a block anchored at p gets right. Example: accepted 2 . . 0 1, first 0, last 5
    -> 3 (to p=3), 1 (to p=4), 1 (to p=5: the answer's end cuts the bonus token).
    """
    place, runs = first, []
    while place < last:
        run = min(int(accepted[place]) + 1, last - place)
        runs.append(run)
        place += run
    return runs


def _batches(source: RowSource, size: int) -> Iterator[tuple[list[int], dict[str, np.ndarray], np.ndarray]]:
    """(row numbers, stacked rows, startable [B, S]) with the last batch filled up by repeating its rows."""
    for start in range(0, len(source), size):
        numbers = list(range(start, min(start + size, len(source))))
        rows = [dict(source[numbers[i % len(numbers)]]) for i in range(size)]
        startable = np.stack([row.pop("startable") for row in rows])
        yield numbers, {name: np.stack([row[name] for row in rows]) for name in rows[0]}, startable


def _everywhere(
    startable: np.ndarray, hits_at: Callable[[Any], tuple[Array, Array]], mesh: Mesh | None
) -> tuple[np.ndarray, np.ndarray]:
    """[B, S]: leading correct drafts of a block anchored at each startable position, 0 elsewhere; [B, S, W-1]: the
    chances of its slots."""
    out, chances = np.zeros(startable.shape, np.int32), None
    places = [np.flatnonzero(row) for row in startable]
    for start in range(0, max(map(len, places)), ANCHORS):
        anchors = np.full((len(places), ANCHORS), -1, np.int32)
        for row, place in enumerate(places):
            part = place[start : start + ANCHORS]
            anchors[row, : len(part)] = part
        hits, sure = map(on_host, hits_at(same_rows(anchors, mesh)))
        chances = np.zeros((*startable.shape, sure.shape[-1]), np.float32) if chances is None else chances
        for row in range(len(places)):
            used = anchors[row] >= 0
            out[row, anchors[row][used]] = hits[row][used]
            chances[row, anchors[row][used]] = sure[row][used]
    assert chances is not None  # a batch holds a response, and that an anchor
    return out, chances
