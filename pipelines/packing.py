"""Packing: several responses share one row of fixed length, so that every step has one shape and little padding.

Tokens of different responses carry different segment numbers and never meet (`models.attention.Packed`); positions
start at 0 in every segment, as they do when decoding.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from configs.errors import UserError
from pipelines.responses import Response


@dataclasses.dataclass(frozen=True)
class Row:
    """The responses (by number) that lie one after the other in a row."""

    numbers: tuple[int, ...]

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Where each of them begins."""
        return np.cumsum([0, *(lengths[number] for number in self.numbers)])[:-1].tolist()


def pack(lengths: Sequence[int], row_length: int) -> list[Row]:
    """Rows holding every response once: longest first, each into the fullest row that has room (best fit).

    Raises:
      UserError: a response is longer than a row.
    """
    longest = max(lengths, default=0)
    if longest > row_length:
        raise UserError(
            f"batches.row_length={row_length} is shorter than the longest prompt with its response ({longest} tokens); "
            "raise it, or lower responses.max_prompt_tokens or max_new_tokens and prepare again"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = [(space, index) for index, space in enumerate(room) if space >= lengths[number]]
        if fitting:
            index = min(fitting)[1]
        else:
            index = len(rows)
            rows.append([])
            room.append(row_length)
        rows[index].append(number)
        room[index] -= lengths[number]
    return [Row(tuple(row)) for row in rows]


def padding(rows: Sequence[Row], lengths: Sequence[int], row_length: int) -> float:
    """Share of positions that hold no token."""
    return 1 - sum(lengths[n] for row in rows for n in row.numbers) / (len(rows) * row_length)


def fill(row: Row, responses: Sequence[Response], row_length: int) -> dict[str, np.ndarray]:
    """tokens, positions, segments [S] int32 (segment 0 is padding) and startable [S] bool.

    An anchor may stand on the last prompt token and on every response token but the last: where a next token of the
    target's own is known.
    """
    out = {name: np.zeros(row_length, np.int32) for name in ("tokens", "positions", "segments")}
    out["startable"] = np.zeros(row_length, bool)
    place = 0
    for segment, number in enumerate(row.numbers, start=1):
        response = responses[number]
        span = slice(place, place + response.length)
        out["tokens"][span] = (*response.prompt_ids, *response.response_ids)
        out["positions"][span] = np.arange(response.length)
        out["segments"][span] = segment
        out["startable"][place + len(response.prompt_ids) - 1 : place + response.length - 1] = True
        place += response.length
    return out
