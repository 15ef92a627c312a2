"""Answers do not depend on how they were decoded: plain or drafted, alone or in a batch, stops and all."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.decode import make_engine
from models.drafters import Draft
from models.sampling import Sampling
from models.verify import Speculation
from serve import session
from serve.choose import Chooser
from serve.cost import Cost
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target

PROMPTS = [np.random.default_rng(seed).integers(3, 60, 4 + 3 * seed).tolist() for seed in range(8)]
COST = Cost(10.0, {1: 0.0, 3: 1.0, 6: 1.0}, {1: 10.0, 3: 10.5, 6: 11.0})


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_target(), make_artifact(markov_size=16))


def decoder(engine, draft, *options, **named) -> Decoder:
    return Decoder(engine, Letters(), draft, *options, **named)


def chosen(engine) -> Decoder:
    drafts = [Draft("drafter", 1), Draft("drafter", 1, 3), Draft("drafter", 3, 6), Draft("drafter", 6, 3)]
    return decoder(engine, Chooser(COST, [0.6], drafts))


@pytest.mark.parametrize("stop", [(), ("1", "55"), ("2",)], ids=["no stop", "stops", "early stop"])
def test_equal_to_the_plain_loop(engine, stop: tuple[str, ...]):
    plain = decoder(engine, None).generate(PROMPTS, max_new_tokens=30, stop=stop)
    ended = {answer.finished for answer in plain}
    assert ended == ({"eos", "length"} if not stop else ended | {"stop"})
    for other in (decoder(engine, Draft("drafter", 6)), chosen(engine)):
        answers = other.generate(PROMPTS, max_new_tokens=30, stop=stop)
        assert [(a.ids, a.text, a.finished) for a in answers] == [(a.ids, a.text, a.finished) for a in plain]
        for answer in answers:
            assert sum(answer.runs) == len(answer.ids)
            assert len(answer.runs) == len(answer.widths) == len(answer.drafts)
    for answer in plain:
        assert not any(word in answer.text for word in stop)
        if answer.finished == "stop":
            whole, before = Letters().decode(answer.ids), Letters().decode(answer.ids[:-1])
            assert any(word in whole for word in stop), "the last token completed it"
            assert not any(word in before for word in stop), "and none before did"


ROWS = [
    (Draft("drafter", 4), {}),
    (Draft("drafter", 4), {"deterministic": True}),
    (Draft("drafter", 4), {"block": True}),
    (Draft("drafter", 4, copy=3), {"block": True}),
]


@pytest.mark.parametrize(("draft", "options"), ROWS, ids=str)
def test_sampled_rows_do_not_see_their_batch(engine, draft: Draft, options: dict[str, bool]):
    sampled = decoder(engine, draft, Speculation(Sampling(0.8, top_p=0.9), **options))
    together = sampled.generate(PROMPTS, max_new_tokens=20, seeds=range(8))
    for index in (0, 3, 7):
        (alone,) = sampled.generate([PROMPTS[index]], max_new_tokens=20, seeds=[index])
        assert alone.ids == together[index].ids
    assert sampled.generate(PROMPTS, max_new_tokens=20, seeds=range(8, 16))[0].ids != together[0].ids


def test_steps_that_copy_are_told_apart():
    """One row over seven tokens, where much repeats: the same answer, each step with who drafted it."""
    target = make_target(vocab_size=7, eos_ids=(2,), tied_head=True)
    engine = make_engine(target, make_artifact(vocab_size=7, mask_token_id=6, tied_head=True))
    prompt = np.random.default_rng(0).integers(3, 6, 9).tolist()
    (plain,) = decoder(engine, None).generate([prompt], max_new_tokens=60)
    (answer,) = decoder(engine, Draft("drafter", 3, copy=5)).generate([prompt], max_new_tokens=60)
    assert answer.ids == plain.ids
    assert set(zip(answer.drafts, answer.widths, strict=True)) == {("ngram", 5), ("drafter", 3)}
    (free,) = chosen(engine).generate([prompt], max_new_tokens=60)
    assert free.ids == plain.ids
    assert "ngram" in free.drafts


def test_blocks_wider_than_the_trained_width_have_room(engine):
    """44 tokens and a block of 20 are more than the 64 positions that a block of 6 would ask for."""
    prompt = PROMPTS[0] * 5
    (plain,) = decoder(engine, None, capacity=64).generate([prompt], max_new_tokens=30)
    (wide,) = decoder(engine, Draft("ngram", 20), capacity=64).generate([prompt], max_new_tokens=30)
    assert wide.ids == plain.ids


@pytest.mark.parametrize(
    ("prompts", "new", "words"),
    [([[]], 5, "at least one token"), ([], 5, "at least one"), ("text", 5, "a list"), ([[3]], 0, "max_new_tokens")],
)
def test_nothing_to_answer(engine, prompts, new: int, words: str):
    with pytest.raises(ValueError, match=words):
        decoder(engine, Draft("drafter", 3)).generate(prompts, max_new_tokens=new)


@pytest.mark.parametrize("stop", [[""], ["x", ""], "55"])
def test_stop_strings_that_stop_everything(engine, stop):
    """An empty one is in every text; one text in place of a list would be its characters, each a stop string."""
    with pytest.raises(ValueError, match="stop: expected a list of texts, none of them empty"):
        decoder(engine, None).generate([PROMPTS[0]], max_new_tokens=5, stop=stop)


def test_too_long_for_the_context(engine):
    with pytest.raises(ValueError, match=r"4 tokens \+ max_new_tokens=600 exceed the context of tiny \(512\)"):
        decoder(engine, None).generate([PROMPTS[0]], max_new_tokens=600)


@pytest.mark.parametrize("draft", [None, Draft("drafter", 4)], ids=["plain", "drafted"])
def test_not_finite_logits_name_the_layer(draft: Draft | None):
    target = make_target()
    broken = target.layers[2].down
    broken[...] = broken[...].at[0, 0].set(jnp.nan)
    for prompt in (PROMPTS[0], [3]):
        with pytest.raises(ValueError, match=r"not finite \(first in layer 2\) in the step after 0 tokens of answer 0"):
            decoder(make_engine(target, make_artifact()), draft).generate([prompt], max_new_tokens=20)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8)], ids=["greedy", "sampled"])
def test_a_drafter_that_is_not_finite_is_named(sampling: Sampling):
    """A NaN in its weights: drafts would be wrong without end, and nothing would say so."""
    artifact = make_artifact()
    artifact.weights["layers"][1]["down"] = artifact.weights["layers"][1]["down"].at[0, 0].set(jnp.nan)
    engine = make_engine(make_target(), artifact)
    with pytest.raises(ValueError, match="the drafter's states are not finite in the step after 0 tokens of answer 0"):
        decoder(engine, Draft("drafter", 4), Speculation(sampling)).generate([PROMPTS[0]], max_new_tokens=20)
    assert decoder(engine, Draft("ngram", 4)).generate([PROMPTS[0]], max_new_tokens=20)


def test_nothing_is_compiled_twice(engine):
    """Prompts of other lengths in the same bucket, other seeds, other answers: the same programs."""
    from models.decode import prefill, segment

    drafted = decoder(engine, Draft("drafter", 5))
    drafted.generate(PROMPTS[:2], max_new_tokens=20)
    before = prefill._cache_size(), segment._cache_size()
    drafted.generate(PROMPTS[2:4], max_new_tokens=25, seeds=[4, 5])
    assert (prefill._cache_size(), segment._cache_size()) == before


def test_every_loop_has_run_before_anything_is_timed(engine, monkeypatch: pytest.MonkeyPatch):
    """Steps that copy and steps that draft, of every draft that does both, whatever the prompt holds."""
    ran, segment = set(), session.segment

    def seen(engine, state, steps, draft, *how):
        state = segment(engine, state, steps, draft, *how)
        ran.add((draft, bool(state.rows.copied[0, 0])))
        return state

    monkeypatch.setattr(session, "segment", seen)
    (warmed := chosen(engine)).warm(PROMPTS[4], 20)
    assert ran == {(draft, copied) for draft in warmed.drafts for copied in ((False, True) if draft.copy else (False,))}


def test_pieces_of_an_answer_arrive_in_order(engine):
    whole = dataclasses.replace(decoder(engine, Draft("drafter", 6)).generate([PROMPTS[1]], max_new_tokens=30)[0])
    seen: list[int] = []
    for (row,), _ in decoder(engine, Draft("drafter", 6)).stream([PROMPTS[1]], max_new_tokens=30):
        assert row.ids[: len(seen)] == seen
        seen = list(row.ids)
    assert seen == whole.ids
