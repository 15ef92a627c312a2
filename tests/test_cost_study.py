"""The programs of the cost study are those of decoding, and a target of many layers costs what a few of them say."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import serve.cost_study
from models.aot import CHIPS, Refusal, Topology
from models.attention import Chain, whole
from models.decode import Engine, make_engine, prefill
from models.drafters import Nothing
from models.roofline import Machine
from models.sampling import keys
from models.sharding import MESH
from models.verify import GREEDILY
from serve.__main__ import main as command
from serve.cost_study import draft_once, estimate, measure, pieces, verify_once
from serve.report import write_report
from tests.test_report import made_up_report
from tests.tiny import make_artifact, make_target
from tests.tiny_run import make_tiny

MACHINE = Machine("any", 1e12, 1e12)


def prefilled(engine: Engine, ids: np.ndarray, capacity: int) -> Any:
    length, zero = np.array([ids.shape[1]], np.int32), np.zeros(1, np.int32)
    return prefill(engine, ids, length, length + 20, zero, capacity=capacity)


def test_verifying_says_the_targets_tokens():
    target = make_target()
    ids = np.random.default_rng(0).integers(3, 60, (1, 20)).astype(np.int32)
    state = prefilled(Engine(target, Nothing()), ids[:, :14], 32)
    chosen, finite, cache = verify_once(target, state.cache, jnp.asarray(ids[:, 14:]), jnp.arange(14, 20)[None])
    hidden, _, _ = target(jnp.asarray(ids), whole(jnp.asarray(ids)))
    assert bool(finite[0])
    assert chosen.tolist() == jnp.argmax(target.logits(hidden), axis=-1)[:, 14:].tolist()
    again, _, _ = target(jnp.asarray(ids[:, 19:]), Chain(jnp.array([[19]])), cache=cache)
    np.testing.assert_allclose(again, hidden[:, 19:], atol=1e-4)


def test_drafting_is_the_drafters_proposal():
    engine = make_engine(make_target(), make_artifact())
    ids = np.random.default_rng(0).integers(3, 60, (1, 12)).astype(np.int32)
    state = prefilled(engine, ids, 32)
    key = keys(state.rows.seed, state.rows.length - 1)
    given = {"key": key, "width": 4, "speculation": GREEDILY}
    expected = engine.drafter.propose(engine.target, state.drafter, state.rows, **given).tokens.tolist()
    tokens, _ = draft_once(engine, state.drafter, state.rows, jnp.ones((1, 4, 64)), 4)
    assert tokens.tolist() == expected


def test_all_of_the_grid_is_timed(monkeypatch: pytest.MonkeyPatch):
    """The quartiles hold the medians between them, and drafting counts from width 2 on."""
    monkeypatch.setattr(serve.cost_study, "REPEATS", 2)
    curve = measure(make_engine(make_target(), make_artifact()), 2, 16, [1, 2, 4], MACHINE)
    assert list(curve.verify_ms) == list(curve.floor_ms) == list(curve.draft_ms) == [1, 2, 4]
    assert curve.draft_ms[1] == 0 < min(curve.draft_ms[2], curve.draft_ms[4])
    assert all(low <= curve.verify_ms[width] <= high for width, (low, high) in curve.spread_ms.items())
    assert measure(Engine(make_target(), Nothing()), 1, 16, [1, 2], MACHINE).draft_ms == {}


def test_estimates_are_kept_by_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A second target of another type is compiled again, the first one is not, and half a file counts as none."""
    compiled = []

    def examined(lowered: Any, chips: Any, arguments: Any, trips: Any) -> tuple[Any, float, Any]:
        compiled.append(lowered)
        return Refusal("v5p", {}, 1.0, 2.0, []), 0.0, None

    monkeypatch.setattr(serve.cost_study.aot, "examine", examined)
    monkeypatch.setattr(serve.cost_study, "abstract_state", lambda *_: SimpleNamespace(cache=None))
    monkeypatch.setattr(serve.cost_study, "verify_once", SimpleNamespace(lower=lambda *_: None))
    monkeypatch.setattr(serve.cost_study, "cache_directory", lambda: tmp_path)
    chips = Topology("v5p", CHIPS["v5p"], [])
    for dtype, count in (("float32", 1), ("bfloat16", 2), ("float32", 2)):
        target = make_target(dtype=dtype)
        target.mesh = jax.make_mesh((1, 1, 1), MESH, axis_types=(AxisType.Auto,) * 3)
        assert serve.cost_study.estimated_verify(target, 1, 16, 2, chips) is None
        assert len(compiled) == count, dtype
    for file in (tmp_path / "estimates").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    serve.cost_study.estimated_verify(target, 1, 16, 2, chips)
    assert len(compiled) == 3


