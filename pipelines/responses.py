"""Responses: the text the target itself writes to every training prompt.

In: prompts, the target, its tokenizer. Out, owned here: a directory

    manifest.json                       what was asked: target, digest of the prompts as it reads them, decoding
    {train,heldout}/00000.array_record  shard: one record a response, little-endian
                                            int32 x 5   counts of prompt ids and response ids, finished (0 or 1),
                                                        bytes of task and of id
                                            int32 ids   the prompt's, then the response's
                                            bytes       task, then id, in UTF-8
    {train,heldout}/00000.json          its completion mark, written last: {responses, tokens, finished, repeating,
                                        token_range, prompt_lengths, response_lengths}

A shard without its mark does not count: an interrupted run writes it again and redoes no other. The directory's name
is a digest of the manifest, so equal requests share it and different ones never meet.

A split may be larger than memory. What later stages need of all responses at once, their lengths above all, stands in
the marks (8 bytes a response in memory); the records are read one at a time, when a row is filled with them.
"""

import dataclasses
import hashlib
import json
import struct
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import progress, say
from configs.errors import UserError
from configs.schema import Recipe
from models import decode
from models.decode import DecodeState, Engine
from models.drafters import SINGLE, Nothing
from models.recorder import Recorder, Tapped
from models.sampling import Sampling
from models.sharding import whole_rows
from models.statistics import REPETITIVE, repetition
from models.target import Target, TargetConfig, check_ids
from models.tokenizer import Tokenizer
from models.verify import Speculation
from pipelines import shards
from pipelines.feature_store import FeatureStore
from pipelines.prompt_files import Prompt, encode_prompt

FORMAT = 3  # raised when the target's forward pass, its sampling or the records change what stands in a directory
SEGMENT = 16  # decoding steps between looks at the rows
REFILL = 8  # rows prefilled together
HEADER = struct.Struct("<5i")
TOTALS = ("responses", "tokens", "finished", "repeating")
MARK = (*TOTALS, "token_range", "prompt_lengths", "response_lengths")


