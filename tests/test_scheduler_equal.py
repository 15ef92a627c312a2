"""A greedy answer is that of the plain loop alone, token for token, whoever shares the batch and whenever they come."""

import numpy as np
import pytest

from models.decode import make_engine
from models.drafters import Draft
from serve.choose import Chooser
from serve.cost import Cost
from tests.tiny import make_artifact, make_eagle3, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler

COST = Cost(10.0, {1: 0.0, 3: 1.0, 6: 1.0}, {1: 10.0, 3: 10.5, 6: 11.0})
CHOSEN = [Draft("drafter", 1), Draft("drafter", 3, 6), Draft("drafter", 6, 3)]
WAYS = {
    "plain": lambda: None,
    "fixed": lambda: Draft("drafter", 4),
    "tree": lambda: Draft("drafter", 4, copy=3, tree=5),
    "chosen": lambda: Chooser(COST, [0.6], CHOSEN),
}


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_target(), make_artifact(markov_size=16))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_requests_that_come_at_random(engine, way):
    """Prompts of 1 to 109 tokens, half of them beginning alike, over pages for a third of what they could fill."""
    rng = np.random.default_rng(3)
    asked = Asked(server := scheduler(engine, draft=way(), pages=50))
    alike = prompt(99, 50)
    prompts = {
        str(n): (alike if n % 2 else [])[: int(rng.integers(50))] + prompt(n, int(rng.integers(1, 60)))
        for n in range(12)
    }
    waiting, options = list(prompts), {"stop": ("55", "1723")}
    while waiting or server.turn():
        if waiting and rng.random() < 0.5:
            asked.ask(id := waiting.pop(0), prompts[id], 40, **options, speculative=id != "7")
        server.turn()
        server.check()
    for id, ids in prompts.items():
        alone, last = offline(engine, ids, 40, **options), asked.last(id)
        assert (asked.ids(id), asked.text(id), last.finished) == (alone.ids, alone.text, alone.finished)
        for progress in asked.came[id]:
            assert sum(progress.runs) == len(progress.ids)
            assert len(progress.runs) == len(progress.drafted)
        assert last.timing is not None
        assert last.timing.first_token_s > 0
    assert server.stats().generation_tokens == sum(len(asked.ids(id)) for id in prompts)


def test_another_kind_of_drafter():
    """EAGLE-3, whose state is more than keys and values; the second answer begins behind known pages."""
    engine = make_engine(make_target(), make_eagle3())
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 3)))
    for id in ("cold", "warm"):
        asked.ask(id, prompt(1, 70), 30)
        asked.finish()
        assert asked.ids(id) == offline(engine, prompt(1, 70), 30).ids
    assert [progress.runs for progress in asked.came["cold"]] == [progress.runs for progress in asked.came["warm"]]
    assert server.stats().prefix_hits == 64
