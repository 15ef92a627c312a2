"""Responses: the text the target itself writes to every training prompt, here or on a server (`pipelines.completions`).

In: prompts, the target, its tokenizer. Out, owned here: a directory

    manifest.json                       what was asked: target, digest of the prompts as it reads them, decoding
    {train,heldout}/00000.array_record  shards and their completion marks (`pipelines.records`)

A shard without its mark does not count: an interrupted run writes it again and redoes no other. The directory's name
is a digest of the manifest, so equal requests share it and different ones never meet.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
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
from models.target import Target, check_ids
from models.tokenizer import Tokenizer
from models.verify import Speculation
from pipelines import shards
from pipelines.feature_store import FeatureStore
from pipelines.prompt_files import Prompt, encode_prompt
from pipelines.records import Response, Responses, write_responses

FORMAT = 3  # raised when the target's forward pass, its sampling or the records change what stands in a directory
SEGMENT = 16  # decoding steps between looks at the rows
REFILL = 16  # one row in so many is prefilled at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt to be answered: its token ids, how to draw the answer, and the answer if it is given (not yet cut)."""

    prompt: Prompt
    ids: Sequence[int]
    temperature: float
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
                answers = _answers(recipe, target, tokenizer, [job for _, items in todo for job in items], store)
                _write_shards(answers, directory / split, todo, store)
        found = Responses(directory / split)
        found.check_ids(target.config)
        say(f"responses: {split}: {found.summary()} in {directory / split}")
    return directory


def _manifest(recipe: Recipe, target: Target, jobs: dict[str, list[Job]]) -> dict[str, Any]:
    """All that decides what the responses are; prompts as token ids, since the chat template is part of them."""
    section = dataclasses.asdict(recipe.responses)
    del section["batch"], section["server"]  # change the speed, not the text
    if recipe.responses.server is not None:
        section["served"] = True  # another program computes them, and rounds otherwise
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
        "seed": recipe.prompts.seed if any(recipe.responses.temperatures) else None,
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
    if not section.regenerate:
        given = _given_answers(target, tokenizer, [prompt for prompt, _ in kept])
        return [Job(prompt, ids, 0.0, 0, answer) for (prompt, ids), answer in zip(kept, given, strict=True)]
    asked = [(prompt, ids, temperature) for temperature in section.temperatures for prompt, ids in kept]
    return [
        Job(prompt, ids, temperature, draw_seed(recipe, split, number, temperature), None)
        for number, (prompt, ids, temperature) in enumerate(asked)
    ]


def draw_seed(recipe: Recipe, split: str, number: int, temperature: float) -> int:
    """Names the draws of an answer by its number in the split, whatever is written before it; 0 when greedy."""
    if temperature == 0.0:
        return 0
    digest = hashlib.sha256(f"{recipe.prompts.seed}/{split}/{number}".encode()).digest()
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


Parts = list[tuple[int, list[Job]]]  # (shard, its jobs)
Answers = Iterator[tuple[int, Response, Any]]  # (number of the job among those of all parts, response, its features)


def _write_shards(answers: Answers, folder: Path, parts: Parts, store: FeatureStore | None) -> None:
    """Writes every missing shard as soon as its last response is there, its features first where there are any."""
    pending: dict[int, dict[int, tuple[Response, Any]]] = {index: {} for index, _ in parts}
    sizes = {index: len(items) for index, items in parts}
    places = [(index, slot) for index, items in parts for slot in range(len(items))]
    for number, response, features in answers:
        index, slot = places[number]
        pending[index][slot] = (response, features)
        if len(pending[index]) == sizes[index]:
            whole = pending.pop(index)
            done, kept = zip(*(whole[slot] for slot in range(sizes[index])), strict=True)
            if store is not None and kept[0] is not None:
                store.write(folder.name, index, kept, [response.ids for response in done])
            write_responses(folder, index, done)


def _answers(
    recipe: Recipe, target: Target, tokenizer: Tokenizer, jobs: Sequence[Job], store: FeatureStore | None
) -> Answers:
    """The target's own, from here or from a server, or those given, where the recipe says so."""
    if not recipe.responses.regenerate:
        return _given_responses(recipe, jobs)
    if recipe.responses.server is not None:
        return _served_responses(recipe, target, tokenizer, jobs)
    return _generated_responses(recipe, target, jobs, store.tapped if store else None)


