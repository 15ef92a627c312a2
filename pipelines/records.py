"""Responses on disk: the records of a split's shards and what their marks tell, written and read.

Owned here: in a directory of responses (`pipelines.responses`)

    {train,heldout}/00000.array_record  shard: one record a response, little-endian
                                            int32 x 5   counts of prompt ids and response ids, finished (0 or 1),
                                                        bytes of task and of id
                                            int32 ids   the prompt's, then the response's
                                            bytes       task, then id, in UTF-8
    {train,heldout}/00000.json          its completion mark, written last: {responses, tokens, finished, repeating,
                                        token_range, prompt_lengths, response_lengths}

A split may be larger than memory. What later stages need of all responses at once, their lengths above all, stands in
the marks (8 bytes a response in memory); the records are read one at a time, when a row is filled with them.
"""

import dataclasses
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import UserError
from models.statistics import REPETITIVE, repetition
from models.target import TargetConfig, check_ids
from pipelines import shards

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
