"""Decoding from the host's side: prompts in, answers out, segment by segment.

A segment runs SEGMENT steps on the device; between two the host streams what was written, looks for stop strings and
lets a chooser pick what to draft next. The plain loop runs through the same code, so both stop at the same token.

    Decoder(engine, tokenizer, Draft("drafter", 16)).generate(["Why is the sky blue?"], max_new_tokens=128)
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from configs.device import return_unused_heap
from configs.errors import UserError
from models.attention import whole
from models.decode import DecodeState, Engine, prefill, segment
from models.drafters import SINGLE, Draft
from models.sharding import ways
from models.target import Target, check_ids
from models.tokenizer import Tokenizer
from models.verify import GREEDILY, Speculation
from serve.choose import Chooser, Seen

SEGMENT = 8


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was written after one prompt. `ids` ends with the token that ended it; `text` ends before a stop string."""

    ids: list[int]
    text: str
    finished: Literal["eos", "stop", "length"]
    runs: list[int]  # tokens each step committed; they sum to len(ids)
    widths: list[int]  # of each step; 1 is a plain step
    drafts: list[str]  # where each step's drafts came from, as `Draft.name` says
    prefill_ms: float  # of the batch the answer was written in
    decode_ms: float  # the same

    @property
    def ms_per_token(self) -> float:
        return self.decode_ms / max(len(self.ids), 1)


@dataclasses.dataclass
class Row:
    """One answer in the making."""

    prompt: list[int]
    ids: list[int] = dataclasses.field(default_factory=list)
    runs: list[int] = dataclasses.field(default_factory=list)
    drafts: list[Draft] = dataclasses.field(default_factory=list)
    finished: Literal["eos", "stop", "length"] | None = None
    cut: int | None = None  # characters of the text before a stop string