@dataclasses.dataclass(frozen=True)
class Response:
    """One answer of the target: token ids of the chat prompt and of what it wrote (end token included)."""

    task: str
    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finished: bool

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and text."""
        return (*self.prompt_ids, *self.response_ids)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def to_record(self) -> bytes:
        names = [name.encode("utf-8", "surrogatepass") for name in (self.task, self.id)]
        counts = (len(self.prompt_ids), len(self.response_ids), self.finished, *map(len, names))
        return b"".join([HEADER.pack(*counts), np.array(self.ids, "<i4").tobytes(), *names])

    @staticmethod
    def from_record(record: bytes) -> "Response":
        """The response of a whole record."""
        prompt, _, finished, task, _ = HEADER.unpack_from(record)
        ids = tuple(_ids_of(record).tolist())
        names = record[HEADER.size + 4 * len(ids) :]
        return Response(
            names[:task].decode("utf-8", "surrogatepass"),
            names[task:].decode("utf-8", "surrogatepass"),
            ids[:prompt],
            ids[prompt:],
            bool(finished),
        )


class Responses:
    """A finished split, in prompt order: the lengths of all its responses, and each of them read when asked for.

    Raises:
      UserError: a shard is damaged or not the one its mark was written with; for a record, when it is read.
    """

    def __init__(self, folder: Path):
        self.folder, self._records = folder, shards.Records(folder)
        self._totals: Counter[str] = Counter()
        prompts, texts, self._ranges, marks = [], [], [], shards.read_marks(folder, *MARK)
        for path, count, mark in zip(self._records.paths, self._records.counts, marks, strict=True):
            if not count == len(mark["prompt_lengths"]) == len(mark["response_lengths"]):
                raise _foreign(path, f"holds {count} records where its mark tells of {mark['responses']}")
            prompts.append(np.array(mark["prompt_lengths"], np.int32))
            texts.append(np.array(mark["response_lengths"], np.int32))
            self._ranges.append(tuple(mark["token_range"]))
            self._totals.update({name: mark[name] for name in TOTALS})
        self.prompt_lengths = np.concatenate(prompts)
        self.lengths = self.prompt_lengths + np.concatenate(texts)
        self.token_range = min(low for low, _ in self._ranges), max(high for _, high in self._ranges)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Response:
        return Response.from_record(self._record(number))

    def ids(self, number: int) -> np.ndarray:
        """Prompt and text of response `number`: [S] int32."""
        return _ids_of(self._record(number))

    def check_ids(self, config: TargetConfig) -> None:
        """Raises UserError for the first response with a token id that the target does not have.

        The marks tell whether there is one; only the records of such a shard are read.
        """
        first = 0
        for count, (low, high) in zip(self._records.counts, self._ranges, strict=True):
            if low < 0 or high >= config.vocab_size:
                for number in range(first, first + count):
                    where = f"{self.folder}, record {number} (damaged: delete the folder, prepare again)"
                    check_ids(self[number].ids, config, where)
            first += count

    def summary(self) -> str:
        """How many responses, how long, how many of them ended and how many went round in circles."""
        totals, count = self._totals, max(len(self), 1)
        return (
            f"{len(self)} responses, {totals['tokens']} tokens, {totals['finished'] / count:.0%} finished, "
            f"repetition rate {totals['repeating'] / count:.1%}"
        )

    def _record(self, number: int) -> bytes:
        """The record, found to be what the marks tell of it."""
        record = self._records[number]
        if not self._told(number, record):
            path, place = self._records.place(number)
            raise _foreign(path, f"record {place} is not the response that its mark tells of")
        return record

    def _told(self, number: int, record: bytes) -> bool:
        if len(record) < HEADER.size:
            return False
        prompt, written, _, *names = HEADER.unpack_from(record)
        size = int(self.lengths[number])
        if prompt != self.prompt_lengths[number] or prompt + written != size:
            return False
        if len(record) != HEADER.size + 4 * size + sum(names):
            return False
        ids, (low, high) = _ids_of(record), self.token_range
        return size == 0 or bool(low <= ids.min() and ids.max() <= high)


def _ids_of(record: bytes) -> np.ndarray:
    prompt, written, *_ = HEADER.unpack_from(record)
    return np.frombuffer(record, "<i4", prompt + written, HEADER.size)


def _foreign(path: Path, found: str) -> UserError:
    return UserError(f"{path}: {found}; delete {path.with_suffix('.json')} and prepare again")


def write_responses(folder: Path, index: int, responses: Sequence[Response]) -> None:
    """One shard of responses and its mark."""
    ids = np.concatenate([np.array(response.ids, np.int64) for response in responses])
    statistics = {
        "responses": len(responses),
        "tokens": sum(len(response.response_ids) for response in responses),
        "finished": sum(response.finished for response in responses),
        "repeating": sum(repetition(r.response_ids) > REPETITIVE for r in responses),
        "token_range": [int(ids.min()), int(ids.max())] if len(ids) else [0, 0],
        "prompt_lengths": [len(response.prompt_ids) for response in responses],
        "response_lengths": [len(response.response_ids) for response in responses],
    }
    shards.write_shard(folder, index, [response.to_record() for response in responses], statistics)


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt to be answered: its token ids, the draws' seed, and the answer where it is given (not yet cut)."""

    prompt: Prompt
    ids: Sequence[int]
    seed: int
    given: Sequence[int] | None

    def identity(self) -> dict[str, Any]:
        """All of it but the place the prompt was read from."""
        given = None if self.given is None else list(self.given)
        prompt = dataclasses.asdict(self.prompt) | {"where": ""}
        return {"prompt": prompt, "ids": list(self.ids), "seed": self.seed, "given": given}

    def response(self, written: Sequence[int], *, finished: bool) -> Response:
        return Response(self.prompt.task, self.prompt.id, tuple(self.ids), tuple(written), finished)


def prepare_responses(
    recipe: Recipe,
    target: Target,
    tokenizer: Tokenizer,
    splits: dict[str, list[Prompt]],
    taps: tuple[int, ...] | None = None,
) -> Path:
    """The directory holding a response to every prompt of `splits` ({split: prompts}), written where missing.

    With `taps`, the features of what is written here are kept beside it (`pipelines.feature_store`).
    Raises:
      UserError: no prompt of a split is short enough, one holds a token the target does not have, an answer is missing
        that should have been given, or the target's logits are not finite.
    """
    jobs = {split: _encode(recipe, target, tokenizer, prompts, split) for split, prompts in splits.items()}
    manifest = _manifest(recipe, target, jobs)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(recipe.run.data_dir) / "responses" / digest
    shards.describe(directory, manifest)
    for split, asked in jobs.items():
        with shards.claim_missing(directory / split, len(asked), recipe.responses.shard_size) as parts:
            if parts:
                store = None if taps is None else FeatureStore.of(recipe, taps, directory)
                todo = [(index, [asked[number] for number in part]) for index, part in parts]
                _write_shards(recipe, target, directory / split, todo, store)
        found = Responses(directory / split)
        found.check_ids(target.config)
        say(f"responses: {split}: {found.summary()} in {directory / split}")
    return directory


