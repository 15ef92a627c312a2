"""Sampled speculative decoding has exactly the target's distribution: every sequence of four tokens over a tiny
vocabulary is enumerated, and 60,000 decoded ones are compared with it."""

import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.attention import whole
from models.decode import DecodeState, make_engine, prefill, segment
from models.drafters import SINGLE, Draft
from models.rows import Rows
from models.sampling import Sampling, distribution
from models.verify import Speculation
from tests.tiny import make_artifact, make_eagle3, make_target

PROMPT, NEW, VOCAB, SAMPLES, ROWS = [3, 4, 1, 0, 4], 4, 6, 60_000, 20_000
COPYING = [3, 4, 1, 0, 3, 4]  # a prompt whose last two tokens occurred before
WARM, COLD, HOT = Sampling(1.0), Sampling(0.6), Sampling(1.6)
NUCLEUS, TOP_K, MIN_P = Sampling(1.0, top_p=0.8), Sampling(1.3, top_k=3), Sampling(1.2, min_p=0.2)
CASES = {
    "tokens": (4, Speculation(WARM)),
    "tokens, cold": (4, Speculation(COLD)),
    "tokens, hot, width 3": (3, Speculation(HOT)),
    "tokens, top-p": (4, Speculation(NUCLEUS)),
    "tokens, top-k": (4, Speculation(TOP_K)),
    "tokens, min-p": (4, Speculation(MIN_P)),
    "block": (4, Speculation(WARM, block=True)),
    "block, cold": (4, Speculation(COLD, block=True)),
    "block, top-p": (4, Speculation(NUCLEUS, block=True)),
    "deterministic": (4, Speculation(WARM, deterministic=True)),
    "deterministic, block, top-p": (3, Speculation(NUCLEUS, deterministic=True, block=True)),
    "n-gram": ("ngram", Speculation(WARM)),
    "undrafted": (1, Speculation(NUCLEUS)),
}


DRAFTS = {"ngram": Draft("ngram", 4), "tree": Draft("drafter", 4, tree=7)}


HEADS = {"num_heads": 2, "num_kv_heads": 1}
SHAPE = {"num_target_layers": 2, "target_hidden_size": 16, "hidden_size": 16, "vocab_size": VOCAB, **HEADS}


def tiny(**head: Any):
    """What takes tens of thousands of rows a step is attention's many small products: few layers and heads."""
    target = make_target(7, vocab_size=VOCAB, hidden_size=16, num_layers=2, **HEADS)
    layers = {"target_layer_ids": (0, 1), "num_layers": len(head.get("windows", [None])), **SHAPE}
    return target, make_artifact(7, mask_token_id=5, width=4, **layers, **(head or {"markov_size": 8}))


def prefilled(engine, prompt: Sequence[int], seeds: jax.Array, new: int = NEW, page: int | None = None) -> DecodeState:
    """A row of the prompt for every seed; with slots, one row read and repeated."""
    count = 1 if page is None else len(seeds)
    rows, length = jnp.tile(jnp.asarray(prompt), (count, 1)), jnp.full(count, len(prompt))
    state = prefill(engine, rows, length, length + new, seeds[:count], capacity=16, page=page)
    if page is None:
        state = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(seeds), axis=0), state)
    return dataclasses.replace(state, rows=dataclasses.replace(state.rows, seed=seeds))


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


def counted(rows: Rows | SimpleNamespace, counts, prompt: Sequence[int] = PROMPT):
    tokens, length = np.asarray(rows.tokens), np.asarray(rows.length)
    for row, end in zip(tokens, length, strict=True):
        text = tuple(row[len(prompt) : end].tolist())
        counts[text] = counts.get(text, 0) + 1


MLP, MARKOV, FEWER = {"markov_size": 8}, {"markov_rank": 2}, {"draft_vocab_size": 4}
RUNS = {name: (*case, MLP, None) for name, case in CASES.items()} | {
    "block, paged": (*CASES["block"], MLP, 3),
    "tokens, Markov head": (*CASES["tokens"], MARKOV, None),
    "block, top-p, Markov head": (*CASES["block, top-p"], MARKOV, None),
    "tree, top-k, Markov head, paged": ("tree", Speculation(TOP_K), MARKOV, 3),
    "tokens, draft vocabulary": (*CASES["tokens"], MARKOV | FEWER, None),
    "tree, draft vocabulary": ("tree", Speculation(WARM), MARKOV | FEWER, None),
    "tokens, recurrent head from the anchor's slot": (
        *CASES["tokens"],
        MARKOV | {"markov_head_type": "rnn", "sample_from_anchor": True},
        None,
    ),
    "block, top-p, refiner": (*CASES["block, top-p"], MARKOV | {"markov_head_type": "xpress"}, None),
    "tree, gated head": ("tree", Speculation(WARM), MARKOV | {"markov_head_type": "gated"}, None),
    "block, causal, windows": (*CASES["block"], {"causal": (True, True), "windows": (3, None)}, None),
}


