"""What an exported drafter says of itself was measured on it: held-out acceptance on the checkpoint it comes from, the
report's figures on the very weights it lies in."""

import json
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from models.drafters.artifact import Artifact, read_artifact, write_artifact
from tests.test_report import made_up_report
from tests.tiny import make_artifact
from tests.tiny_run import recipe
from train.acceptance import Acceptance, Walk
from train.checkpoint import LAYOUT, Checkpoints
from train.export import Form, export, write_description

# 40 answers, each of two steps. The last step of an answer counts for tau alone.
GOOD = Acceptance(6, [Walk("sums", [3, 1])] * 40)  # tau 2; slots 1 and 2 always right, 3 never
POOR = Acceptance(6, [Walk("sums", [1, 1])] * 40)  # tau 1; slot 1 never right


def checkpointed(run: Path, steps: dict[int, tuple[Artifact, Acceptance | None]]) -> Path:
    """A run directory with these checkpoints, stopped right after the last was saved."""
    checkpoints = Checkpoints(run / "checkpoints", keep=9)
    for step, (artifact, acceptance) in steps.items():
        layers = {str(index): layer for index, layer in enumerate(artifact.weights["layers"])}
        trees = {"params": {"drafter": artifact.weights | {"layers": layers}}, "optimizer": {"m": jnp.zeros(1)}}
        measured: dict[str, Any] = {"tau": None, "acceptance": None}
        if acceptance is not None:
            measured = {"tau": acceptance.tau, "acceptance": acceptance.to_dict()}
        batches = iter(grain.MapDataset.range(9).to_iter_dataset())
        checkpoints.save(step, trees, batches, {"seed": 0, "identity": {"layout": LAYOUT}, **measured})
    checkpoints.close()
    write_description(run, make_artifact().config, None, {"target": "tiny"})
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe(run)))
    (run / "provenance.json").write_text(json.dumps({"revision": "abc", "device": "a machine"}))
    return run


def report_of(artifact: Path, run: Path) -> None:
    report = made_up_report() | {"drafter_info": {"digest": read_artifact(artifact).digest()}}
    (run / "report.json").write_text(json.dumps(report))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return checkpointed(
        tmp_path / "run", {4: (make_artifact(4), GOOD), 8: (make_artifact(8), None), 12: (make_artifact(12), POOR)}
    )


@pytest.mark.parametrize(
    ("which", "seed", "prior", "card"),
    [("best", 4, [1.0, 1.0, 0.0], "| sums | 2.00 |"), ("last", 12, [0.0], "| sums | 1.00 |"), (8, 8, None, None)],
)
def test_acceptance_is_of_the_exported_checkpoint(
    run: Path, tmp_path: Path, which: str | int, seed: int, prior: list[float] | None, card: str | None
):
    export(run, tmp_path / "out", which)
    found = read_artifact(tmp_path / "out")
    assert np.array_equal(found.weights["fc"], make_artifact(seed).weights["fc"])
    assert found.origin.get("heldout_acceptance") == prior
    assert found.acceptance == (prior or [0.5])
    text = (tmp_path / "out" / "README.md").read_text()
    assert (card in text) if card else ("Held-out acceptance" not in text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_report_is_shown_for_the_drafter_it_was_made_with(run: Path, tmp_path: Path, dtype: str):
    """Export, evaluate into the run, export again: the card has the figures. Another checkpoint's has not."""
    how = Form(dtype=dtype)
    export(run, tmp_path / "out", "best", how)
    assert "speedup" not in (tmp_path / "out" / "README.md").read_text()
    report_of(tmp_path / "out", run)
    export(run, tmp_path / "out", "best", how)
    assert "| code |" in (tmp_path / "out" / "README.md").read_text()
    export(run, tmp_path / "out", "last", how)
    assert "speedup" not in (tmp_path / "out" / "README.md").read_text()


def test_the_digest_names_weights_and_shape(tmp_path: Path):
    """It outlives a round trip through disk; a changed weight, mask token or draft vocabulary changes it."""
    artifact = make_artifact(draft_vocab_size=20)
    write_artifact(artifact, tmp_path / "a")
    assert read_artifact(tmp_path / "a").digest() == artifact.digest()
    assert artifact.draft_vocab is not None
    one_weight = jax.tree.map(lambda leaf: leaf, artifact.weights)
    one_weight["layers"][1]["down"] = one_weight["layers"][1]["down"].at[0, 0].add(1e-3)
    others = [
        make_artifact(draft_vocab_size=20, mask_token_id=59),
        Artifact(artifact.config, artifact.weights, artifact.draft_vocab[::-1].copy(), {}),
        Artifact(artifact.config, one_weight, artifact.draft_vocab, {}),
    ]
    assert len({artifact.digest(), *(other.digest() for other in others)}) == 4


def test_a_drafter_that_is_not_finite_is_not_exported(tmp_path: Path):
    broken = make_artifact()
    broken.weights["fc"] = broken.weights["fc"].at[3, 3].set(jnp.nan)
    run = checkpointed(tmp_path / "run", {4: (broken, None)})
    with pytest.raises(ValueError, match="a weight of this drafter is not finite; export another checkpoint"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
