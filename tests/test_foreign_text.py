"""Text that is none, and rows a chat template refuses, are named by file and row in one line."""

import json
from pathlib import Path

import pytest

from configs.paths import read_object, read_text
from configs.schema import load_recipe
from models.drafters.artifact_config import read_config
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines.prompt_files import encode_prompt, read_prompts
from serve.report import read_report
from tests.tiny_run import TEMPLATE, write_target


def row(**fields) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}) + "\n"


@pytest.mark.parametrize("spoilt", [{"messages": [{"role": "user", "content": "a \ud800 b"}]}, {"reference": "\udfff"}])
def test_half_a_surrogate_pair_in_a_prompt_file(tmp_path: Path, spoilt: dict):
    (tmp_path / "a.jsonl").write_text(row() + row(**spoilt))
    half = "ud800" if "messages" in spoilt else "udfff"
    with pytest.raises(
        ValueError, match=rf"a\.jsonl, row 2: expected text, got \\{half}, half of a surrogate pair"
    ) as caught:
        read_prompts(tmp_path / "a.jsonl")
    str(caught.value).encode()  # the message itself can be printed


def test_half_a_surrogate_pair_in_a_message(tmp_path: Path):
    """As a terminal in another encoding hands it on."""
    tokenizer = load_tokenizer(str(write_target(tmp_path / "target")))
    with pytest.raises(ValueError, match=r"expected text, got '\\udcff', half of a surrogate pair"):
        tokenizer.encode_chat([{"role": "user", "content": "caf\udcff"}])


def test_a_template_that_refuses_one_row(tmp_path: Path):
    target = write_target(tmp_path / "target")
    config = json.loads((target / "tokenizer_config.json").read_text())
    alternate = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role\nhere') }}{% endif %}"
    config["chat_template"] = alternate + TEMPLATE
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    (tmp_path / "a.jsonl").write_text(row(task="t") + row(task="t", id="x", messages=turns))
    good, bad = read_prompts(tmp_path / "a.jsonl")
    tokenizer = load_tokenizer(str(target))
    assert encode_prompt(tokenizer, good) == tokenizer.encode_chat(good.chat())
    with pytest.raises(
        ValueError, match=r"a\.jsonl, row 2: the chat template refuses the turns system, user: no system role"
    ):
        encode_prompt(tokenizer, bad)


def test_files_in_another_encoding(tmp_path: Path):
    latin = '{"name": "café"}'.encode("latin-1")
    target = write_target(tmp_path / "target")
    for name in ("config.json", "report.json", "recipe.yaml"):
        (tmp_path / name).write_bytes(latin)
    (target / "config.json").write_bytes(latin)
    words = "expected UTF-8 text, got byte 0xe9 at 13; save it as UTF-8"
    for read, where in (
        (lambda: read_config(tmp_path), "config.json"),
        (lambda: load_target(str(target), "float32"), "target/config.json"),
        (lambda: load_recipe(str(tmp_path / "recipe.yaml")), "recipe.yaml"),
        (lambda: read_report(tmp_path), "report.json"),
    ):
        with pytest.raises(ValueError, match=f"{where}: {words}"):
            read()


def test_reading_by_hand(tmp_path: Path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_text(tmp_path / "a") == '{"a": "é"}'
    assert read_object(tmp_path / "a") == {"a": "é"}
    (tmp_path / "b").write_text("[1]")
    with pytest.raises(ValueError, match="b: expected a JSON object, got list"):
        read_object(tmp_path / "b")
    with pytest.raises(ValueError, match="none: expected a readable file, got: No such file or directory"):
        read_text(tmp_path / "none")
