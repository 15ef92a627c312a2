"""What a step costs: kept under everything that decides it, damaged files measured anew, drafting without its call."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import serve.cost
from models.decode import make_engine, prefill, propose
from models.drafters import Draft, Nothing
from models.sampling import Sampling, keys
from models.verify import GREEDILY
from serve.cost import STEPS, Cost, draft_segment, kept_cost, measure_cost, surroundings, timed_stop
from tests.tiny import make_artifact, make_target

COST = Cost(10.0, {1: 0.0, 2: 2.0}, {1: 10.5, 2: 11.0})


@pytest.fixture
def costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "wideblock" / "costs"


def never() -> Cost:
    raise AssertionError("measured though it was kept")


def test_measured_once(costs: Path):
    assert kept_cost({"a": 1}, lambda: COST) == COST
    assert kept_cost({"a": 1}, never) == COST
    other = dataclasses.replace(COST, plain_ms=5.0)
    assert kept_cost({"a": 2}, lambda: other) == other
    assert len(list(costs.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"identity": {}, "cost": {"plain_ms": 1.',
        b"[]",
        b'{"identity": {}}',
        b'{"cost": null}',
        b'{"cost": {"plain_ms": null, "draft_ms": {}, "verify_ms": {}}}',
        b'{"cost": {"plain_ms": 1.0, "draft_ms": [1], "verify_ms": {"1": 1.0}}}',
        b'{"cost": {"plain_ms": NaN, "draft_ms": {"1": 0.0}, "verify_ms": {"1": 1.0}}}',
        b'{"cost": {"plain_ms": 1.0, "draft_ms": {"1": 0.0}, "verify_ms": {"1": 1.0, "2": 2.0}}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_measured_anew(costs: Path, content: bytes, capsys: pytest.CaptureFixture[str]):
    kept_cost({"a": 1}, lambda: COST)
    (file,) = costs.iterdir()
    file.write_bytes(content)
    assert kept_cost({"a": 1}, lambda: COST) == COST
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"cost: {file}: damaged" in said
    assert kept_cost({"a": 1}, never) == COST, "and written whole"


def test_a_cache_that_cannot_be_written_costs_no_evaluation(costs: Path, capsys: pytest.CaptureFixture[str]):
    costs.parent.mkdir()
    costs.write_text("a file in place of the folder")
    assert kept_cost({"a": 1}, lambda: COST) == COST
    assert "cost: not kept" in capsys.readouterr().out


def test_what_names_a_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another JAX, other code, fewer cores or another kind of sampling is another cost; another temperature is not."""
    known = surroundings(GREEDILY)
    assert known["rows"] == 1

    def sampled(**fields) -> dict:
        return surroundings(dataclasses.replace(GREEDILY, sampling=Sampling(0.7, **fields)))

    kinds = [known, sampled(), sampled(top_k=5), sampled(top_p=0.9), sampled(min_p=0.1)]
    assert len({json.dumps(kind) for kind in kinds}) == 5
    assert sampled() == surroundings(dataclasses.replace(GREEDILY, sampling=Sampling(1.3)))
    monkeypatch.setattr(serve.cost.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert surroundings(GREEDILY)["cores"] == 3
    monkeypatch.setattr(serve.cost.importlib.metadata, "version", lambda name: "9.9")
    assert surroundings(GREEDILY)["jax"] == ["9.9", "9.9"] != known["jax"]
    copy = tmp_path / "serve" / "cost.py"
    for folder in ("models", "serve"):
        shutil.copytree(Path(serve.cost.__file__).parent.parent / folder, tmp_path / folder)
    monkeypatch.setattr(serve.cost, "__file__", str(copy))
    assert surroundings(GREEDILY)["code"] == known["code"]
    with open(tmp_path / "models" / "layers.py", "a") as file:
        file.write("\n# another forward\n")
    assert surroundings(GREEDILY)["code"] != known["code"]


def test_parts_add_up_to_steps_and_hold_no_call(monkeypatch: pytest.MonkeyPatch):
    """By a clock that counts: a call takes 40 ms whatever it does, a draft 1, a plain step 10, one of width 2 13."""
    target = make_target()
    engine = make_engine(target, make_artifact())
    ids, length, zero = np.full((1, 8), 5, np.int32), np.array([8], np.int32), np.zeros(1, np.int32)
    state = prefill(engine, ids, length, length + 200, zero, capacity=256)
    plain = prefill(engine.plain, ids, length, length + 200, zero, capacity=256)
    clock = [0.0]

    def taking(ms: float):
        def segment(*_, num_steps: int, **__):
            clock[0] += (40.0 + num_steps * ms) / 1e3
            return state

        return segment

    def stepping(engine, state, *, num_steps: int, draft: Draft, speculation):
        plain = isinstance(engine.drafter, Nothing)
        return taking(10.0 if plain else {1: 11.0, 2: 13.0}[draft.width])(num_steps=num_steps)

    monkeypatch.setattr(serve.cost, "segment", stepping)
    monkeypatch.setattr(serve.cost, "draft_segment", taking(1.0))
    monkeypatch.setattr(serve.cost.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(serve.cost, "_steps", lambda before, after: STEPS)
    cost = measure_cost(engine, state, plain, [1, 2])
    call = 40.0 / STEPS
    assert cost.plain_ms == pytest.approx(10.0 + call)
    assert cost.verify_ms == pytest.approx({1: 11.0 + call, 2: 12.0})
    assert cost.draft_ms == pytest.approx({1: 0.0, 2: 1.0 + call})
    assert cost.step_ms("drafter", 2) == pytest.approx(13.0 + call)


def test_trees_are_timed_while_they_are_cheap(monkeypatch: pytest.MonkeyPatch):
    """A block within two plain steps: a tree of 7 is timed; its steps take more, so that no larger one is."""
    engine, timed = make_engine(make_target(), make_artifact(width=20)), []

    def by(verify_ms: float):
        def measured(engine, state, plain, widths, speculation, trees=()):
            timed.extend(draft.tree for draft in trees)
            each = dict.fromkeys(widths, verify_ms)
            return Cost(10.0, each, each, {draft.tree: 21.0 for draft in trees})

        return measured

    for verify_ms, expected in ((21.0, []), (19.0, [7])):
        timed.clear()
        monkeypatch.setattr(serve.cost, "measure_cost", by(verify_ms))
        assert list(serve.cost.time_steps(engine, 256, [1, 2, 16, 20]).tree_ms) == timed == expected


def test_steps_are_timed_where_there_is_room():
    """The widest block after the last token of the timed rows still fits: a row that lacks room ends as a fault."""
    for capacity, widths in ((256, [1, 128]), (512, [1, 2, 32]), (256, [2, 6])):
        stop = timed_stop(capacity, widths)
        assert stop + max(widths) - 1 <= capacity
        assert stop >= capacity // 4 + STEPS or max(widths) == 128


def test_drafting_alone_drafts_as_often_as_it_is_told():
    """From anchor to anchor: after n rounds the anchor is what n greedy drafts, each from the last, end with."""
    engine = make_engine(make_target(), make_artifact())
    ids = np.random.default_rng(0).integers(3, 60, (1, 12)).astype(np.int32)
    length, zero = np.array([12], np.int32), np.zeros(1, np.int32)

    def fresh():
        return prefill(engine, ids, length, length + 60, zero, capacity=128)

    anchors = [int(draft_segment(engine, fresh(), n, 4).rows.tokens[0, 11]) for n in range(4)]
    assert anchors[0] == ids[0, 11]
    for before, after in itertools.pairwise(anchors):
        state = fresh()
        rows = dataclasses.replace(state.rows, tokens=state.rows.tokens.at[0, 11].set(before))
        state = dataclasses.replace(state, rows=rows)
        key = keys(rows.seed, rows.length - 1)
        proposal, _ = propose(engine, state, Draft("drafter", 4), GREEDILY, key, "none")
        assert after == int(proposal.tokens[0, -1])
    end = draft_segment(engine, fresh(), 3, 4).rows
    assert int(end.num_steps[0]) == 0
    assert int(end.length[0]) == 12
