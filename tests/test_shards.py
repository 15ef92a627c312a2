"""Shards on disk: complete data are only read, and a damaged file is named with the mark to delete."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema import load_recipe
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines import shards
from pipelines.prepare import prepare
from tests.tiny_run import make_tiny


def test_complete_data_need_no_writing(tmp_path: Path):
    """So that they may lie on a read-only disk: no file or directory changes, not even by a rename."""
    recipe = load_recipe(str(make_tiny(tmp_path).config), ["prompts.limit=3", "prompts.heldout=2"])
    recipe = dataclasses.replace(recipe, responses=dataclasses.replace(recipe.responses, max_new_tokens=4))
    source = recipe.target.source
    target, tokenizer = load_target(source, "float32"), load_tokenizer(source)

    def state() -> dict[str, tuple[int, int]]:
        found = {path: path.stat() for path in sorted((tmp_path / "data").rglob("*"))}
        return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}

    first = prepare(recipe, target, tokenizer)
    before = state()
    assert sum(name.endswith("manifest.json") for name in before) == 2
    assert sum(name.endswith(".array_record") for name in before) == 4
    assert prepare(recipe, target, tokenizer) == first
    assert state() == before


def test_the_damaged_file_is_named_with_its_mark(tmp_path: Path):
    for index in range(3):
        shards.write_shard(tmp_path, index, [b"record"] * 4, {})
    assert len(shards.Records(tmp_path)) == 12
    damaged = tmp_path / "00001.array_record"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged") as caught:
        shards.Records(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{damaged}: damaged (")
    assert message.endswith(f"; delete {tmp_path}/00001.json and prepare again")
    assert "\n" not in message
    (tmp_path / "00001.json").unlink()  # as it says
    assert shards.missing(tmp_path, 12, 4) == [(1, range(4, 8))]
    assert len(shards.Records(tmp_path)) == 8
