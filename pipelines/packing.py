"""Packing: several responses share one row of fixed length, so that every step has one shape and little padding.

Tokens of different responses carry different segment numbers and never meet (`models.attention.Packed`); positions
start at 0 in every segment, as they do when decoding.

All lengths are known before any text is read (`pipelines.records`), so the plan of every row is made once, by best
fit over the whole split, in O(n log n) time; it takes 4 bytes a response and 8 a row. Rows then have random access:
an epoch is a permutation of their numbers and a checkpoint one integer. Grain's own packing reads a stream: it packs
less tightly for not knowing what comes, and restored from a checkpoint it reads and packs a batch of rows again.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from configs.errors import UserError

BLOCK = 65536  # lengths looked at together: as Python's numbers all of them would take ten times the plan's memory


class Packing:
    """The responses, by number, that lie one after the other in each row: `packing[row]` is an int32 array."""

    def __init__(self, row_of: np.ndarray, num_rows: int, order: np.ndarray):
        """`row_of[n]` is the row that response n is in; a row holds them in the order they have in `order`."""
        self._numbers = order[np.argsort(row_of[order], kind="stable")].astype(np.int32)
        self._ends = np.cumsum(np.bincount(row_of, minlength=num_rows))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._numbers[self._ends[row - 1] if row else 0 : self._ends[row]]


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Rows holding every response once: longest first, each into the fullest row that has room (best fit).

    Rows with equal room wait in a heap, the first one on top; bit r of `rooms` says whether any row has room r.
    Raises:
      UserError: a response is longer than a row.
    """
    longest = int(lengths.max(initial=0))
    if longest > row_length:
        raise UserError(
            f"batches.row_length={row_length} is shorter than the longest prompt with its response ({longest} tokens); "
            "raise it, or lower responses.max_prompt_tokens or max_new_tokens and prepare again"
        )
    order = np.argsort(-lengths, kind="stable")
    row_of = np.zeros(len(lengths), np.int32)
    with_room: dict[int, list[int]] = defaultdict(list)
    rooms = num_rows = 0
    for start in range(0, len(order), BLOCK):
        block, chosen = order[start : start + BLOCK], []
        for length in lengths[block].tolist():
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else row_length
            if fitting:
                row = heapq.heappop(with_room[room])
                rooms ^= (not with_room[room]) << room
            else:
                row, num_rows = num_rows, num_rows + 1
            heapq.heappush(with_room[room - length], row)
            rooms |= 1 << (room - length)
            chosen.append(row)
        row_of[block] = chosen
    return Packing(row_of, num_rows, order)


def padding(lengths: np.ndarray, num_rows: int, row_length: int) -> float:
    """Share of positions that hold no token when every response lies in one of the rows."""
    return 1 - int(lengths.sum(dtype=np.int64)) / (num_rows * row_length)


def starts(lengths: Sequence[int] | np.ndarray) -> list[int]:
    """Where each response of a row begins, given their lengths."""
    return (np.cumsum(lengths) - lengths).tolist()


def fill(texts: Sequence[np.ndarray], row_length: int) -> dict[str, np.ndarray]:
    """tokens, positions, segments [S] int32 of a row that holds `texts`; segment 0 is padding."""
    out = {name: np.zeros(row_length, np.int32) for name in ("tokens", "positions", "segments")}
    place = 0
    for segment, ids in enumerate(texts, start=1):
        span = slice(place, place + len(ids))
        out["tokens"][span] = ids
        out["positions"][span] = np.arange(len(ids))
        out["segments"][span] = segment
        place += len(ids)
    return out


def startable(texts: Sequence[np.ndarray], prompt_lengths: Sequence[int], row_length: int) -> np.ndarray:
    """Where an anchor may stand in a row that holds `texts`, [S] bool.

    On the last token of a prompt and every token of its response but the last: where a next token of the target's own
    is known.
    """
    out, place = np.zeros(row_length, bool), 0
    for ids, prompt_length in zip(texts, prompt_lengths, strict=True):
        out[place + prompt_length - 1 : place + len(ids) - 1] = True
        place += len(ids)
    return out
