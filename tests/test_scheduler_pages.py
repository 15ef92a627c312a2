"""Every page is free, held or known at all times; rows that pages are short for wait, and lose nothing."""

import pytest

from models.decode import make_engine
from models.drafters import Draft
from models.sampling import Sampling
from serve.pages import PageTable
from tests.tiny import make_artifact, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_target(eos_ids=()), make_artifact())


def test_pages_by_hand():
    """Pages of 2: tokens 1 2 3 4 are known, 1 2 found again and 3 4 given away before it."""
    table = PageTable(4, 2)
    first = table.take(3)
    assert first is not None
    assert table.take(2) is None
    assert table.know(first, [1, 2, 3, 4, 5], 0) == 2
    assert table.release(first) == first[2:]
    assert (table.available, table.find([2, 2, 3, 4]), table.find([1, 2, 9, 9])) == (4, [], first[:1])
    second = table.take(3)
    assert second is not None
    table.check([first[:1], second])
    assert table.find([1, 2, 3, 4]) == first[:1], "what followed was given away, the one in use was not"
    with pytest.raises(AssertionError):
        table.check([second])


def test_what_is_known_is_known_to_its_salt():
    table = PageTable(4, 2)
    for salt in ("", "mine"):
        pages = table.take(2)
        assert pages is not None
        assert table.find([1, 2, 3, 4], salt) == []
        assert table.know(pages, [1, 2, 3, 4], 0, salt) == 2
        assert table.find([1, 2, 3, 4], salt) == pages


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_p=0.8)], ids=["greedy", "sampled"])
def test_the_youngest_gives_way_and_loses_nothing(engine, sampling: Sampling):
    """Three answers of 150 tokens over pages for one and a half."""
    draft = Draft("drafter", 3)
    asked = Asked(server := scheduler(engine, draft=draft, pages=34, rows=3))
    for n in range(3):
        asked.ask(str(n), prompt(n, 20), 150, sampling=sampling, seed=n)
    asked.finish()
    preempted = [asked.last(str(n)).timing.preemptions for n in range(3)]
    assert preempted[0] == 0, "the oldest never gives way"
    assert sum(preempted) == server.stats().preemptions > 0
    for n in range(3):
        assert asked.last(str(n)).finished == "length"
        if sampling.greedy:
            assert asked.ids(str(n)) == offline(engine, prompt(n, 20), 150).ids
        else:
            alone = Asked(scheduler(engine, draft=draft, rows=3))
            alone.ask("alone", prompt(n, 20), 150, sampling=sampling, seed=n)
            alone.finish()
            assert asked.ids(str(n)) == alone.ids("alone")


def test_a_conversation_goes_on_behind_its_pages(engine):
    """The second turn finds prompt and answer of the first, and its drafts are those of a cold run."""
    draft = Draft("drafter", 4)
    asked = Asked(server := scheduler(engine, draft=draft))
    asked.ask("first", prompt(0, 70), 30)
    asked.finish()
    turn = [*prompt(0, 70), *asked.ids("first"), *prompt(1, 9)]
    asked.ask("warm", turn, 40)
    asked.finish()
    timing = asked.last("warm").timing
    assert timing is not None
    assert timing.cached_tokens == 96, "99 of 100 tokens are known, of which twelve pages are full"
    assert server.stats().prefix_hits == 96
    cold = Asked(scheduler(engine, draft=draft))
    cold.ask("cold", turn, 40)
    cold.finish()
    assert asked.ids("warm") == cold.ids("cold") == offline(engine, turn, 40).ids
    assert [progress.runs for progress in asked.came["warm"]] == [progress.runs for progress in cold.came["cold"]]
