"""An EAGLE-3 drafter goes the whole way: a recipe trains it, its loss falls, the export decodes what the plain loop
writes, and another run starts from it."""

from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from configs.schema import load_recipe
from models.drafters import Draft
from serve.load import open_decoder
from tests.tiny_run import make_tiny, recipe
from train import export_drafter, train_drafter
from train.metrics import read_metrics

DRAFTER = {
    "kind": "eagle3",
    "target_layer_ids": [0, 1, 1],
    "width": 4,
    "norm_before_fc": False,
    "norm_before_residual": False,
    "draft_vocab_size": 40,
    "init": "target",
    "init_from": None,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tiny(tmp_path_factory.mktemp("tiny")).root
    given = recipe(root) | {"drafter": DRAFTER}
    given["loss"] |= {"weighting": "decay", "gamma": 4.4814, "ce": 0.0, "kl": 1.0, "tv": 0.0}
    given["batches"]["blocks"] = {4: 16}
    (root / "eagle3.yaml").write_text(yaml.safe_dump(given))
    return root


def test_trained_exported_decoded(root: Path):
    run = train_drafter(load_recipe(str(root / "eagle3.yaml"), ["optimizer.learning_rate=0.01", "train.steps=20"]))
    losses = [line["values"]["loss"] for line in read_metrics(run) if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    export_drafter(run, root / "artifact")
    assert "method" in (root / "artifact" / "README.md").read_text(), "says how vLLM serves it"

    prompts = [[70, 71, 72, 73], [80, 81, 82, 83, 84, 85]]
    decoders = [
        open_decoder(str(root / "target"), root / "artifact", draft=Draft("drafter", width)) for width in (1, 4)
    ]
    plain, drafted = (decoder.generate(prompts, max_new_tokens=20) for decoder in decoders)
    assert [answer.ids for answer in drafted] == [answer.ids for answer in plain]

    more = [f"drafter.init_from={root / 'artifact'}", f"run.dir={root / 'more'}", "train.steps=1"]
    again = train_drafter(load_recipe(str(root / "eagle3.yaml"), more))
    assert read_metrics(again)[0]["values"]["loss"] < 0.95 * losses[0], "of the same batch, after the first run's steps"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drafter.target_layer_ids=[0, 1]", r"expected three, a low, a middle and a high layer"),
        ("drafter.target_layer_ids=null", r"drafter.target_layer_ids: expected a list of int"),
        ("drafter.markov_size=8", r"unknown key drafter.markov_size"),
        ("drafter.norm_before_fc=true drafter.init_from=ARTIFACT", r"another drafter than the recipe's"),
    ],
)
def test_refusals(root: Path, override: str, message: str):
    overrides = override.replace("ARTIFACT", str(root / "artifact")).split(" drafter")
    overrides = [overrides[0], *(f"drafter{text}" for text in overrides[1:])]
    with pytest.raises(UserError, match=message):
        train_drafter(load_recipe(str(root / "eagle3.yaml"), [*overrides, f"run.dir={root / 'refused'}"]))
