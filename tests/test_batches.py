"""Batches: every response packed once with little padding, anchors where a next token is known, new ones every epoch,
the same from the same seed, and an iterator that goes on exactly from a saved state."""

from pathlib import Path

import numpy as np
import pytest

from configs.schema import load_recipe
from pipelines.batches import RowSource, train_batches
from pipelines.packing import fill, pack, padding, startable
from pipelines.records import Response
from tests.tiny_run import on_disk

BLOCKS = {3: 6, 5: 2}


def make_responses(count: int = 40) -> list[Response]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 14, (count, 2))
    return [
        Response("t", str(i), tuple(rng.integers(0, 9, a).tolist()), tuple(rng.integers(0, 9, b).tolist()), True)
        for i, (a, b) in enumerate(sizes)
    ]


@pytest.fixture
def source(tmp_path: Path) -> RowSource:
    return RowSource(on_disk(tmp_path, make_responses()), None, 60)


def test_fill_by_hand():
    texts = [np.array([6, 7, 8], np.int32), np.array([1, 2, 3, 4, 5], np.int32)]
    row = fill(texts, 10) | {"startable": startable(texts, [1, 2], 10)}
    assert row["tokens"].tolist() == [6, 7, 8, 1, 2, 3, 4, 5, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 0]
    assert row["segments"].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 0, 0]
    assert np.flatnonzero(row["startable"]).tolist() == [0, 1, 4, 5, 6]


def test_every_response_once_and_little_padding():
    """Lengths as wide_block.yaml makes them: prompts of 34-127 tokens, responses up to 160."""
    recipe = load_recipe("wide_block.yaml")
    rng = np.random.default_rng(1)
    answers = np.minimum(rng.integers(10, 260, 600), recipe.responses.max_new_tokens)
    lengths = rng.integers(34, 128, 600) + answers
    rows = pack(lengths, recipe.batches.row_length)
    assert sorted(number for row in rows for number in row.tolist()) == list(range(600))
    assert all(lengths[row].sum() <= recipe.batches.row_length for row in rows)
    assert padding(lengths, len(rows), recipe.batches.row_length) < 0.2


def test_the_first_responses_alone(tmp_path: Path):
    found = on_disk(tmp_path, make_responses())
    source = RowSource(found, None, 60, 7)
    assert sorted(number for row in source.packing for number in row.tolist()) == list(range(7))
    with pytest.raises(ValueError, match=r"batches\.responses=41: there are 40"):
        RowSource(found, None, 60, 41)


def test_a_response_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"batches\.row_length=10 is shorter .*\(11 tokens\)"):
        pack(np.array([3, 11]), 10)


def anchors_of(batch) -> np.ndarray:
    return np.concatenate([batch["anchors_w3"], batch["anchors_w5"]], axis=1)


def test_anchors_are_startable_distinct_and_new_each_epoch(source: RowSource):
    per_epoch = len(source) // 2
    batches = train_batches(source, BLOCKS, rows=2, seed=3)
    seen: dict[bytes, set[bytes]] = {}
    for _ in range(3 * per_epoch):
        batch = next(batches)
        for row, anchors in zip(range(2), anchors_of(batch), strict=True):
            used = anchors[anchors >= 0]
            for width in BLOCKS:
                alone = batch[f"anchors_w{width}"][row]
                assert len(set(alone[alone >= 0].tolist())) == (alone >= 0).sum(), "distinct within a width"
            segments, tokens = batch["segments"][row], batch["tokens"][row]
            assert (segments[used] > 0).all()
            assert (segments[used] == segments[used + 1]).all(), "the next token is of the same response"
            seen.setdefault(tokens.tobytes(), set()).add(np.sort(used).tobytes())
    assert sum(len(draws) for draws in seen.values()) > 2 * len(seen), "anchors are drawn anew"


def test_same_seed_same_batches_and_exact_continuation(source: RowSource):
    first, second = (train_batches(source, BLOCKS, rows=2, seed=3) for _ in range(2))
    for _ in range(7):
        a, b = next(first), next(second)
        assert all((a[name] == b[name]).all() for name in a)
    state = first.get_state()
    expected = [next(first) for _ in range(9)]
    fresh = train_batches(source, BLOCKS, rows=2, seed=3)
    fresh.set_state(state)
    for batch in expected:
        again = next(fresh)
        assert all((batch[name] == again[name]).all() for name in batch)


def test_too_few_rows_are_refused(source: RowSource):
    with pytest.raises(ValueError, match=r"batches\.rows=500: the responses fill only"):
        train_batches(source, BLOCKS, rows=500, seed=0)
