"""Training goes on from an artifact with another draft vocabulary: W2 keeps the rows of the tokens both have."""

from pathlib import Path

import numpy as np

from configs.schema import load_recipe
from models.drafters.artifact import write_artifact
from tests.tiny import make_artifact, make_drafter_config, make_target
from train.objectives.dflash_build import new_drafter


def test_rows_follow_their_tokens(tmp_path: Path):
    old = make_artifact(draft_vocab_size=30, markov_rank=3)
    write_artifact(old, tmp_path)
    recipe = load_recipe("smoke.yaml", [f"drafter.init_from={tmp_path}"])
    for vocab in (np.arange(5, 45), None):
        size = None if vocab is None else len(vocab)
        config = make_drafter_config(draft_vocab_size=size, markov_rank=3)
        drafter = new_drafter(recipe, config, make_target(), vocab)
        tokens = np.arange(61) if vocab is None else vocab
        rows = dict(zip(old.draft_vocab.tolist(), np.asarray(old.weights["markov_w2"]), strict=True))
        expected = [rows.get(token, np.zeros(3)) for token in tokens.tolist()]
        assert np.array_equal(drafter.markov_w2[...], expected)
        assert np.array_equal(drafter.markov_w1[...], old.weights["markov_w1"])