def test_layers_are_alike(monkeypatch: pytest.MonkeyPatch):
    """Where a program of n layers takes 3 + 5 n ms, the tiny target, given six, takes 33; what does not fit the chip is
    left out."""
    target, seen = make_target(num_layers=6), []
    target.mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))

    def kept(lowered: Any, chips: Any, shape: Any, step: Any, trips: int) -> float | None:
        seen.append(shape[0].num_layers)
        assert trips == 1
        return None if step[-1] == 64 else 3.0 + 5.0 * shape[0].num_layers  # the compiler gives up on it

    monkeypatch.setattr(serve.cost_study, "kept_estimate", kept)
    chip = dataclasses.replace(CHIPS["v5p"], memory=1e8)
    curve = estimate(Engine(target, Nothing()), 1, 16, [1, 8, 10**6], Topology("v5p", chip, []))
    assert curve.verify_ms == {1: pytest.approx(33.0), 8: pytest.approx(33.0)}
    assert (
        estimate(Engine(target, Nothing()), 1, 16, [1, 8, 64, 128], Topology("v5p", chip, [])).verify_ms
        == curve.verify_ms
    )
    assert set(seen) == {2, 4}
    assert [pieces(8, 513), pieces(8, 512), pieces(9, 513)] == [3, 2, 1], "many rows are read whole"


def test_the_command_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Steps are timed, what goes past the target's 256 positions is said, and an eval's acceptance is priced."""
    tiny, out = make_tiny(tmp_path / "tiny"), tmp_path / "cost"
    write_report(made_up_report(), tmp_path / "eval")
    grid = ["--widths", "1,2,4", "--batches", "1,2", "--contexts", "16,253,300"]
    asked = ["cost", "--target", str(tiny.root / "target"), *grid, "--acceptance", str(tmp_path / "eval")]
    assert command([*asked, "--out", str(out)]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    study = json.loads(last)
    places = [(curve["batch"], curve["context"], len(curve["verify_ms"])) for curve in study["curves"]]
    assert places == [(1, 16, 3), (1, 253, 2), (2, 16, 3), (2, 253, 2)]
    assert any("context 253: 1 widths left out" in line for line in said)
    assert {"cost.json", "speedup.svg"} <= {file.name for file in out.iterdir()}
    assert all(set(priced["widths"]) == {"1", "2", "4"} for priced in study["predicted"] if priced["context"] == 16)
    assert command(["cost", "--target", str(tiny.root / "target"), "--contexts", "300"]) == 2
    assert "expected contexts of less than the target's 256 positions" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "1", "1.2", "nan"])
def test_an_acceptance_that_is_none(given: str, capsys: pytest.CaptureFixture[str]):
    assert command(["cost", "--target", "smollm2-135m", "--acceptance", given]) == 2
    assert "expected a report or a number above 0 and below 1" in capsys.readouterr().err


def test_an_acceptance_of_every_slot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A number in place of a report; speedups are shown by width."""
    tiny = make_tiny(tmp_path / "tiny")
    grid = ["--widths", "1,2,8", "--batches", "1", "--contexts", "16"]
    assert command(["cost", "--target", str(tiny.root / "target"), *grid, "--acceptance", "0.5"]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    study = json.loads(last)
    assert study["scaling"]["tau"] == pytest.approx(2 - 0.5**7)
    (priced,) = study["predicted"]
    for width, tau in {"2": 1.5, "8": 2 - 0.5**7}.items():
        ms = study["curves"][0]["verify_ms"]
        assert priced["widths"][width] == pytest.approx(tau * ms["1"] / ms[width])
    assert any("W = 8" in line and f"{priced['widths']['8']:.2f}x" in line for line in said)
