"""First weights: training goes on from an artifact with another draft vocabulary, W2 keeping the rows of the tokens
both have; a new Markov head begins without effect, at the target's own embedding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.schema import load_recipe
from models.drafters.artifact import read_artifact, write_artifact
from models.drafters.dflash import Drafter
from models.drafters.dflash_weights import projected_embedding, projected_head
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


def test_an_artifact_that_does_not_say_how_many_layers_its_target_has(tmp_path: Path):
    """As `speculators` writes them."""
    write_artifact(make_artifact(num_target_layers=None), tmp_path)
    assert read_artifact(tmp_path).config.num_target_layers is None
    recipe = load_recipe("smoke.yaml", [f"drafter.init_from={tmp_path}"])
    assert new_drafter(recipe, make_drafter_config(), make_target(), None).config.num_target_layers == 4


def test_a_projected_embedding_about_keeps_angles():
    target = make_target(hidden_size=256)
    ours, theirs = np.asarray(projected_embedding(target, 128, jax.random.key(1))), np.asarray(target.embedding[...])
    assert np.sqrt(np.mean(ours**2)) == pytest.approx(1.0, abs=0.05)
    ours, theirs = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (ours, theirs))
    assert np.abs(ours @ ours.T - theirs @ theirs.T).std() < 1.1 / 128**0.5


@pytest.mark.parametrize("start", ["target", "artifact"])
def test_a_new_head_begins_there(tmp_path: Path, start: str):
    changes = ["drafter.init=target"]
    if start == "artifact":
        write_artifact(make_artifact(), tmp_path)
        changes.append(f"drafter.init_from={tmp_path}")
    target = make_target()
    drafter = new_drafter(load_recipe("smoke.yaml", changes), make_drafter_config(markov_rank=3), target, None)
    assert not drafter.markov_w2[...].any()
    assert np.allclose(drafter.markov_w1[...], projected_embedding(target, 3, jax.random.key(0)))


def test_all_of_a_projected_head_says_what_the_head_does():
    """With as many directions as the hidden state has, W2 @ x is the head's change of the logits, up to a constant."""
    target, vocab = make_target(), np.arange(4, 44)
    d, usual = target.config.hidden_size, float(np.sqrt(np.mean(np.square(target.norm[...]))))
    w2 = np.asarray(projected_head(target, d, vocab))
    head = np.asarray(target.head[...])[vocab]
    hidden = np.random.default_rng(0).normal(size=(d, 7))
    logits = head @ hidden
    logits -= logits.mean(axis=0)
    x, *_ = np.linalg.lstsq(w2, logits, rcond=None)
    assert np.allclose(w2 @ x, logits, atol=1e-4)
    assert np.allclose(np.linalg.norm(x, axis=0) * usual, np.linalg.norm(hidden, axis=0), rtol=0.2)
    few = projected_head(target, 3, vocab)
    assert np.allclose(few, w2[:, -3:], atol=1e-5)
    assert not np.asarray(projected_head(target, d + 2, vocab))[:, d:].any()


@pytest.mark.parametrize("kind", ["rnn", "xpress"])
def test_a_head_that_sees_hidden_states_begins_at_both(kind: str):
    """It says nothing at first, and what it is to see has a gradient from the first step on."""
    target, head = make_target(), {"markov_rank": 3, "markov_head_type": kind}
    drafter = new_drafter(load_recipe("smoke.yaml", ["drafter.init=target"]), make_drafter_config(**head), target, None)
    assert np.allclose(drafter.markov_w1[...], projected_embedding(target, 3, jax.random.key(0)))
    assert np.allclose(drafter.markov_w2[...], projected_head(target, 3, None))
    hidden = jax.random.normal(jax.random.key(2), (2, 4, target.config.hidden_size))
    before = jnp.arange(6).reshape(2, 3) + 5

    def says(drafter: Drafter) -> jax.Array:
        states = drafter.scored_states(hidden, before, target.embed(before), before[:, 0])
        return states[..., -3:] @ drafter.markov_w2[...].T

    assert not np.asarray(says(drafter)).any()
    towards = nnx.grad(lambda drafter: says(drafter)[..., 9].sum())(drafter)
    assert any(np.abs(part).max() > 1e-3 for part in jax.tree.leaves(nnx.state(towards.mixing)))