@pytest.mark.parametrize(("width", "speculation", "head", "page"), RUNS.values(), ids=RUNS)
def test_speculative(width: int | str, speculation: Speculation, head: dict[str, Any], page: int | None):
    draft = DRAFTS[width] if isinstance(width, str) else Draft("drafter", width)
    target, artifact = tiny(**head)
    engine, counts, steps = make_engine(target, artifact), {}, 0
    for part in range(SAMPLES // ROWS):
        fresh = prefilled(engine, PROMPT, jnp.arange(ROWS) + part * ROWS, page=page)
        state = segment(engine, fresh, 100, draft, speculation)
        counted(state.rows, counts)
        steps += int(state.rows.num_steps.sum())
    assert_distributed(counts, enumerated(target, speculation.sampling))
    tokens = sum(len(text) * count for text, count in counts.items())
    assert (tokens > 1.02 * steps) == (draft.width > 1), "drafts were accepted"


EAGLE3 = ("block, top-p", "deterministic")


@pytest.mark.parametrize(("width", "speculation"), [CASES[name] for name in EAGLE3], ids=EAGLE3)
def test_eagle3(width: int, speculation: Speculation):
    """Each step's draft drawn given the one before; over a draft vocabulary that lacks tokens."""
    target, _ = tiny()
    drafter = make_eagle3(**SHAPE, target_layer_ids=(0, 1, 1), width=width, draft_vocab_size=4)
    engine, counts = make_engine(target, drafter), {}
    for part in range(SAMPLES // ROWS):
        fresh = prefilled(engine, PROMPT, jnp.arange(ROWS) + part * ROWS)
        counted(segment(engine, fresh, 100, Draft("drafter", width), speculation).rows, counts)
    assert_distributed(counts, enumerated(target, speculation.sampling))


COPIES = [
    (Draft("drafter", 3, copy=4), Speculation(WARM)),
    (Draft("drafter", 1, copy=3), Speculation(NUCLEUS)),
    (Draft("drafter", 4, copy=3), Speculation(WARM, block=True)),
]


@pytest.mark.parametrize(("draft", "speculation"), COPIES)
def test_copying(draft: Draft, speculation: Speculation):
    """In steps where some rows copy and others draft."""
    target, artifact = tiny()
    engine, counts, kinds, mixed = make_engine(target, artifact), {}, set(), 0
    for part in range(SAMPLES // ROWS):
        fresh = prefilled(engine, COPYING, jnp.arange(ROWS) + part * ROWS)
        state = segment(engine, fresh, 100, draft, speculation)
        counted(state.rows, counts, COPYING)
        copied = np.asarray(state.rows.copied)
        taken = np.arange(16) < np.asarray(state.rows.num_steps)[:, None]
        kinds |= set(copied[taken].tolist())
        mixed += sum(len(set(copied[taken[:, step], step].tolist())) == 2 for step in range(NEW))
    assert kinds == {True, False}, "rows of both kinds"
    assert mixed, "in the same step"
    assert_distributed(counts, enumerated(target, speculation.sampling, COPYING))


def test_copying_alone():
    """Every row by itself: its steps copy or draft."""
    target, artifact = tiny()
    engine, counts, kinds = make_engine(target, artifact), {}, set()
    fresh = prefilled(engine, COPYING, jnp.arange(1))

    @jax.jit
    @jax.vmap
    def decoded(seed):
        state = dataclasses.replace(fresh, rows=dataclasses.replace(fresh.rows, seed=seed[None]))
        end = segment.__wrapped__(engine, state, 100, Draft("drafter", 3, copy=4), Speculation(WARM))
        return {name: getattr(end.rows, name)[0] for name in ("tokens", "length", "copied", "num_steps")}

    for part in range(SAMPLES // ROWS):
        rows = SimpleNamespace(**decoded(jnp.arange(ROWS) + part * ROWS))
        counted(rows, counts, COPYING)
        steps = np.arange(16) < np.asarray(rows.num_steps)[:, None]
        kinds |= set(np.asarray(rows.copied)[steps].tolist())
    assert kinds == {True, False}, "steps of both kinds"
    assert_distributed(counts, enumerated(target, WARM, COPYING))


@pytest.mark.parametrize(("sampling", "page"), [(WARM, None), (NUCLEUS, None), (TOP_K, None), (NUCLEUS, 3)])
def test_plain(sampling: Sampling, page: int | None):
    target, artifact = tiny()
    engine = make_engine(target, artifact).plain
    counts: dict[tuple[int, ...], int] = {}
    for part in range(SAMPLES // ROWS):
        state = prefilled(engine, PROMPT, jnp.arange(ROWS) + part * ROWS, page=page)
        counted(segment(engine, state, 100, SINGLE, Speculation(sampling)).rows, counts)
    assert_distributed(counts, enumerated(target, sampling))


def test_block_verification_accepts_more():
    """Its point: never fewer tokens a step than token by token, in expectation (arXiv 2403.10444, theorem 2)."""
    target, artifact = tiny()
    engine = make_engine(target, artifact)
    runs = {}
    for block in (False, True):
        total = 0
        for part in range(2):
            fresh = prefilled(engine, PROMPT, jnp.arange(ROWS) + part * ROWS, new=8)
            state = segment(engine, fresh, 1, Draft("drafter", 4), Speculation(HOT, block=block))
            total += float(state.rows.runs[:, 0].mean())
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
