"""Rows of one batch sample each as they were asked to: by the same distribution as alone, with draws of their own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.decode import make_engine
from models.drafters import Draft
from models.sampling import GREEDY, Sampling, distribution, sampling_rows
from tests.tiny import make_artifact, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler

OPTIONS = [
    GREEDY,
    Sampling(0.7),
    Sampling(1.3, top_k=5),
    Sampling(1.0, top_p=0.6),
    Sampling(0.9, min_p=0.2),
    Sampling(1.5, top_k=9, top_p=0.8, min_p=0.05),
]


@pytest.mark.parametrize("shape", [(61,), (4, 61)], ids=str)
def test_distribution_of_each_row(shape: tuple[int, ...]):
    """Against `distribution` of one row's options; the ties at the end are all kept, as they are there."""
    logits = 3 * np.random.default_rng(0).standard_normal((len(OPTIONS), *shape)).astype(np.float32)
    logits[..., :4] = logits[..., 4:5]
    rows = distribution(jnp.asarray(logits), sampling_rows(OPTIONS))
    for row, sampling in enumerate(OPTIONS):
        alone = distribution(jnp.asarray(logits[row]), sampling)
        np.testing.assert_allclose(rows[row], alone, atol=1e-6, err_msg=str(sampling))
    unsorted = dataclasses.replace(sampling_rows(OPTIONS), ordered=False)
    same = [0, 1, 4]
    found = distribution(jnp.asarray(logits), unsorted)
    assert (np.asarray(found)[same] == np.asarray(rows)[same]).all()


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_target(eos_ids=()), make_artifact(markov_size=16))


@pytest.mark.parametrize("draft", [None, Draft("drafter", 4), Draft("drafter", 3, copy=5)], ids=str)
def test_rows_do_not_see_their_mates(engine, draft):
    """The same seed gives the same tokens, in a batch of others' options; a greedy row writes what it writes alone."""
    asked = Asked(scheduler(engine, draft=draft))
    for n, sampling in enumerate(OPTIONS):
        asked.ask(str(n), prompt(n, 12), 30, sampling=sampling, seed=n)
    asked.finish()
    assert asked.ids("0") == offline(engine, prompt(0, 12), 30).ids
    for n in (1, 5):
        alone = Asked(scheduler(engine, draft=draft))
        alone.ask("same", prompt(n, 12), 30, sampling=OPTIONS[n], seed=n)
        alone.ask("other", prompt(n, 12), 30, sampling=OPTIONS[n], seed=n + 50)
        alone.finish()
        assert alone.ids("same") == asked.ids(str(n)) != alone.ids("other")


def test_logprobs_are_the_targets_own(engine):
    """Of a sampled answer, before temperature, against one forward over the whole text."""
    from models.attention import whole

    asked = Asked(scheduler(engine, draft=Draft("drafter", 4)))
    asked.ask("0", prompt(0, 12), 30, sampling=Sampling(0.8), logprobs=3)
    asked.ask("1", prompt(1, 12), 30)
    asked.finish()
    text = jnp.asarray([prompt(0, 12) + asked.ids("0")])
    hidden, _, _ = engine.target(text, whole(text))
    logits = np.asarray(engine.target.logits(hidden))[0, 11:-1].astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = [one for progress in asked.came["0"] for one in progress.logprobs or ()]
    assert [one.id for one in found] == asked.ids("0")
    for one, row in zip(found, scores, strict=True):
        assert one.logprob == pytest.approx(row[one.id], abs=1e-4)
        assert [row[id] for id, _ in one.top] == pytest.approx(np.sort(row)[:-4:-1].tolist(), abs=1e-4)
        assert [score for _, score in one.top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)
