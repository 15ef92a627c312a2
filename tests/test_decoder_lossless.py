"""Speculative decoding writes exactly what the plain loop writes, whatever the drafts are and wherever keys and values
lie: the plain loop keeps them in slots, the other also in pages, in any order."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import models.decode
from models.attention import Chain
from models.cache import Pages
from models.decode import Engine, empty_state, insert, make_engine, prefill, segment
from models.drafters import Draft, Nothing, Proposal
from models.drafters.ngram import COPY_LEAST, ngram_match, ngram_tokens
from models.verify import verify_greedy
from serve.choose import ngram_drafts
from tests.tiny import make_artifact, make_eagle3, make_target

NEW = 40
PROMPTS = [np.random.default_rng(seed).integers(3, 60, 5 + 4 * seed).tolist() for seed in range(4)]
LONGEST = max(map(len, PROMPTS))


def padded(prompts):
    rows = np.zeros((len(prompts), max(LONGEST, *map(len, prompts))), np.int32)  # one program reads all of PROMPTS
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray([len(p) for p in prompts], jnp.int32)


def plain(target, prompts, new=NEW, page=None):
    rows, lengths = padded(prompts)
    numbers = jnp.arange(len(prompts))
    engine = Engine(target, Nothing())
    empty = empty_state(engine, len(prompts), 128, page)
    state = insert(engine, empty, numbers, rows, lengths, lengths + new, numbers)
    return outputs(segment(engine, state, 1000), prompts)


def outputs(state, prompts):
    tokens, length = np.asarray(state.rows.tokens), np.asarray(state.rows.length)
    return [tokens[i, len(p) : length[i]].tolist() for i, p in enumerate(prompts)]


def speculate(engine, prompts, draft, new=NEW, page=None):
    rows, lengths = padded(prompts)
    state = prefill(engine, rows, lengths, lengths + new, lengths, capacity=128, page=page)
    if page is not None:
        state = dataclasses.replace(state, cache=shuffled(state.cache))
    return segment(engine, state, 1000, draft)


def shuffled(pages: Pages) -> Pages:
    """The same rows, their pages anywhere in a pool that has some to spare, which hold what is no number."""
    size, spare = len(pages.values[0]), 7
    places = np.random.default_rng(5).permutation(size + spare)[:size]

    def moved(pool):
        return jnp.full((size + spare, *pool.shape[1:]), jnp.nan).at[places].set(pool)

    keys, values = [moved(pool) for pool in pages.keys], [moved(pool) for pool in pages.values]
    return Pages(keys, values, jnp.asarray(places, jnp.int32)[pages.table])


DRAFTS = {f"width {width}": Draft("drafter", width) for width in (1, 2, 3, 6)} | {
    "n-gram": Draft("ngram", 4),
    "copying": Draft("drafter", 3, copy=6),
    "copying, undrafted": Draft("drafter", 1, copy=4),
}


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize(
    ("head", "page"), [({}, None), ({"markov_size": 24}, None), ({"markov_rank": 3}, None), ({}, 5)]
)
def test_random_drafter(draft: Draft, head: dict[str, int], page: int | None):
    same_text_alone_and_together(make_artifact(**head), draft, page)


@pytest.mark.parametrize(("name", "vocab", "page"), [("width 6", None, 5), ("copying, undrafted", 40, None)])
def test_random_eagle3(name: str, vocab: int | None, page: int | None):
    same_text_alone_and_together(make_eagle3(draft_vocab_size=vocab), DRAFTS[name], page)


def same_text_alone_and_together(artifact, draft, page):
    target = make_target()
    engine = make_engine(target, artifact)
    expected = plain(target, PROMPTS)
    assert len({len(text) for text in expected}) > 1, "some answers end early, some at the limit"
    state = speculate(engine, PROMPTS, draft, page=page)
    assert outputs(state, PROMPTS) == expected
    for prompt, text in zip(PROMPTS, expected, strict=True):
        assert outputs(speculate(engine, [prompt], draft, page=page), [prompt]) == [text], "batch mates change nothing"


def test_the_plain_loop_over_pages():
    target = make_target()
    assert plain(target, PROMPTS, page=5) == plain(target, PROMPTS)


@pytest.mark.parametrize("new", [1, 7, NEW])
@pytest.mark.parametrize(("rate", "page"), [(0.0, None), (0.5, None), (0.9, None), (1.0, None), (0.9, 6)])
def test_scripted_drafts(monkeypatch: pytest.MonkeyPatch, rate: float, page: int | None, new: int):
    """Drafts right with probability `rate`, past the end of the answer too: ends and stops fall inside runs."""
    target = make_target()
    answers = plain(target, PROMPTS, NEW)
    script = np.zeros((len(PROMPTS), 256), np.int32)
    for row, (prompt, text) in enumerate(zip(PROMPTS, answers, strict=True)):
        script[row, : len(prompt) + len(text)] = prompt + text
    wrong = np.random.default_rng(3).random(script.shape) >= rate
    script = jnp.asarray(np.where(wrong, (script + 1) % 60, script))

    def scripted(engine, state, draft, speculation, key, copying, floors):
        places = state.rows.length[:, None] - 1 + jnp.arange(1, draft.width)
        fine = jnp.ones(len(PROMPTS), bool)
        return Proposal(jnp.take_along_axis(script, places, axis=1), None, None, fine), ~fine

    monkeypatch.setattr(models.decode, "propose", scripted)
    width = {0.0: 3, 0.5: 4, 0.9: 5, 1.0: 6}[rate]
    rows, lengths = padded(PROMPTS)
    engine = make_engine(target, make_artifact())
    state = prefill(engine, rows, lengths, lengths + new, lengths, capacity=128, page=page)
    state = segment.__wrapped__(engine, state, 1000, Draft("drafter", width))
    expected = [text[:new] for text in answers]
    assert outputs(state, PROMPTS) == expected
    runs = [np.asarray(state.rows.runs)[i, : int(state.rows.num_steps[i])] for i in range(len(PROMPTS))]
    assert [int(run.sum()) for run in runs] == [len(text) for text in expected]
    if rate == 1.0:
        assert all((run[:-1] == width).all() for run in runs), "right drafts are all accepted"
    if rate == 0.0:
        assert all((run == 1).all() for run in runs)


@pytest.mark.parametrize("capacity", [256, 160])
def test_long_prompts_are_read_in_chunks(capacity: int):
    """Keys, values and features of 150 and 70 tokens, as one forward over them has them; 64 does not divide 160."""
    target = make_target()
    engine = make_engine(target, make_artifact())
    rows, lengths = padded([np.random.default_rng(size).integers(3, 60, size).tolist() for size in (150, 70)])
    state = prefill(engine, rows, lengths, lengths + 4, lengths, capacity=capacity)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    local = target.empty_cache(*rows.shape)
    _, features, cache = target(rows, Chain(positions), cache=local, taps=engine.drafter.taps)
    context = engine.drafter.network.context(features, positions)
    for got, expected in ((state.cache, cache), (state.drafter, context)):
        for row, length in enumerate(lengths.tolist()):
            for mine, whole in zip(got.values, expected.values, strict=True):
                assert np.allclose(mine[row, :, :length], whole[row, :, :length], atol=1e-5)
            for mine, whole in zip(got.keys, expected.keys, strict=True):
                assert np.allclose(mine[row, :, :, :length], whole[row, :, :, :length], atol=1e-5)


def test_copies_where_it_can():
    """Steps copy where the last two tokens occurred before, and in no others."""
    target = make_target(vocab_size=7, eos_ids=(2,), tied_head=True)
    engine = make_engine(target, make_artifact(vocab_size=7, mask_token_id=6, tied_head=True))
    prompt = np.random.default_rng(0).integers(3, 6, 9).tolist()
    state = speculate(engine, [prompt], Draft("drafter", 3, copy=5))
    (text,), count = outputs(state, [prompt]), int(state.rows.num_steps[0])
    assert [text] == plain(target, [prompt])
    places = len(prompt) + np.cumsum([0, *np.asarray(state.rows.runs)[0, : count - 1].tolist()])
    expected = [ngram_drafts(np.array(prompt + text), int(place), 5)[1] >= COPY_LEAST for place in places]
    assert np.asarray(state.rows.copied)[0, :count].tolist() == expected
    assert len(set(expected)) == 2, "steps of both kinds"


def test_rows_copy_by_themselves():
    """Over seven tokens, where much repeats: rows copy beside rows that draft, and each writes its text."""
    target = make_target(vocab_size=7, eos_ids=(2,), tied_head=True)
    engine = make_engine(target, make_artifact(vocab_size=7, mask_token_id=6, tied_head=True))
    prompts = [np.random.default_rng(seed).integers(3, 6, 5 + 2 * seed).tolist() for seed in range(5)]
    expected = plain(target, prompts)
    for draft in (Draft("drafter", 3, copy=6), Draft("drafter", 5, copy=2), Draft("ngram", 4, copy=3)):
        state = speculate(engine, prompts, draft)
        assert outputs(state, prompts) == expected
        copied, counts = np.asarray(state.rows.copied), np.asarray(state.rows.num_steps)
        mixed = [len({bool(copied[row, step]) for row in range(5) if step < counts[row]}) for step in range(40)]
        assert mixed.count(2) > 1, "steps of both kinds of row"
        for row, prompt in enumerate(prompts):
            places = len(prompt) + np.cumsum([0, *np.asarray(state.rows.runs)[row, : counts[row] - 1].tolist()])
            text = np.array(prompt + expected[row])
            could = [ngram_drafts(text, int(place), 5)[1] >= COPY_LEAST for place in places]
            assert copied[row, : counts[row]].tolist() == could, "a row copies where it can, whatever the others do"


def test_ngram_by_hand():
    rows = jnp.array([[5, 6, 7, 5, 6, 0, 0], [8, 9, 8, 4, 9, 8, 9], [1, 2, 2, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0]])
    lengths = jnp.array([5, 7, 3, 4])
    drafts = ngram_tokens(rows, lengths, 4)
    assert drafts[:2].tolist() == [[7, 5, 6], [8, 4, 9]], "the longest match, then the latest; not the row's own end"
    assert drafts[2].tolist() == [2, 2, 2], "what is copied goes on repeating"
    assert ngram_match(rows, lengths)[1].tolist() == [2, 2, 1, 0]


def test_verify_by_hand():
    drafts = jnp.array([[5, 6, 9], [5, 6, 7], [1, 6, 7]])
    choices = jnp.array([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]])
    accepted, committed, _ = verify_greedy(drafts, choices)
    assert accepted.tolist() == [2, 3, 0]
    assert committed.tolist() == choices.tolist()