def _manifest(recipe: Recipe, target: Target, jobs: dict[str, list[Job]]) -> dict[str, Any]:
    """All that decides what the responses are; prompts as token ids, since the chat template is part of them."""
    section = dataclasses.asdict(recipe.responses)
    del section["batch"]  # changes the speed, not the text
    digest = hashlib.sha256()
    for split, part in jobs.items():
        for job in part:
            digest.update(json.dumps([split, job.identity()], sort_keys=True).encode() + b"\n")
    return {
        "format": FORMAT,
        "target": {
            "fingerprint": target.fingerprint,
            "dtype": recipe.target.dtype,
            "eos_ids": sorted(target.config.eos_ids),
            "chat_template_args": recipe.target.chat_template_args,
        },
        "prompts": {
            "counts": {split: len(split_jobs) for split, split_jobs in jobs.items()},
            "digest": digest.hexdigest(),
        },
        "responses": section,
        "seed": None if recipe.responses.temperature == 0.0 else recipe.run.seed,
    }


def _encode(recipe: Recipe, target: Target, tokenizer: Tokenizer, prompts: Sequence[Prompt], split: str) -> list[Job]:
    """What is asked for; prompts over responses.max_prompt_tokens are left out and counted aloud."""
    section, context = recipe.responses, target.config.max_positions
    if section.max_prompt_tokens + section.max_new_tokens > context:
        raise UserError(
            f"responses.max_prompt_tokens + responses.max_new_tokens: {section.max_prompt_tokens} + "
            f"{section.max_new_tokens} exceeds the context of {target.config.name} ({context}); lower one of them"
        )
    # Arrays: a list of as many numbers takes nine times the memory.
    encoded = [(prompt, array("I", encode_prompt(tokenizer, prompt))) for prompt in prompts]
    kept = [(prompt, ids) for prompt, ids in encoded if len(ids) <= section.max_prompt_tokens]
    if len(kept) < len(encoded):
        longest = max(len(ids) for _, ids in encoded)
        say(
            f"responses: {split}: left out {len(encoded) - len(kept)} of {len(encoded)} prompts longer than "
            f"responses.max_prompt_tokens={section.max_prompt_tokens} (longest: {longest})"
        )
    if encoded and not kept:
        raise UserError(
            f"responses.max_prompt_tokens={section.max_prompt_tokens}: every prompt of {split} is longer "
            f"(shortest: {min(len(ids) for _, ids in encoded)} tokens); raise it"
        )
    for prompt, ids in kept:
        check_ids(ids, target.config, f"prompt {prompt.task}/{prompt.id}")
    given = [None] * len(kept)
    if not section.regenerate:
        given = _given_answers(target, tokenizer, [prompt for prompt, _ in kept])
    return [
        Job(prompt, ids, draw_seed(recipe, split, number), answer)
        for number, ((prompt, ids), answer) in enumerate(zip(kept, given, strict=True))
    ]


