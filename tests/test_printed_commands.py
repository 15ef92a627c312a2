"""Commands that are printed can be pasted: a shell hands them on word for word."""

import dataclasses
import shlex
import signal
from pathlib import Path

import pytest

from configs.schema import load_recipe
from models.drafters.artifact import Artifact
from pipelines import __main__ as preparation
from tests.tiny import make_artifact, make_eagle3
from train import card, run

OVERRIDES = ["batches.blocks={4: 90}", "prompts.sources=[own, a b.jsonl]", "run.name=it's"]


def next_command(said: str) -> list[str]:
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


def test_after_preparation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in ("models.sources.load_target", "models.tokenizer.load_tokenizer", "pipelines.prepare.prepare"):
        monkeypatch.setattr(name, lambda *_: None)
    overrides = ["prompts.sources=[own, a b.jsonl]", "run.name=it's"]
    assert preparation.main(["prepare", "--config", "smoke.yaml", *overrides]) == 0
    expected = ["python", "-m", "train", "--config", "smoke.yaml", *overrides]
    assert next_command(capsys.readouterr().out) == expected


@pytest.mark.parametrize("place", ["my drafter", "plain", "it's"])
@pytest.mark.parametrize(
    "artifact",
    [make_artifact(), make_artifact(markov_size=8), make_eagle3(), make_eagle3(norm_before_fc=True)],
    ids=["plain", "own", "eagle3", "eagle3, own"],
)
def test_on_the_card(place: str, artifact: Artifact):
    artifact = dataclasses.replace(artifact, origin={"target": "my target"})
    lines = card.bare_card(Path("x"), Path(place), artifact, "float32").splitlines()
    (own,) = [shlex.split(line) for line in lines if line.strip().startswith("python -m serve eval")]
    assert own[own.index("--drafter") + 1] == place
    assert own[own.index("--target") + 1] == "my target"
    to_gguf = [shlex.split(line) for line in lines if line.strip().startswith("python -m train export")]
    assert len(to_gguf) == (artifact.beyond_plain() == {} and artifact.kind == "dflash")
    assert all(words[words.index("--drafter") + 1] == place for words in to_gguf)
    for line in (line for line in lines if line.strip().startswith("vllm serve")):
        words = shlex.split(line)
        assert words[2] == "my target"
        assert f'"model": "{place}"' in words[-1]


def test_after_a_training_that_was_stopped(monkeypatch: pytest.MonkeyPatch):
    """What is printed before `--resume`."""
    told: list[str] = []
    monkeypatch.setattr(run, "run", lambda *_, **__: signal.SIGTERM)
    monkeypatch.setattr(run, "say", told.append)
    recipe = load_recipe("smoke.yaml")
    assert run.train(recipe, config="my recipe.yaml", overrides=OVERRIDES, resume=False) == 128 + signal.SIGTERM
    assert shlex.split(told[0])[3:] == ["train", "--config", "my recipe.yaml", *OVERRIDES, "--resume"]
