"""State cannot drift: after any accept/reject pattern both caches equal a fresh prefill of the accepted tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import whole
from models.decode import make_engine, prefill, step
from models.drafters import Draft
from tests.tiny import make_artifact, make_target


@pytest.mark.parametrize(("seed", "page"), [(0, None), (1, None), (1, 7)])
def test_caches_equal_a_fresh_prefill(seed: int, page: int | None, monkeypatch: pytest.MonkeyPatch):
    import models.decode

    target = make_target(seed, eos_ids=())
    engine = make_engine(target, make_artifact(seed))
    rng = np.random.default_rng(seed)
    prompt = jnp.asarray(rng.integers(3, 60, (2, 9)), jnp.int32)
    length = jnp.array([9, 6], jnp.int32)
    state = prefill(engine, prompt, length, length + 60, length, capacity=96, page=page)
    honest = models.decode.propose

    def corrupted(engine, state, draft, *options):
        """The target's own next tokens where it can be known, else the drafter's: a mixture of right and wrong."""
        proposal, copied = honest(engine, state, draft, *options)
        right = rng.random(proposal.tokens.shape) < 0.7
        tokens = jnp.where(right, best_drafts(engine, state, draft.width), proposal.tokens)
        return dataclasses.replace(proposal, tokens=tokens), copied

    monkeypatch.setattr(models.decode, "propose", corrupted)
    runs = set()
    for width in (5, 3, 5, 1, 4, 5, 5):
        before = np.asarray(state.rows.length)
        state = step(engine, state, Draft("drafter", width))
        runs |= set((np.asarray(state.rows.length) - before).tolist())
    assert len(runs) > 2, f"accepts and rejects of several lengths, got {runs}"
    for row in range(2):
        end = int(state.rows.length[row]) - 1
        length, stop, seed = jnp.array([end]), jnp.array([90]), jnp.array([0])
        fresh = prefill(engine, state.rows.tokens[row : row + 1, :end], length, stop, seed, capacity=96)
        for grown, new in ((state.cache, fresh.cache), (state.drafter, fresh.drafter)):
            ours, expected = grown.slots(jnp.tile(jnp.arange(end), (2, 1))), new.slots(jnp.arange(end)[None])
            for mine, other in zip((*ours.keys, *ours.values), (*expected.keys, *expected.values), strict=True):
                assert np.abs(np.asarray(mine[row] - other[0])).max() <= 1e-5


def best_drafts(engine, state, width):
    """Greedy continuation of every row, by plain full forwards."""
    tokens = np.zeros((2, 96), np.int32)
    lengths = np.asarray(state.rows.length)
    for row, length in enumerate(lengths):
        tokens[row, :length] = np.asarray(state.rows.tokens)[row, :length]
    for ahead in range(width - 1):
        best = np.asarray(choices(engine.target, jnp.asarray(tokens)))
        for row, length in enumerate(lengths):
            tokens[row, length + ahead] = best[row, length + ahead - 1]
    return jnp.asarray([tokens[row, length : length + width - 1] for row, length in enumerate(lengths)])


@jax.jit
def choices(target, tokens):
    hidden, _, _ = target(tokens, whole(tokens))
    return jnp.argmax(target.logits(hidden), axis=-1)
