"""Rows are those of best fit, longest first, whatever the lengths; they cost one heap operation or two a response, and
on mixed lengths hold almost no padding."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipelines import packing
from pipelines.packing import pack, padding


def best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """Every row looked at for every response."""
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        room = [row_length - sum(lengths[n] for n in row) for row in rows]
        fitting = [(space, index) for index, space in enumerate(room) if space >= lengths[number]]
        if fitting:
            rows[min(fitting)[1]].append(number)
        else:
            rows.append([number])
    return rows


def test_by_hand():
    """7 opens a row; 5 does not fit: another; 4 goes where 5 is; 3 where 7 is, which is full then; 1 to the other."""
    rows = pack(np.array([3, 1, 7, 4, 5]), 10)
    assert [row.tolist() for row in rows] == [[2, 0], [4, 3, 1]]


@pytest.mark.parametrize("seed", range(6))
def test_equals_looking_at_every_row(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "BLOCK", 50)
    lengths = np.random.default_rng(seed).integers(1, 65, 200)
    assert [row.tolist() for row in pack(lengths, 64)] == best_fit(lengths.tolist(), 64)


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """50 to 3,000 tokens, evenly over the logarithm."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(50), np.log(3000), count)).astype(np.int32)


@pytest.mark.parametrize("lengths", [mixed(2000), np.random.default_rng(0).integers(50, 3001, 2000)])
def test_padding_on_mixed_lengths(lengths: np.ndarray):
    rows = pack(lengths, 3072)
    assert np.array_equal(np.sort(np.concatenate(list(rows))), np.arange(2000))
    assert max(lengths[row].sum() for row in rows) <= 3072
    share = padding(lengths, len(rows), 3072)
    assert share == pytest.approx(1 - lengths.sum() / (len(rows) * 3072))
    assert share < 0.05


def test_the_same_rows_again():
    first, second = (pack(mixed(1000), 3072) for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]


@pytest.mark.parametrize("count", [500, 8000])
def test_work_grows_as_the_responses_do(count: int, monkeypatch: pytest.MonkeyPatch):
    """No row is looked at but the one taken: a heap gets each response's row once, and gives it at most once."""
    calls = []

    def counted(name: str):
        real = getattr(packing.heapq, name)
        return lambda *arguments: (calls.append(name), real(*arguments))[1]

    heap = SimpleNamespace(heappush=counted("heappush"), heappop=counted("heappop"))
    monkeypatch.setattr(packing, "heapq", heap)
    rows = pack(mixed(count), 3072)
    assert calls.count("heappush") == count
    assert calls.count("heappop") == count - len(rows)


def test_no_responses():
    assert len(pack(np.zeros(0, np.int32), 10)) == 0
