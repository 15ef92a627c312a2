"""A long prompt holds those who write up for one chunk at a time: their segments go on between its chunks. Nobody waits
for a program's first run."""

import jax
import pytest

from models.decode import make_engine
from models.drafters import SINGLE, Draft
from serve import engine as device
from tests.tiny import make_artifact, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler


def test_segments_go_on_between_chunks():
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    asked = Asked(server := scheduler(engine, capacity=400, draft=Draft("drafter", 3)))
    asked.ask("writes", prompt(0, 10), 200)
    server.turn()
    asked.ask("long", prompt(1, 330), 30)
    for chunk in range(1, 3):
        before = len(asked.ids("writes"))
        server.turn()
        assert len(asked.ids("writes")) > before, f"it wrote after chunk {chunk}"
        assert asked.ids("long") == []
    server.turn()
    assert len(asked.ids("long")) > 0, "330 tokens are chunks of 128, 128 and, of what is left, 128"
    asked.finish()
    assert asked.ids("writes") == offline(engine, prompt(0, 10), 200).ids
    assert asked.ids("long") == offline(engine, prompt(1, 330), 30).ids


def test_one_prompt_is_read_at_a_time():
    """The next waits without a row, so that a step has as many rows as write; what it shares, it finds read."""
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 3)))
    for n in range(4):
        asked.ask(str(n), prompt(0, 100), 30)
    for turn in range(1, 5):
        assert server.turn()
        assert (server.stats().running, server.stats().waiting) == (turn, 4 - turn)
        assert len(server.rows) == [1, 2, 4, 4][turn - 1]
        assert len(asked.came[str(turn - 1)]) == 1, "it was read, and a step was taken"
    assert all(progress.runs and len(progress.runs) == 1 for progress in asked.came["0"][:3]), "others wait to be read"
    assert len(asked.came["0"][3].runs) > 1
    assert server.stats().prefix_hits == 3 * 96
    asked.finish()
    assert {tuple(asked.ids(str(n))) for n in range(4)} == {tuple(offline(engine, prompt(0, 100), 30).ids)}


def test_a_segment_ends_when_a_row_does():
    """Nobody waits for others' steps to be told, and no row for the end of a segment to be another's."""
    asked = Asked(server := scheduler(make_engine(make_target(eos_ids=()), make_artifact())))
    asked.ask("short", [5], 3)
    asked.ask("long", [6], 30)
    assert server.turn()
    assert asked.last("short").finished == "length"
    assert [len(asked.ids(id)) for id in ("short", "long")] == [3, 3]


def test_every_program_has_run_before_anybody_comes(monkeypatch: pytest.MonkeyPatch):
    """With copies and without, which are loops of their own, at every number of rows; nothing is left of it."""
    ran, advance = set(), device.advance

    def counted(engine, state, table, live, num_steps, *, draft: Draft, **how):
        state, news = advance(engine, state, table, live, num_steps, draft=draft, **how)
        if news.num_steps.any():
            ran.add((len(live), draft, bool(news.copied.any())))
        return state, news

    monkeypatch.setattr(device, "advance", counted)
    draft = Draft("drafter", 3, copy=5)
    server = scheduler(make_engine(make_target(eos_ids=()), make_artifact()), rows=3, draft=draft)
    server.warm()
    every = {(size, each, copied) for size in server.sizes for each, copied in [(SINGLE, False), (draft, False)]}
    assert ran == every | {(size, draft, True) for size in server.sizes}
    server.check()
    assert server.stats().free_pages == server.stats().pages


def test_a_prompt_is_read_when_its_keys_and_values_are_there(monkeypatch: pytest.MonkeyPatch):
    """What is waited for before the clock stops is what reading made: an error of it is that request's alone."""
    made, waited, brought, wait = [], [], device.brought, jax.block_until_ready

    def bringing(*given):
        made.append(state := brought(*given))
        return state

    def waiting(tree):
        waited.extend(map(id, jax.tree.leaves(tree)))
        return wait(tree)

    monkeypatch.setattr(device, "brought", bringing)
    monkeypatch.setattr(jax, "block_until_ready", waiting)
    asked = Asked(server := scheduler(make_engine(make_target(), make_artifact())))
    asked.ask("reads", prompt(0, 100), 5)
    server.turn()
    (state,) = made
    assert {id(leaf) for leaf in (*state.cache.pages.keys, *state.cache.near.values)} <= set(waited)