def draw_seed(recipe: Recipe, split: str, number: int) -> int:
    """Names the draws of a prompt by its number in the split, whatever is written before it; 0 when greedy."""
    if recipe.responses.temperature == 0.0:
        return 0
    digest = hashlib.sha256(f"{recipe.run.seed}/{split}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # a positive int32


def _given_answers(target: Target, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
    """The answers found in the prompt files, each ended as the chat template ends an assistant's turn."""
    end, answers = tokenizer.turn_end(target.config.eos_ids), []
    for prompt in prompts:
        if prompt.response is None:
            raise UserError(
                f"responses.regenerate=false: prompt {prompt.task}/{prompt.id} has no response in its file; "
                "add one or let the target write it (responses.regenerate=true)"
            )
        answers.append(array("I", [*tokenizer.encode(prompt.response), *end]))
        check_ids(answers[-1], target.config, f"response to {prompt.task}/{prompt.id}")
    return answers


def _write_shards(
    recipe: Recipe,
    target: Target,
    folder: Path,
    parts: list[tuple[int, list[Job]]],
    store: FeatureStore | None,
) -> None:
    """Writes every missing shard as soon as its last response is there, its features first."""
    pending: dict[int, dict[int, tuple[Response, Any]]] = {index: {} for index, _ in parts}
    sizes = {index: len(items) for index, items in parts}
    places = [(index, slot) for index, items in parts for slot in range(len(items))]
    jobs = [job for _, items in parts for job in items]
    if not recipe.responses.regenerate:
        answers = _given_responses(recipe, jobs)
    else:
        answers = _generated_responses(recipe, target, jobs, store.tapped if store else None)
    for number, response, features in answers:
        index, slot = places[number]
        pending[index][slot] = (response, features)
        if len(pending[index]) == sizes[index]:
            whole = pending.pop(index)
            done = [whole[slot][0] for slot in range(sizes[index])]
            if store is not None and recipe.responses.regenerate:
                store.write(folder.name, index, [whole[slot][1] for slot in range(sizes[index])], [r.ids for r in done])
            write_responses(folder, index, done)


def _given_responses(recipe: Recipe, jobs: Sequence[Job]) -> Iterator[tuple[int, Response, None]]:
    """(job number, response, None): the given answers cut to max_new_tokens."""
    say("responses: taken from the prompt files, not written by the target; expect less than half of the speedup")
    for number, job in enumerate(jobs):
        assert job.given is not None
        cut = job.given[: recipe.responses.max_new_tokens]
        yield number, job.response(cut, finished=len(cut) == len(job.given)), None


def _generated_responses(
    recipe: Recipe, target: Target, jobs: Sequence[Job], tapped: Tapped | None
) -> Iterator[tuple[int, Response, np.ndarray | None]]:
    """(job number, the target's own response, its features) in order of completion, with a progress bar in tokens."""
    label = f"responses: {target.config.name} writes"
    started, tokens = time.monotonic(), 0
    with progress(label, len(jobs), "responses") as bar:
        for number, written, features in generate_many(recipe, target, jobs, tapped):
            tokens += len(written)
            bar.advance(1, f"{tokens / (time.monotonic() - started):.0f} tokens/s")
            yield number, jobs[number].response(written, finished=written[-1] in target.config.eos_ids), features


def generate_many(
    recipe: Recipe, target: Target, jobs: Sequence[Job], tapped: Tapped | None
) -> Iterator[tuple[int, list[int], np.ndarray | None]]:
    """(job number, response ids, features [S, L*E] of prompt and response if asked) in order of completion.

    `responses.batch` rows run together; whenever REFILL of them are free (or nothing else is left to do) the next
    prompts, of similar length, take their place.
    """
    section = recipe.responses
    rows, refill = whole_rows(min(section.batch, len(jobs)), target.mesh), whole_rows(REFILL, target.mesh)
    drafter = Nothing() if tapped is None else Recorder(tapped, target.config.hidden_size)
    engine, speculation = Engine(target, drafter), Speculation(Sampling(section.temperature))
    state = decode.empty_state(engine, rows, section.max_prompt_tokens + section.max_new_tokens)
    waiting = deque(_length_bucketed([len(job.ids) for job in jobs], 2 * section.batch))
    running: dict[int, int] = {}  # row -> job number
    while waiting or running:
        free = [row for row in range(rows) if row not in running]
        while waiting and (len(free) >= min(refill, rows) or not running):
            taken = [(free.pop(0), waiting.popleft()) for _ in range(min(refill, len(free), len(waiting)))]
            running.update(taken)
            state = _insert(recipe, engine, state, [(row, jobs[number]) for row, number in taken])
        state = decode.segment(engine, state, SEGMENT, SINGLE, speculation)
        done, length = np.asarray(state.rows.done), np.asarray(state.rows.length)
        if np.asarray(state.rows.fault).any():
            raise UserError(
                f"{target.config.name}: logits are not finite while it writes responses; check its weights, or set "
                "target.dtype=float32"
            )
        for row, number in [(row, number) for row, number in running.items() if done[row]]:
            del running[row]
            features = None if tapped is None else np.asarray(state.drafter[row])[: length[row]]
            yield number, np.asarray(state.rows.tokens[row])[len(jobs[number].ids) : length[row]].tolist(), features


def _length_bucketed(lengths: Sequence[int], window: int) -> list[int]:
    """Job numbers in order, sorted by length within windows: shards still finish one after the other."""
    order: list[int] = []
    for start in range(0, len(lengths), window):
        order += sorted(range(start, min(start + window, len(lengths))), key=lambda n: lengths[n])
    return order


def _insert(recipe: Recipe, engine: Engine, state: DecodeState, taken: Sequence[tuple[int, Job]]) -> DecodeState:
    """`state` with jobs placed into rows ([(row, job)]), padded to as many as are refilled and a bucket length."""
    section, refill = recipe.responses, whole_rows(REFILL, engine.target.mesh)
    longest = max(len(job.ids) for _, job in taken)
    bucket = min(_bucket(longest), section.max_prompt_tokens)
    rows = np.full(refill, section.batch, np.int32)  # a row that does not exist: dropped
    ids = np.zeros((refill, bucket), np.int32)
    lengths, seeds = np.ones(refill, np.int32), np.zeros(refill, np.int32)
    for i, (row, job) in enumerate(taken):
        rows[i], lengths[i], seeds[i] = row, len(job.ids), job.seed
        ids[i, : lengths[i]] = job.ids
    return decode.insert(engine, state, rows, ids, lengths, lengths + section.max_new_tokens, seeds)


def _bucket(length: int) -> int:
    """`length` padded to 32, 64, 96, 128, 192, 256, 384, ...: two shapes to compile for every doubling."""
    whole = max(32, 1 << (length - 1).bit_length())
    return 3 * whole // 4 if length <= 3 * whole // 4 and whole > 64 else whole
