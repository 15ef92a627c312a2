"""Features are trained on only with the response they were computed from: a swapped, shortened or foreign record file
is refused in one line that names it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.errors import UserError
from configs.schema import load_recipe
from pipelines import shards
from pipelines.batches import RowSource, train_batches
from pipelines.feature_store import FeatureSource, FeatureStore
from pipelines.records import Response
from tests.tiny_run import Tiny, make_tiny, on_disk, recipe

HIDDEN = 4


def responses(lengths: list[int]) -> list[Response]:
    """Of the given lengths, no two alike."""
    return [Response("t", str(n), (n, 1), tuple(range(2, length)), True) for n, length in enumerate(lengths)]


def write(tmp_path: Path, written: list[Response]) -> FeatureStore:
    """Features of four responses a shard, as float32 of one tap and no final state."""
    (tmp_path / "asked").mkdir()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    asked = load_recipe(str(tmp_path / "tiny.yaml"), ["loss.ce=1.0", "loss.kl=0.0"])
    store = FeatureStore.of(asked, (0,), tmp_path / "asked")
    for index in range(0, len(written), 4):
        part = written[index : index + 4]
        store.write("train", index // 4, [np.full((r.length, HIDDEN), 7.0) for r in part], [r.ids for r in part])
    return store


def rows(store: FeatureStore, written: list[Response]) -> RowSource:
    texts = on_disk(store.directory.parent / "texts", written)
    return RowSource(texts, FeatureSource(store.directory, "train", HIDDEN), 40)


def test_whole_features_are_read(tmp_path: Path):
    written = responses([9, 9, 12, 9, 9, 9, 7, 9])
    row = rows(write(tmp_path, written), written)[0]
    assert row["features"].shape == (40, HIDDEN)
    assert set(row["features"].ravel().tolist()) == {0.0, 7.0}


@pytest.mark.parametrize("lengths", [[9] * 8, [9, 8, 9, 9, 12, 9, 9, 9]], ids=["of equal lengths", "of other lengths"])
def test_swapped_shards(tmp_path: Path, lengths: list[int]):
    """Refused before the first batch, whether or not the lengths give it away."""
    written = responses(lengths)
    store = write(tmp_path, written)
    first, second = shards.paths(store.directory / "train")
    shutil.move(first, tmp_path / "aside")
    shutil.move(second, first)
    shutil.move(tmp_path / "aside", second)
    with pytest.raises(ValueError, match=r"00000\.array_record: holds features of another response") as refusal:
        rows(store, written)
    assert "\n" not in str(refusal.value)
    assert "00000.json and prepare again" in str(refusal.value)


def test_a_record_of_another_response_inside_a_shard(tmp_path: Path):
    """Refused when its row is read, in the thread that reads ahead, and still as one of our own errors."""
    written = responses([9] * 8)
    store = write(tmp_path, [*written[:5], written[6], written[5], written[7]])
    source = rows(store, written)
    batches = train_batches(source, {2: 3}, rows=len(source), seed=0)
    with pytest.raises(UserError, match=r"00001\.array_record: holds features of another response than number 5"):
        next(batches)


def test_responses_written_again(tmp_path: Path):
    """As many, as long, but other tokens."""
    store = write(tmp_path, responses([9] * 8))
    others = [Response("t", r.id, r.prompt_ids, (*r.response_ids[:-1], 99), True) for r in responses([9] * 8)]
    with pytest.raises(ValueError, match="another response than number 0"):
        rows(store, others)


def test_another_number_of_responses(tmp_path: Path):
    store = write(tmp_path, responses([9] * 8))
    with pytest.raises(ValueError, match="features of 8 responses where there are 7"):
        rows(store, responses([9] * 7))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    done = tiny.called(tiny.root / "run", "train.steps=2")
    assert done.returncode == 0, done.stderr
    return tiny


def test_training_is_refused(trained: Tiny):
    """The command: shards 0 and 1 of the training features swapped."""
    (folder,) = (trained.root / "data" / "features").glob("*/train")
    first, second = folder / "00000.array_record", folder / "00001.array_record"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    done = trained.train(trained.root / "swapped", "train.steps=2")
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().split("\n")
    assert line.startswith(f"error: {first}: holds features of another response")
