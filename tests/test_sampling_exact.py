"""Sampled speculative decoding has exactly the target's distribution: every sequence of four tokens over a tiny
vocabulary is enumerated, and 60,000 decoded ones are compared with it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.attention import whole
from models.decode import Speculation, make_engine, speculative_segment, start
from models.generate import empty_rows, insert, plain_segment
from models.sampling import Sampling, distribution
from tests.tiny import make_artifact, make_target

PROMPT, NEW, VOCAB, SAMPLES, ROWS = [3, 4, 1, 0, 4], 4, 6, 60_000, 20_000
COPYING = [3, 4, 1, 0, 3, 4]  # a prompt whose last two tokens occurred before
WARM, COLD, HOT = Sampling(1.0), Sampling(0.6), Sampling(1.6)
NUCLEUS, TOP_K, MIN_P = Sampling(1.0, top_p=0.8), Sampling(1.3, top_k=3), Sampling(1.2, min_p=0.2)
CASES = {
    "tokens": Speculation(4, sampling=WARM),
    "tokens, cold": Speculation(4, sampling=COLD),
    "tokens, hot, width 3": Speculation(3, sampling=HOT),
    "tokens, top-p": Speculation(4, sampling=NUCLEUS),
    "tokens, top-k": Speculation(4, sampling=TOP_K),
    "tokens, min-p": Speculation(4, sampling=MIN_P),
    "block": Speculation(4, sampling=WARM, block=True),
    "block, cold": Speculation(4, sampling=COLD, block=True),
    "block, top-p": Speculation(4, sampling=NUCLEUS, block=True),
    "deterministic": Speculation(4, sampling=WARM, deterministic=True),
    "deterministic, block, top-p": Speculation(3, sampling=NUCLEUS, deterministic=True, block=True),
    "n-gram": Speculation(4, "ngram", WARM),
    "undrafted": Speculation(1, sampling=NUCLEUS),
}


class Decoded(NamedTuple):
    tokens: jax.Array
    length: jax.Array
    copied: jax.Array
    num_steps: jax.Array


def tiny():
    target = make_target(vocab_size=VOCAB, hidden_size=16, num_layers=3)
    layers = {"target_layer_ids": (0, 1), "num_target_layers": 3, "target_hidden_size": 16, "hidden_size": 16}
    return target, make_artifact(vocab_size=VOCAB, mask_token_id=5, width=4, **layers, markov_size=8)


def enumerated(target, sampling: Sampling, prompt: Sequence[int] = PROMPT) -> dict[tuple[int, ...], float]:
    """The target's own probability of every answer, ended by its end token or by NEW."""
    texts = np.array(list(itertools.product(range(VOCAB), repeat=NEW)))
    rows = jnp.asarray(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], axis=1))
    hidden, _, _ = target(rows, whole(rows))
    chances = np.asarray(distribution(target.logits(hidden), sampling), np.float64)[:, len(prompt) - 1 : -1]
    out: dict[tuple[int, ...], float] = {}
    for text, chance in zip(texts.tolist(), chances, strict=True):
        end = text.index(2) + 1 if 2 in text else NEW
        out[tuple(text[:end])] = float(np.prod([chance[i, text[i]] for i in range(end)]))
    return out


def assert_distributed(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]):
    total = sum(counts.values())
    assert not [text for text in counts if expected.get(text, 0.0) == 0.0], "nothing the target would never say"
    chances = np.array(list(expected.values()))
    assert abs(chances.sum() - 1) < 1e-5
    seen = np.array([counts.get(text, 0) for text in expected])
    distance = np.abs(seen / total - chances).sum() / 2
    by_chance = np.sqrt(2 * chances * (1 - chances) / (np.pi * total)).sum() / 2
    assert distance < 1.25 * by_chance, "total variation within sampling error"
    rare = chances * total < 5
    observed = np.append(seen[~rare], seen[rare].sum())
    wanted = np.append(chances[~rare], chances[rare].sum()) * total
    kept = wanted > 0
    assert stats.chisquare(observed[kept], wanted[kept] * total / wanted[kept].sum()).pvalue > 0.01


def counted(state, counts, prompt: Sequence[int] = PROMPT):
    tokens, length = np.asarray(state.tokens), np.asarray(state.length)
    for row, end in zip(tokens, length, strict=True):
        text = tuple(row[len(prompt) : end].tolist())
        counts[text] = counts.get(text, 0) + 1