def _served_responses(recipe: Recipe, target: Target, tokenizer: Tokenizer, jobs: Sequence[Job]) -> Answers:
    """What the server writes, as ids: the text's, and the end of the turn where the model ended it; no features.

    A text that comes back from the tokenizer otherwise, or whose ids are not as many as the server counted (its end
    included or not), is kept and counted aloud: its ids are not those that were written.
    """
    from pipelines.completions import Asked, Server

    section = recipe.responses
    assert section.server is not None
    end, strange = tokenizer.turn_end(target.config.eos_ids), 0
    asked = (Asked(job.ids, section.max_new_tokens, job.temperature, job.seed) for job in jobs)
    with (
        closing(Server(section.server)) as server,
        progress(f"responses: {server.model} at {server.url} writes", len(jobs), "responses") as bar,
    ):
        for number, completion in server.complete(asked, at_once=section.batch):
            ids, job = tokenizer.encode(completion.text), jobs[number]
            check_ids(ids, target.config, f"response to {job.prompt.task}/{job.prompt.id}")
            counted = completion.num_tokens in (None, len(ids), len(ids) + 1)
            strange += not (counted and tokenizer.decode(ids) == completion.text)
            whole = [*ids, *end] if completion.finished else ids
            cut = whole[: section.max_new_tokens]
            bar.advance(1)
            yield number, job.response(cut, finished=completion.finished and len(cut) == len(whole)), None
    say(
        f"responses: {strange} of {len(jobs)} texts do not come back from {target.config.name}'s tokenizer as the "
        "server wrote them"
    )


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
    started, tokens, first = time.monotonic(), 0, 0
    with progress(label, len(jobs), "responses") as bar:
        for _, group in itertools.groupby(jobs, key=lambda job: job.temperature):
            alike = list(group)
            for number, written, features in generate_many(recipe, target, alike, tapped):
                tokens += len(written)
                bar.advance(1, f"{tokens / (time.monotonic() - started):.0f} tokens/s")
                finished = written[-1] in target.config.eos_ids
                yield first + number, alike[number].response(written, finished=finished), features
            first += len(alike)


def generate_many(
    recipe: Recipe, target: Target, jobs: Sequence[Job], tapped: Tapped | None
) -> Iterator[tuple[int, list[int], np.ndarray | None]]:
    """(job number, response ids, features [S, L*E] of prompt and response if asked) in order of completion.

    The jobs are of one temperature. `responses.batch` rows run together; whenever one in REFILL of them is free (or
    nothing else is left to do) the next prompts, of similar length, take their place.
    """
    section = recipe.responses
    num_rows = whole_rows(min(section.batch, len(jobs)), target.mesh)
    refill = _refilled(num_rows, target)
    drafter = Nothing() if tapped is None else Recorder(tapped, target.config.hidden_size)
    engine, speculation = Engine(target, drafter), Speculation(Sampling(jobs[0].temperature))
    state = decode.empty_state(engine, num_rows, section.max_prompt_tokens + section.max_new_tokens)
    waiting = deque(_length_bucketed([len(job.ids) for job in jobs], 2 * section.batch))
    running: dict[int, int] = {}  # row -> job number
    while waiting or running:
        free = [row for row in range(num_rows) if row not in running]
        while waiting and (len(free) >= min(refill, num_rows) or not running):
            taken = [(free.pop(0), waiting.popleft()) for _ in range(min(refill, len(free), len(waiting)))]
            running.update(taken)
            state = _insert(recipe, engine, state, [(row, jobs[number]) for row, number in taken])
        state = decode.segment(engine, state, SEGMENT, SINGLE, speculation)
        rows = state.rows
        tokens, length, done, fault = jax.device_get((rows.tokens, rows.length, rows.done, rows.fault))
        if fault.any():
            raise UserError(
                f"{target.config.name}: logits are not finite while it writes responses; check its weights, or set "
                "target.dtype=float32"
            )
        for row, number in [(row, number) for row, number in running.items() if done[row]]:
            del running[row]
            features = None if tapped is None else np.asarray(state.drafter[row])[: length[row]]
            yield number, tokens[row, len(jobs[number].ids) : length[row]].tolist(), features


def _refilled(rows: int, target: Target) -> int:
    """How many of `rows` are prefilled together."""
    return whole_rows(-(-rows // REFILL), target.mesh)


def _length_bucketed(lengths: Sequence[int], window: int) -> list[int]:
    """Job numbers in order, sorted by length within windows: shards still finish one after the other."""
    order: list[int] = []
    for start in range(0, len(lengths), window):
        order += sorted(range(start, min(start + window, len(lengths))), key=lambda n: lengths[n])
    return order


def _insert(recipe: Recipe, engine: Engine, state: DecodeState, taken: Sequence[tuple[int, Job]]) -> DecodeState:
    """`state` with jobs placed into rows ([(row, job)]), padded to as many as are refilled and a bucket length."""
    section, refill = recipe.responses, _refilled(len(state.rows.done), engine.target)
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
