"""Compiling a recipe and decoding for a topology: the trainer's and the decoder's own programs on a target's shape
alone. The chip is this CPU here, so the program is another; what it holds of weights and data is not."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from models import aot
from serve.__main__ import main as serve
from tests.tiny_run import HEADS, HIDDEN, KV_HEADS, LAYERS, MLP, VOCAB, recipe, write_target
from train.__main__ import main as train

NORMS = 2 * HIDDEN
LAYER = 2 * HIDDEN**2 + 2 * HIDDEN * HIDDEN // HEADS * KV_HEADS + 3 * HIDDEN * MLP + NORMS
TARGET = LAYERS * LAYER + 2 * VOCAB * HIDDEN + HIDDEN


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config.json and a recipe, and no weights."""
    root = tmp_path_factory.mktemp("shape")
    (write_target(root / "target") / "model.safetensors").unlink()
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe(root)))
    return root


@pytest.fixture(autouse=True)
def this_cpu(monkeypatch: pytest.MonkeyPatch):
    here = aot.Topology("v5e:1x1", aot.CHIPS["v5e"], jax.devices()[:1])
    monkeypatch.setattr(aot, "topology", lambda name: here)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_recipe(shape: Path, capsys: pytest.CaptureFixture[str]):
    overrides = "batches.rows=4 responses.batch=16"
    assert train(f"compile --config {shape}/tiny.yaml --topology v5e:1x1 --json {overrides}".split()) == 0
    found = last_line(capsys)["tiny"]
    held, written = found["train_step"]["memory"], found["response_step"]["memory"]
    drafter = LAYER + 2 * HIDDEN + 2 * (HIDDEN // HEADS) + HIDDEN**2  # its norms of heads; fc, of one tap
    assert held["parameters"] == 4 * drafter
    assert held["optimizer"] == pytest.approx(2 * 4 * drafter, abs=64)  # two moments, and counters
    assert held["target"] == 4 * (2 * VOCAB * HIDDEN + VOCAB)  # embedding, head, rows of the head
    assert held["batch"] == 4 * (4 * 128 * 3 + 4 * (4 + 4) + 4 * 128 * 2 * HIDDEN)  # a tap and the final state
    assert written["target"] == 4 * TARGET
    assert written["cache"] == 4 * 2 * LAYERS * 16 * 60 * HIDDEN // HEADS * KV_HEADS
    assert found["step_flops"] > 0
    assert 0 < found["estimated_mfu"] < 1


def test_decoding(shape: Path, capsys: pytest.CaptureFixture[str]):
    drafters = "--drafter dflash/4 --drafter dflash/4/vocab=32 --drafter dflash/8/tree=16"
    assert serve(f"compile --target {shape}/target --topology v5e:1x1 --context 256 --json {drafters}".split()) == 0
    steps = last_line(capsys)["steps"]
    assert list(steps) == ["plain", *drafters.split()[1::2]]
    assert [step["width"] for step in steps.values()] == [1, 4, 4, 17]
    assert all(step["memory"]["target"] == 2 * TARGET for step in steps.values())
    saved = steps["dflash/4"]["memory"]["drafter"] - steps["dflash/4/vocab=32"]["memory"]["drafter"]
    assert saved == 2 * (VOCAB - 32) * HIDDEN - 4 * 32  # rows of the head, less the tokens they are of
    assert np.all([step["over_plain"] >= 1 for step in steps.values()])


def test_pages_hold_what_slots_hold(shape: Path, capsys: pytest.CaptureFixture[str]):
    held = []
    for page in ("", "--page 64"):
        serve(f"compile --target {shape}/target --topology v5e:1x1 --context 256 --json --rows 2 {page}".split())
        held.append(last_line(capsys)["steps"]["plain"]["memory"]["cache"])
    assert held[1] - held[0] == 4 * 2 * 4  # the table
