"""Proposals may branch: a chain written as a tree of one branch is verified as the chain is, and a tree of several
branches changes neither the greedy text nor the distribution, over slots and over pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from models.decode import Engine, make_engine, prefill, segment
from models.drafters import SINGLE, Draft, Proposal
from models.sampling import Sampling
from models.verify import GREEDILY, Speculation, verify_greedy, verify_tokens
from tests.test_decoder_lossless import PROMPTS, outputs, padded, plain, speculate
from tests.test_sampling_exact import (
    PROMPT,
    ROWS,
    SAMPLES,
    VOCAB,
    assert_distributed,
    counted,
    enumerated,
    prefilled,
    tiny,
)
from tests.tiny import make_artifact, make_target

PARENTS = (0, 0, 1, 1, 2, 3, 6)  # two branches, the first with two of its own; a chain of three below


@struct.dataclass
class Bush:
    """Draws every node from a row of `table`, that of the token it follows; the tokens themselves stand in for a
    network. `inner` is a drafter whose state is kept, so that what it reads can be looked at."""

    inner: object
    table: jax.Array  # [V, V] probabilities
    final: bool = struct.field(pytree_node=False, default=False)
    taps: tuple[int, ...] = struct.field(pytree_node=False, default=())
    width: int = struct.field(pytree_node=False, default=len(PARENTS) + 1)

    def init_state(self, batch, capacity):
        return self.inner.init_state(batch, capacity)

    def read(self, state, features, tokens, positions):
        return self.inner.read(state, features, tokens, positions)

    def propose(self, target, state, rows, *, key, width, speculation):
        block, q = [rows.anchors], []
        for node, parent in enumerate(PARENTS):
            chances = self.table[block[parent]]
            draws = jax.vmap(lambda key, row, n=node: jax.random.categorical(jax.random.fold_in(key, n), jnp.log(row)))
            block.append(draws(key, chances).astype(jnp.int32))
            q.append(chances)
        parents = jnp.broadcast_to(jnp.array(PARENTS), (len(key), len(PARENTS)))
        q = None if speculation.sampling.greedy else jnp.stack(q, axis=1)
        return Proposal(jnp.stack(block[1:], axis=1), parents, q, jnp.ones(len(key), bool))


def bush(target, artifact) -> Engine:
    engine = make_engine(target, artifact)
    size = target.config.vocab_size
    table = jnp.asarray(np.random.default_rng(4).dirichlet(np.full(size, 0.3), size), jnp.float32)
    return Engine(target, Bush(engine.drafter, table + 1e-6, taps=engine.drafter.taps))


@pytest.mark.parametrize("page", [None, 5])
def test_the_greedy_text(page: int | None):
    """Over eleven tokens, so that branches are often right."""
    target = make_target(vocab_size=11, eos_ids=(2,))
    engine = bush(target, make_artifact(vocab_size=11, mask_token_id=10))
    prompts = [[token % 11 for token in prompt] for prompt in PROMPTS]
    rows, lengths = padded(prompts)
    state = prefill(engine, rows, lengths, lengths + 40, lengths, capacity=128, page=page)
    state = segment(engine, state, 1000, Draft("drafter", engine.drafter.width))
    assert outputs(state, prompts) == plain(target, prompts)
    runs = {
        run for row, count in zip(state.rows.runs, state.rows.num_steps, strict=True) for run in row[:count].tolist()
    }
    assert len(runs) >= 3, "paths of several lengths"
    for row, end in enumerate(state.rows.length.tolist()):
        one = jnp.array([end - 1])
        fresh = prefill(engine, state.rows.tokens[row : row + 1, : end - 1], one, one + 9, one, capacity=128)
        places = jnp.arange(end - 1)[None]
        for grown, new in ((state.cache, fresh.cache), (state.drafter, fresh.drafter)):
            ours, expected = grown.slots(jnp.tile(places, (len(prompts), 1))), new.slots(places)
            for mine, other in zip((*ours.keys, *ours.values), (*expected.keys, *expected.values), strict=True):
                assert np.abs(np.asarray(mine[row] - other[0])).max() <= 1e-5, "what was accepted lies side by side"


@pytest.mark.parametrize(("head", "page"), [({"markov_rank": 8}, 5), ({"markov_size": 24}, None)])
def test_the_greedy_text_from_drafted_trees(head: dict[str, int], page: int | None):
    """Trees that a drafter of random weights makes of its blocks, beside rows that copy, and alone."""
    target = make_target(vocab_size=11, eos_ids=(2,))
    engine = make_engine(target, make_artifact(vocab_size=11, mask_token_id=10, **head))
    prompts = [[token % 11 for token in prompt] for prompt in PROMPTS]
    expected, draft = plain(target, prompts), Draft("drafter", 4, copy=6, tree=8)
    state = speculate(engine, prompts, draft, page=page)
    assert outputs(state, prompts) == expected
    assert int(state.rows.num_steps.sum()) < sum(map(len, expected)) / 1.3, "nodes are accepted"
    assert outputs(speculate(engine, prompts[:1], draft, page=page), prompts[:1]) == expected[:1]


@pytest.mark.parametrize(("sampling", "page"), [(Sampling(1.0), None), (Sampling(1.3, top_k=3), 3)])
def test_the_distribution(sampling: Sampling, page: int | None):
    target, artifact = tiny()
    engine, counts, steps = bush(target, artifact), {}, 0
    for part in range(SAMPLES // ROWS):
        state = prefilled(engine, PROMPT, jnp.arange(ROWS) + part * ROWS, page=page)
        state = segment(engine, state, 100, Draft("drafter", engine.drafter.width), Speculation(sampling))
        counted(state.rows, counts)
        steps += int(state.rows.num_steps.sum())
    assert_distributed(counts, enumerated(target, sampling))
    assert sum(len(text) * count for text, count in counts.items()) > 1.1 * steps, "nodes were accepted"


def test_a_chain_is_a_tree_of_one_branch():
    """The same uniform draws: the same nodes kept, the same token after them."""
    rng, width, count = np.random.default_rng(0), 5, 200
    p = jnp.asarray(rng.dirichlet(np.full(VOCAB, 0.5), (count, width)), jnp.float32)
    q = jnp.asarray(rng.dirichlet(np.full(VOCAB, 0.5), (count, width - 1)), jnp.float32)
    drafts = jnp.argmax(q, axis=-1).astype(jnp.int32)
    parents = jnp.broadcast_to(jnp.arange(width - 1), drafts.shape)
    keys = jax.random.split(jax.random.key(1), count)
    chain, tree = jax.vmap(verify_tokens)(keys, drafts, q, p), jax.vmap(verify_tokens)(keys, drafts, q, p, parents)
    choices = jnp.argmax(p, axis=-1).astype(jnp.int32)
    greedy = verify_greedy(drafts, choices), verify_greedy(drafts, choices, parents)
    for one, other in ((chain, tree), greedy):
        assert one.accepted.tolist() == other.accepted.tolist()
        assert len(set(one.accepted.tolist())) > 2
        kept = np.arange(width) <= np.asarray(one.accepted)[:, None]
        assert np.where(kept, one.tokens, -1).tolist() == np.where(kept, other.tokens, -1).tolist()
        assert np.where(kept, other.path, 0).tolist() == np.where(kept, np.arange(width), 0).tolist()


def test_a_tree_by_hand():
    """a -> 4 | 5, 5 -> 7 | 8: the target says 5, then 8, then 9."""
    drafts, parents = jnp.array([[4, 5, 7, 8]]), jnp.array([[0, 0, 2, 2]])
    verdict = verify_greedy(drafts, jnp.array([[5, 1, 8, 1, 9]]), parents)
    assert verdict.accepted.tolist() == [2]
    assert verdict.path[0, :3].tolist() == [0, 2, 4]
    assert verdict.tokens[0, :3].tolist() == [5, 8, 9]


def test_siblings_that_are_certain_take_the_targets_share():
    """Two siblings drafted outright: each is kept as often as the target says it, the rest goes to the third token."""
    p = jnp.array([[0.5, 0.3, 0.2]] * 3)
    drafts, q, parents = jnp.array([0, 1]), jax.nn.one_hot(jnp.array([0, 1]), 3), jnp.array([0, 0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    verdict = jax.vmap(lambda key: verify_tokens(key, drafts, q, p, parents))(keys)
    seen = np.bincount(np.asarray(verdict.tokens[:, 0]), minlength=3) / len(keys)
    assert np.abs(seen - np.asarray(p[0])).max() < 0.012
    assert set(np.asarray(verdict.accepted)[np.asarray(verdict.tokens[:, 0]) == 2].tolist()) == {0}


def test_plain_is_width_one():
    """With a drafter that drafts nothing and with none: the same tokens, greedy and sampled."""
    engine = make_engine(make_target(), make_artifact())
    rows, lengths = padded(PROMPTS)
    for speculation in (GREEDILY, Speculation(Sampling(0.9, top_p=0.9))):
        states = [prefill(one, rows, lengths, lengths + 30, lengths, capacity=128) for one in (engine, engine.plain)]
        texts = [
            outputs(segment(one, state, 1000, SINGLE, speculation), PROMPTS)
            for one, state in zip((engine, engine.plain), states, strict=True)
        ]
        assert texts[0] == texts[1]
