"""How weights, caches and tables lie on a CPU in bfloat16 changes the time a step takes and nothing that it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decode import make_engine, prefill
from models.drafters import Draft
from models.sharding import looked_up
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_eagle3, make_target

PROMPTS = [np.random.default_rng(seed).integers(3, 60, 9 + 7 * seed).tolist() for seed in range(3)]


@pytest.mark.parametrize(
    "artifact",
    [make_artifact(), make_artifact(markov_rank=8), make_artifact(markov_size=24), make_eagle3()],
    ids=["plain", "Markov head", "MLP head", "EAGLE-3"],
)
def test_turned_drafters_draft_as_others(artifact):
    """What is bound lies [out, in]; the same weights [in, out] draft the same tokens."""
    target = make_target(dtype="bfloat16", eos_ids=())
    engine = make_engine(target, artifact)
    turned = engine.drafter.network
    assert turned.turned
    assert turned.fc[...].shape == artifact.weights["fc"].shape[::-1]
    weights = jax.tree.map(lambda weight: weight.astype("bfloat16"), artifact.weights)
    upright = type(turned)(artifact.config, weights, "bfloat16")
    other = dataclasses.replace(engine, drafter=dataclasses.replace(engine.drafter, network=upright))
    draft = Draft("drafter", 4)
    ours, theirs = (
        Decoder(each, Letters(), draft).generate(PROMPTS, max_new_tokens=20, seeds=[0] * 3) for each in (engine, other)
    )
    assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]
    assert [answer.runs for answer in ours] == [answer.runs for answer in theirs]


def test_keys_and_values_are_kept_in_float32_as_they_were():
    target = make_target(dtype="bfloat16")
    cache = target.empty_cache(1, 32)
    assert {array.dtype for array in [*cache.keys, *cache.values]} == {jnp.dtype("float32")}
    prompt, one = np.array([PROMPTS[2]], np.int32), np.array([len(PROMPTS[2])], np.int32)
    state = prefill(make_engine(target, make_artifact()), prompt, one, one + 4, 0 * one, capacity=32)
    for array in [*state.cache.keys, *state.cache.values]:
        np.testing.assert_array_equal(array, array.astype(jnp.bfloat16).astype(jnp.float32))
        assert np.asarray(array).any()


def test_rows_of_a_table_and_their_gradient():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((40, 8)), jnp.bfloat16)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 30)), jnp.int32)  # some of them twice
    given = jnp.asarray(rng.standard_normal((2, 30, 8)), jnp.bfloat16)
    ours, ours_back = jax.vjp(lambda table: looked_up(table, tokens, None), table)
    theirs, theirs_back = jax.vjp(lambda table: table[tokens], table)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours_back(given)[0], theirs_back(given)[0])
