"""What befalls one request befalls it alone: values that are not finite, a device that fails, a client that goes."""

import jax.numpy as jnp
import pytest

import serve.engine
from models.decode import make_engine
from models.drafters import Draft
from serve.requests import Full
from tests.tiny import make_artifact, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler

POISON = 3  # a token whose embedding is no number


@pytest.fixture(scope="module")
def engine():
    target = make_target(eos_ids=())
    target.embedding[...] = target.embedding[...].at[POISON].set(jnp.nan)
    target.untied_head[...] = target.untied_head[...].at[POISON].set(0)  # and which nobody says
    return make_engine(target, make_artifact())


def clean(seed: int, size: int) -> list[int]:
    return [token if token != POISON else 4 for token in prompt(seed, size)]


def test_a_row_that_is_not_finite_ends_alone(engine):
    """Its pages go to others, for whom 0 x NaN would be NaN; the one that ends in the poison hides it in its last."""
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 4), pages=34))
    sound = {f"sound {n}": clean(n, 30) for n in range(6)}
    for n, (id, ids) in enumerate(sound.items()):
        asked.ask(id, ids, 30)
        asked.ask(f"broken {n}", [*clean(n, 20 + n), POISON, *clean(n + 9, n)], 30)
    asked.finish()
    for id, ids in sound.items():
        assert asked.ids(id) == offline(engine, ids, 30).ids
    broken = [asked.last(f"broken {n}") for n in range(6)]
    assert {(last.finished, last.ids) for last in broken} == {("fault", ())}
    assert all("not finite" in str(last.fault) for last in broken)
    pages = server.state.cache.pages
    assert all(bool(jnp.isfinite(pool).all()) for pool in [*pages.keys, *pages.values])
    assert bool(jnp.isfinite(server.state.drafter.pages.values[0]).all())


def out_of_memory(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


@pytest.mark.parametrize(
    ("program", "turns", "ended"),
    [("advance", 2, "1"), ("prefill", 1, "1"), ("seat", 0, "0"), ("resized", 1, "1"), ("logprobs", 2, "0")],
)
def test_an_error_on_the_device_ends_one(engine, monkeypatch: pytest.MonkeyPatch, program: str, turns: int, ended: str):
    """Whom it was working for, the youngest where that was all; the others write on as if nothing had been."""
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 4), rows=2))
    for n in range(4):
        asked.ask(str(n), clean(n, 30 if n != 1 else 100), 30, logprobs=0 if n == 0 else None)
    for _ in range(turns):
        server.turn()
    with monkeypatch.context() as broken:
        broken.setattr(serve.engine, program, out_of_memory)
        assert server.turn()
        server.check()
    assert asked.last(ended).finished == "fault"
    assert f"request {ended}: the device failed" in str(asked.last(ended).fault)
    asked.ask("again", clean(int(ended), 30), 30)
    asked.finish()
    for id, n in [(str(n), n) for n in range(4) if str(n) != ended] + [("again", int(ended))]:
        assert asked.ids(id) == offline(engine, clean(n, 30 if id != "1" else 100), 30).ids
    assert server.pages.available == server.pages.num


def test_who_leaves_while_the_device_fails_is_told(engine, monkeypatch: pytest.MonkeyPatch):
    """A row whose pages could not be cleaned is no longer seated, and not lost."""
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 4), rows=2))
    for n in range(2):
        asked.ask(str(n), clean(n, 30), 30)
    server.turn()
    server.turn()
    server.cancel("0")
    with monkeypatch.context() as broken:
        broken.setattr(serve.engine, "cleaned", out_of_memory)
        assert server.turn()
    asked.finish()
    assert asked.last("0").finished == "fault"
    assert asked.ids("1") == offline(engine, clean(1, 30), 30).ids


def test_a_device_that_goes_on_failing_ends_them_all(engine, monkeypatch: pytest.MonkeyPatch):
    asked = Asked(server := scheduler(engine, draft=Draft("drafter", 4), rows=2))
    for n in range(4):
        asked.ask(str(n), clean(n, 30), 30)
    monkeypatch.setattr(serve.engine, "advance", out_of_memory)
    asked.finish()
    assert {asked.last(str(n)).finished for n in range(4)} == {"fault"}
    assert server.pages.available == server.pages.num


def test_who_cancels_leaves_within_a_segment(engine):
    """Running, being read, waiting; those beside them notice nothing."""
    asked = Asked(server := scheduler(engine, rows=2, draft=Draft("drafter", 4)))
    asked.ask("stays", clean(0, 30), 60)
    asked.ask("runs", clean(1, 30), 60)
    server.turn()
    server.turn()
    asked.ask("waits", clean(2, 30), 60)
    for id in ("runs", "waits", "nobody"):
        server.cancel(id)
    server.turn()
    server.check()
    assert [asked.last(id).finished for id in ("runs", "waits")] == ["cancelled", "cancelled"]
    assert (server.stats().running, server.stats().waiting) == (1, 0)
    asked.ask("read", clean(3, 200), 9)
    server.turn()
    server.cancel("read")
    asked.finish()
    assert asked.last("read").finished == "cancelled"
    assert asked.ids("stays") == offline(engine, clean(0, 30), 60).ids
    assert server.pages.available == server.pages.num


def test_a_full_queue_says_so(engine):
    """Who will have a row without anybody's leaving does not count."""
    asked = Asked(server := scheduler(engine, rows=1, queue=2))
    for n in range(3):
        asked.ask(str(n), [5], 30)
    with pytest.raises(Full, match="2 requests are waiting"):
        asked.ask("3", [5], 30)
    server.turn()
    assert (server.stats().running, server.stats().waiting) == (1, 2)
    with pytest.raises(Full, match="2 requests are waiting"):
        asked.ask("3", [5], 30)


def test_a_row_without_pages_is_no_room_in_the_queue(engine):
    asked = Asked(server := scheduler(engine, queue=1, pages=33))
    asked.ask("runs", clean(0, 220), 30)
    asked.ask("waits for pages", clean(1, 100), 5)
    for _ in range(3):
        server.turn()
    assert (server.stats().running, server.stats().waiting) == (1, 1)
    with pytest.raises(Full, match="1 requests are waiting"):
        asked.ask("more", [5], 5)
    asked.finish()
    assert asked.last("waits for pages").finished == "length"


@pytest.mark.parametrize(
    ("ids", "new", "options", "words"),
    [
        ([], 3, {}, "at least one token"),
        ([61], 3, {}, "token id 61 at place 0"),
        ([5], 0, {}, "max_new_tokens: expected at least 1, got 0"),
        ([5] * 200, 57, {}, r"200 tokens \+ max_new_tokens=57 exceed the 256 positions"),
        ([5], 3, {"stop": ("",)}, "none of them empty"),
        ([5], 3, {"seed": -1}, "seed: expected 0 to"),
        ([5], 3, {"logprobs": 21}, "logprobs: expected 0 to 20, got 21"),
    ],
)
def test_what_cannot_be_asked(engine, ids, new: int, options, words: str):
    with pytest.raises(ValueError, match=words):
        Asked(scheduler(engine)).ask("0", ids, new, **options)
