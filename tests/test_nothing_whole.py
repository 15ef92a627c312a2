"""No stage holds a split of responses in memory: what all of them must be asked is in the marks, and records are read
one at a time, as rows are filled with them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.schema import load_recipe
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines import shards
from pipelines.batches import PREFETCH, RowSource, train_batches
from pipelines.prepare import frequent_tokens, prepare
from pipelines.records import Response, Responses
from tests.tiny_run import make_tiny, on_disk


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many records were read of each folder."""
    counts: Counter[str] = Counter()
    read = shards.Records.__getitem__

    def counted(records: shards.Records, number: int) -> bytes:
        record = read(records, number)
        counts["/".join(records.paths[0].parts[-4:-1:2])] += 1
        return record

    monkeypatch.setattr(shards.Records, "__getitem__", counted)
    return counts


def responses(count: int) -> list[Response]:
    """Of 10 tokens each: a row of 40 holds four."""
    return [Response("t", str(n), (n, 1, 2), tuple(range(7)), True) for n in range(count)]


def test_what_is_prepared_is_not_read_again(tmp_path: Path, reads: Counter[str]):
    """Nor is it when it is prepared, with features kept by generation; rows read their own."""
    recipe = load_recipe(str(make_tiny(tmp_path).config), ["prompts.limit=9", "responses.max_new_tokens=4"])
    target, tokenizer = load_target(recipe.target.source, "float32"), load_tokenizer(recipe.target.source)
    for _ in range(2):
        prepared = prepare(recipe, target, tokenizer)
        assert not reads
    assert len(Responses(prepared.responses / "train")) == 9
    rows = prepared.rows("train", 32, 128)
    assert reads == {"responses/train": 2, "features/train": 2}, "the first of each shard, to see that they belong"
    rows[0]
    held = len(rows.packing[0])
    assert reads == {"responses/train": 2 + held, "features/train": 2 + held}


def test_only_what_the_next_batches_need(tmp_path: Path, reads: Counter[str]):
    source = RowSource(on_disk(tmp_path / "a" / "b" / "c", responses(400)), None, 40)
    assert source.describe() == "400 responses in 100 rows of 40 tokens, padding 0.0%"
    assert not reads
    next(train_batches(source, {2: 3}, rows=2, seed=0))
    assert 8 <= sum(reads.values()) <= 8 * (1 + PREFETCH + 1)


def test_files_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And each opened again where it is needed again."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    monkeypatch.setattr(shards, "OPEN_FILES", 3)
    written = responses(12)
    found = on_disk(tmp_path, written, size=1)
    for number in np.random.default_rng(0).integers(0, 12, 40).tolist():
        assert found[number] == written[number]
        open_files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert 1 <= sum(name.startswith(str(tmp_path)) for name in open_files) <= 3


def test_frequent_tokens_are_those_of_all_texts(tmp_path: Path, reads: Counter[str]):
    """By hand: 5 stands three times, 4 and 9 twice, 7 once, and 8 in prompts only."""
    texts = [Response("t", "0", (8, 8, 8, 8), (5, 9, 4), True), Response("t", "1", (8,), (5, 9, 4, 5, 7), True)]
    found = on_disk(tmp_path / "a" / "b" / "c", texts, size=1)
    assert frequent_tokens(found, 2, ()).tolist() == [4, 5]
    assert sum(reads.values()) == 2
    assert frequent_tokens(found, 3, (30,)).tolist() == [4, 5, 30]
    assert frequent_tokens(found, 99, (5, 30)).tolist() == [4, 5, 7, 9, 30]
    assert frequent_tokens(found, 99, (), 1).tolist() == [4, 5, 9]