@pytest.mark.parametrize(("how", "page"), [(how, None) for how in CASES.values()] + [(CASES["block"], 3)])
def test_speculative(how: Speculation, page: int | None):
    target, artifact = tiny()
    engine, counts, steps = make_engine(target, artifact), {}, 0
    rows = jnp.tile(jnp.asarray(PROMPT), (ROWS, 1))
    length = jnp.full(ROWS, len(PROMPT))
    for part in range(SAMPLES // ROWS):
        seeds = jnp.arange(ROWS) + part * ROWS
        state = start(engine, rows, length, length + NEW, seeds, capacity=16, page=page)
        state = speculative_segment(engine, state, 100, how)
        counted(state, counts)
        steps += int(state.num_steps.sum())
    assert_distributed(counts, enumerated(target, how.sampling))
    tokens = sum(len(text) * count for text, count in counts.items())
    assert (tokens > 1.02 * steps) == (how.width > 1), "drafts were accepted"


@pytest.mark.parametrize("how", [Speculation(3, sampling=WARM, copy=4), Speculation(1, sampling=NUCLEUS, copy=3)])
def test_copying(how: Speculation):
    """Every row by itself, so that each copies where it can."""
    target, artifact = tiny()
    engine, counts, kinds = make_engine(target, artifact), {}, set()
    row, length = jnp.asarray([COPYING]), jnp.array([len(COPYING)])

    @jax.jit
    @jax.vmap
    def decoded(seed):
        state = start(engine, row, length, length + NEW, seed[None], capacity=16)
        state = speculative_segment.__wrapped__(engine, state, 100, how)
        return Decoded(*(leaf[0] for leaf in (state.tokens, state.length, state.copied, state.num_steps)))

    for part in range(SAMPLES // ROWS):
        state = decoded(jnp.arange(ROWS) + part * ROWS)
        counted(state, counts, COPYING)
        steps = np.arange(16) < np.asarray(state.num_steps)[:, None]
        kinds |= set(np.asarray(state.copied)[steps].tolist())
    assert kinds == {True, False}, "steps of both kinds"
    assert_distributed(counts, enumerated(target, how.sampling, COPYING))


@pytest.mark.parametrize(("sampling", "page"), [(WARM, None), (NUCLEUS, None), (TOP_K, None), (NUCLEUS, 3)])
def test_plain(sampling: Sampling, page: int | None):
    target, _ = tiny()
    counts: dict[tuple[int, ...], int] = {}
    rows = jnp.tile(jnp.asarray(PROMPT), (ROWS, 1))
    length, places = jnp.full(ROWS, len(PROMPT)), jnp.arange(ROWS)
    for part in range(SAMPLES // ROWS):
        empty = empty_rows(target, ROWS, 16, page=page)
        state = insert(target, empty, places, rows, length, length + NEW, places + part * ROWS)
        counted(plain_segment(target, state, 100, sampling), counts)
    assert_distributed(counts, enumerated(target, sampling))


def test_block_verification_accepts_more():
    """Its point: never fewer tokens a step than token by token, in expectation (arXiv 2403.10444, theorem 2)."""
    target, artifact = tiny()
    engine = make_engine(target, artifact)
    rows, length = jnp.tile(jnp.asarray(PROMPT), (ROWS, 1)), jnp.full(ROWS, len(PROMPT))
    runs = {}
    for block in (False, True):
        how = Speculation(4, sampling=HOT, block=block)
        total = 0
        for part in range(2):
            fresh = start(engine, rows, length, length + 8, jnp.arange(ROWS) + part * ROWS, capacity=16)
            total += float(speculative_segment(engine, fresh, 1, how).runs[:, 0].mean())
        runs[block] = total / 2
    assert runs[True] > runs[False]


def test_distribution_by_hand():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    assert np.allclose(distribution(logits, Sampling(1.0)), [0.5, 0.25, 0.15, 0.1], atol=1e-6)
    assert np.allclose(distribution(logits, Sampling(1.0, top_k=2)), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    assert np.allclose(distribution(logits, Sampling(1.0, top_p=0.75)), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
    assert np.allclose(distribution(logits, Sampling(1.0, top_p=0.76)), np.array([10, 5, 3, 0]) / 18, atol=1e-6)
    assert np.allclose(distribution(logits, Sampling(1.0, min_p=0.3)), np.array([10, 5, 3, 0]) / 18, atol=1e-6)
    assert np.allclose(distribution(logits, Sampling(0.5)), np.square([10, 5, 3, 2]) / 138, atol=1e-6)
    assert distribution(logits, Sampling()).tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="top_p: expected above 0, at most 1, got"):
        Sampling(1.0, top_p=1.5)
