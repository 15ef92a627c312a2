"""A long prompt holds those who write up for one chunk at a time: their segments go on between its chunks."""

from models.decode import make_engine
from models.drafters import Draft
from tests.tiny import make_artifact, make_target
from tests.tiny_scheduler import Asked, offline, prompt, scheduler


def test_segments_go_on_between_chunks():
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    asked = Asked(server := scheduler(engine, capacity=400, draft=Draft("drafter", 3)))
    asked.ask("writes", prompt(0, 10), 200)
    server.turn()
    asked.ask("long", prompt(1, 330), 30)
    for chunk in range(1, 6):
        before = len(asked.ids("writes"))
        server.turn()
        assert len(asked.ids("writes")) > before, f"it wrote after chunk {chunk}"
        assert asked.ids("long") == []
    server.turn()
    assert len(asked.ids("long")) > 0, "330 tokens are six chunks of 64"
    asked.finish()
    assert asked.ids("writes") == offline(engine, prompt(0, 10), 200).ids
    assert asked.ids("long") == offline(engine, prompt(1, 330), 30).ids
