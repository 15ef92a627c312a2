"""Blocks that end where confidence is low write what the plain loop writes, and when sampling what it might: every
sequence of four tokens is enumerated. A row's steps are the same alone and beside others."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.decode import make_engine, segment
from models.drafters import ABSENT, Draft, Proposal
from models.drafters.confidence import cut, odds_of_likeliest
from models.verify import GREEDILY, Speculation
from tests.test_decoder_lossless import NEW, PROMPTS, outputs, padded, plain, prefill
from tests.test_sampling_exact import (
    COPYING,
    NUCLEUS,
    PROMPT,
    ROWS,
    SAMPLES,
    WARM,
    assert_distributed,
    counted,
    enumerated,
    prefilled,
    tiny,
)
from tests.tiny import make_artifact, make_target

CUT, COPY = Draft("drafter", 4, cuts=(1, 2)), Draft("drafter", 4, copy=3, cuts=(1, 2))
REFINER = {"markov_rank": 2, "markov_head_type": "xpress"}
SAMPLED = {
    "tokens, Markov head": (CUT, Speculation(WARM), {"markov_rank": 2}, PROMPT, None, [0.55, 0.3]),
    "block, top-p, paged": (CUT, Speculation(NUCLEUS, block=True), {"markov_size": 8}, PROMPT, 3, [0.36, 0.11]),
    "tokens, confidence head": (
        CUT,
        Speculation(WARM),
        {"markov_rank": 2, "confidence_head": True},
        PROMPT,
        None,
        [0.8, 0.6],
    ),
    "tokens, refiner": (CUT, Speculation(WARM), REFINER, PROMPT, None, [0.5, 0.25]),
    "beside copies": (COPY, Speculation(WARM), {"markov_rank": 2}, COPYING, None, [0.55, 0.3]),
}


@pytest.mark.parametrize(("draft", "speculation", "head", "prompt", "page", "floors"), SAMPLED.values(), ids=SAMPLED)
def test_sampled(draft, speculation, head, prompt, page, floors):
    target, artifact = tiny(**head)
    engine, counts, offered = make_engine(target, artifact), {}, set()
    for part in range(SAMPLES // ROWS):
        fresh = prefilled(engine, prompt, jnp.arange(ROWS) + part * ROWS, page=page)
        rows = segment(engine, fresh, 100, draft, speculation, jnp.array(floors)).rows
        counted(rows, counts, prompt)
        offered |= set(np.asarray(rows.offered)[(np.arange(16) < rows.num_steps[:, None]) & ~rows.copied].tolist())
    assert offered == {0, 1, 3}, "blocks of every width"
    assert_distributed(counts, enumerated(target, speculation.sampling, prompt))


@pytest.mark.parametrize(("head", "page"), [({"markov_rank": 3}, None), ({}, 5)])
def test_greedy_alone_and_together(head: dict[str, int], page: int | None):
    target = make_target()
    engine, draft, floors = make_engine(target, make_artifact(**head)), Draft("drafter", 6, cuts=(1, 3)), [0.2, 0.05]

    def decoded(prompts):
        tokens, lengths = padded(prompts)
        state = prefill(engine, tokens, lengths, lengths + NEW, lengths, capacity=128, page=page)
        return segment(engine, state, 1000, draft, GREEDILY, jnp.array(floors))

    together = decoded(PROMPTS)
    assert outputs(together, PROMPTS) == plain(target, PROMPTS)
    offered = np.asarray(together.rows.offered)
    taken = np.arange(128) < np.asarray(together.rows.num_steps)[:, None]
    assert len(set(offered[taken].tolist()) & {0, 2, 5}) >= 2, "blocks of several widths"
    for index, prompt in enumerate(PROMPTS):
        alone = decoded([prompt])
        assert outputs(alone, [prompt]) == [outputs(together, PROMPTS)[index]]
        steps = int(alone.rows.num_steps[0])
        for name in ("runs", "offered"):
            one, other = getattr(alone.rows, name)[0], getattr(together.rows, name)[index]
            assert one[:steps].tolist() == other[:steps].tolist()


def test_cut_by_hand():
    """Survival .9 .45 .225: past the cut at 1 with .9, past that at 2 with .45 where it is allowed."""
    q = jnp.full((2, 3, 4), 0.25)
    both = Proposal(jnp.array([[1, 2, 3], [3, 2, 1]]), None, q, jnp.ones(2, bool), jnp.array([[0.9, 0.5, 0.5]] * 2))
    ends = {(0.95, 0.0): 0, (0.9, 0.5): 1, (0.9, 0.45): 3}
    for floors, nodes in ends.items():
        out = cut(both, (1, 2), jnp.array(floors) - 1e-6)
        assert out.tokens.tolist() == [[*row[:nodes], *[ABSENT] * (3 - nodes)] for row in both.tokens.tolist()]
        assert (np.asarray(out.q).sum(axis=-1) == [[1] * nodes + [0] * (3 - nodes)] * 2).all()


def test_odds_by_hand():
    assert odds_of_likeliest(jnp.log(jnp.array([0.2, 0.6, 0.2]))) == pytest.approx(float(jnp.log(1.5)))
