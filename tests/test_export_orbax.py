"""A drafter exported as Orbax parameters: read by orbax and nothing of ours, and back again without a bit changed."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from models.drafters.artifact import Artifact, read_artifact, write_artifact
from tests.tiny import make_artifact
from tests.tiny_run import called

CASES = [{}, {"markov_size": 12}, {"markov_rank": 3, "draft_vocab_size": 20}]


def export(source: Path, out: Path, *flags: str) -> None:
    done = called(["train", "export", "--drafter", str(source), "--out", str(out), *flags])
    assert done.returncode == 0, done.stderr


def equal(one: Artifact, other: Artifact) -> bool:
    same = jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), one.weights, other.weights))
    vocab = (one.draft_vocab is None) == (other.draft_vocab is None) and (
        one.draft_vocab is None or np.array_equal(one.draft_vocab, other.draft_vocab)
    )
    return same and vocab and one.config == other.config and one.origin == other.origin


@pytest.mark.parametrize("changes", CASES)
def test_there_and_back(tmp_path: Path, changes: dict):
    artifact = make_artifact(**changes)
    write_artifact(artifact, tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("the card")
    export(tmp_path / "a", tmp_path / "orbax", "--format", "orbax")

    tree = ocp.StandardCheckpointer().restore((tmp_path / "orbax" / "params").resolve())
    assert tree["fc"].shape == (64, 32)
    assert tree["layers"]["1"]["kv"].shape == (32, 2 * 2 * 8)
    assert np.array_equal(tree["layers"]["1"]["kv"], artifact.weights["layers"][1]["kv"])
    assert ("draft_vocab_ids" in tree) == ("draft_vocab_size" in changes)
    assert json.loads((tmp_path / "orbax" / "config.json").read_text())["block_size"] == 6

    export(tmp_path / "orbax", tmp_path / "b")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    export(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c" / "README.md").read_text() == "the card"


def test_orbax_artifact_orbax(tmp_path: Path):
    write_artifact(make_artifact(), tmp_path / "a")
    export(tmp_path / "a", tmp_path / "one", "--format", "orbax")
    export(tmp_path / "one", tmp_path / "b")
    export(tmp_path / "b", tmp_path / "two", "--format", "orbax")
    one, two = (ocp.StandardCheckpointer().restore((tmp_path / name / "params").resolve()) for name in ("one", "two"))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_bfloat16_and_plain(tmp_path: Path):
    artifact = make_artifact(draft_vocab_size=20)
    write_artifact(artifact, tmp_path / "a")
    export(tmp_path / "a", tmp_path / "half", "--dtype", "bfloat16")
    half = read_artifact(tmp_path / "half")
    assert not equal(half, artifact)
    rounded = jax.tree.map(lambda value: np.asarray(value, jax.numpy.bfloat16).astype(np.float32), artifact.weights)
    assert equal(half, dataclasses.replace(artifact, weights=rounded))
    export(tmp_path / "a", tmp_path / "plain", "--plain")
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "float32" in card
    assert "vllm serve" in card
    export(tmp_path / "half", tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "half" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert "bfloat16" in (tmp_path / "again" / "README.md").read_text()
    plain = read_artifact(tmp_path / "plain")
    assert plain.draft_vocab is None
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["architectures"] == ["DFlashDraftModel"]
    done = called(["train", "export", "--drafter", str(tmp_path), "--out", str(tmp_path / "x")])
    assert done.returncode == 2
    assert "no config.json" in done.stderr