class Decoder:
    """Answers prompts with one engine.

    `draft` says what every step drafts, a chooser picks it as it goes, None is the plain loop; `speculation` how tokens
    are sampled and drafts verified. Context buffers hold at least `capacity` positions: one value for many prompts is
    one shape to compile.

    What is drawn is the target's distribution whatever drafts; which tokens a seed gives is fixed by a fixed draft,
    alone and in a batch. What a chooser picks depends on batch mates.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        draft: Draft | Chooser | None,
        speculation: Speculation = GREEDILY,
        *,
        capacity: int = 256,
    ):
        self.engine = engine.plain if draft is None else engine
        self.tokenizer, self.speculation, self.capacity = tokenizer, speculation, capacity
        self.chooser = draft if isinstance(draft, Chooser) else None
        self.drafts = draft.drafts if isinstance(draft, Chooser) else [draft or SINGLE]
        self.widest = max(engine.drafter.width, *(draft.widest for draft in self.drafts))

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        """The answers to `prompts` (user messages, or token ids), written together, one row each.

        Raises:
          UserError: an empty prompt or stop string, a prompt with ids the target does not have, or one that exceeds
            its context with max_new_tokens; other than one seed a prompt; logits that are not finite.
        """
        *_, (_, answers) = self.stream(prompts, max_new_tokens=max_new_tokens, stop=stop, seeds=seeds)
        return answers

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[Row], list[Answer]]]:
        """The rows after every segment, as far as they are; with the answers at the end."""
        if isinstance(prompts, str):
            raise UserError("prompts: expected a list of prompts, got one string; put it into a list")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        if isinstance(stop, str) or "" in stop:
            raise UserError(f"stop: expected a list of texts, none of them empty, got {stop!r}")
        rows = [Row(self._ids(prompt)) for prompt in prompts]
        if not rows or not all(row.prompt for row in rows):
            raise UserError("prompts: expected at least one, each of at least one token")
        for index, row in enumerate(rows):
            check_ids(row.prompt, self.engine.target.config, f"prompt {index}")
        began = time.perf_counter()
        seeds = range(len(rows)) if seeds is None else seeds
        if len(seeds) != len(rows) or not all(0 <= seed < 2**32 for seed in seeds):
            raise UserError(f"seeds: expected {len(rows)} of 0 to {2**32 - 1}, one a prompt, got {list(seeds)}")
        state = jax.block_until_ready(self._prefill(rows, max_new_tokens, seeds))
        prefill_ms, began = (time.perf_counter() - began) * 1e3, time.perf_counter()
        while any(row.finished is None for row in rows):
            draft = self.chooser.pick(sum(row.finished is None for row in rows)) if self.chooser else self.drafts[0]
            state = self._advance(state, draft)
            state = self._look(state, rows, draft, stop)
            yield rows, []
        decode_ms = (time.perf_counter() - began) * 1e3
        yield rows, [self._answer(row, prefill_ms, decode_ms) for row in rows]

    def warm(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Compiles everything an answer of this shape may use, and runs it once.

        On a CPU the first run of a loop takes a second more than those after it, and steps that copy are loops of
        their own.
        """
        repeats, size = list(prompt[-1:]) * len(prompt), self.engine.target.config.vocab_size
        varied = [number % size for number in range(len(prompt))]
        for draft in self.drafts:
            for ids in (varied, repeats) if draft.copy else (varied,):
                jax.block_until_ready(self._advance(self._prefill([Row(ids)], max_new_tokens, [0]), draft))
                return_unused_heap()

    def context_for(self, tokens: int) -> int:
        """Positions of the context buffers of rows that reach `tokens`: what decides which programs an answer needs."""
        return context_capacity(tokens, self.widest, self.capacity)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer.encode_chat([{"role": "user", "content": prompt}]))
        return list(prompt)

    def _prefill(self, rows: Sequence[Row], max_new_tokens: int, seeds: Sequence[int]) -> DecodeState:
        """Prefilled rows; the context capacity is a power of two, so that few shapes are compiled."""
        longest, target = max(len(row.prompt) for row in rows), self.engine.target
        limit = target.config.max_positions
        if longest + max_new_tokens > limit:
            raise UserError(
                f"prompt of {longest} tokens + max_new_tokens={max_new_tokens} exceed the context of "
                f"{target.config.name} ({limit}); shorten one of them"
            )
        capacity = self.context_for(longest + max_new_tokens)
        prompts = np.zeros((len(rows), capacity), np.int32)
        for line, row in zip(prompts, rows, strict=True):
            line[: len(row.prompt)] = row.prompt
        lengths = np.array([len(row.prompt) for row in rows], np.int32)
        stops, seed = lengths + max_new_tokens, np.array(seeds, np.uint32).view(np.int32)
        return prefill(self.engine, prompts, lengths, stops, seed, capacity=capacity)

    def _advance(self, state: DecodeState, draft: Draft) -> DecodeState:
        floors = jnp.array(self.chooser.floors(draft)) if self.chooser and draft.cuts else None
        return segment(self.engine, state, SEGMENT, draft, self.speculation, floors)

    def _look(self, state: DecodeState, rows: list[Row], draft: Draft, stop: Sequence[str]) -> DecodeState:
        """Takes over what a segment wrote; rows at a stop string are marked done on the device too."""
        now, names = state.rows, ("tokens", "length", "done", "fault", "num_steps", "runs", "copied", "offered")
        tokens, length, done, fault, num_steps, runs, copies, offers = jax.device_get(
            [getattr(now, name) for name in names]
        )
        if fault.any():
            raise UserError(self._diagnosis(tokens, fault, rows))
        stopped, seen = [], []
        for index, row in enumerate(rows):
            if row.finished is not None:
                continue
            steps = slice(len(row.runs), num_steps[index])
            new, copied, offered = (part[index, steps].tolist() for part in (runs, copies, offers))
            row.ids = tokens[index, len(row.prompt) : length[index]].tolist()
            row.runs += new
            for copy, most in zip(copied, offered, strict=True):
                alone = Draft(draft.kind, most + 1) if draft.cuts else dataclasses.replace(draft, copy=0)
                row.drafts.append(Draft("ngram", draft.copy) if copy else alone)
            if self.chooser is not None:
                seen.append(Seen(new, copied, row.prompt + row.ids, offered, bool(done[index])))
            if done[index]:
                row.finished = "eos" if row.ids[-1] in self.engine.target.config.eos_ids else "length"
            if stop and self._cut_at_stop(row, stop):
                stopped.append(index)
        if self.chooser is not None:
            self.chooser.observe(draft, seen)
        if not stopped:
            return state
        ended = dataclasses.replace(now, done=now.done.at[jnp.array(stopped)].set(True))
        return dataclasses.replace(state, rows=ended)

    def _cut_at_stop(self, row: Row, stop: Sequence[str]) -> bool:
        """Ends `row` at the first token that completes a stop string."""
        if not any(word in self.tokenizer.decode(row.ids, skip_special=True) for word in stop):
            return False
        for count in range(1, len(row.ids) + 1):
            text = self.tokenizer.decode(row.ids[:count], skip_special=True)
            places = [text.find(word) for word in stop if word in text]
            if places:
                row.ids, row.finished, row.cut = row.ids[:count], "stop", min(places)
                break
        left = len(row.ids)
        for step, run in enumerate(row.runs):
            if run >= left:
                row.runs, row.drafts = [*row.runs[:step], left], row.drafts[: step + 1]
                break
            left -= run
        return True

    def _answer(self, row: Row, prefill_ms: float, decode_ms: float) -> Answer:
        assert row.finished is not None
        text = self.tokenizer.decode(row.ids, skip_special=True)
        return Answer(
            ids=row.ids,
            text=text[: row.cut],
            finished=row.finished,
            runs=row.runs,
            widths=[draft.width for draft in row.drafts],
            drafts=[draft.name for draft in row.drafts],
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
        )

    def _diagnosis(self, tokens: np.ndarray, fault: np.ndarray, rows: Sequence[Row]) -> str:
        """Which layer first gave values that are not finite, for the first row it happened to."""
        index = int(np.flatnonzero(fault)[0])
        length = abs(int(fault[index]))
        written = f"in the step after {length - len(rows[index].prompt)} tokens of answer {index}"
        if fault[index] < 0:
            return f"the drafter's states are not finite {written}; check its weights, or decode in float32"
        layer = first_broken_layer(self.engine.target, tokens[index, :length])
        where = "the LM head" if layer is None else f"layer {layer}"
        return (
            f"{self.engine.target.config.name}: logits are not finite (first in {where}) {written}; check the target's "
            "weights, or decode in float32"
        )


def context_capacity(tokens: int, width: int, least: int = 256) -> int:
    """Length of the context buffers: a power of two with room for a last block."""
    return max(least, 1 << (tokens + width - 1).bit_length())


def first_broken_layer(target: Target, tokens: np.ndarray) -> int | None:
    """The first layer whose output over `tokens` holds a NaN or an infinity; None when all layers are fine."""
    num_layers = target.config.num_layers
    row = jnp.asarray(tokens)[None].repeat(ways("batch", target.mesh), axis=0)
    _, features, _ = target(row, whole(row), taps=tuple(range(num_layers)))
    fine = np.asarray(jnp.isfinite(features[0]).reshape(len(tokens), num_layers, -1).all(axis=(0, 2)))
    return None if fine.all() else int(np.argmin(fine))
