"""A run killed with SIGKILL and resumed ends with the parameters and optimizer state of one never killed, bit for bit;
SIGTERM saves, says how to go on, and resumes as exactly."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from tests.tiny_run import Tiny, assert_same_arrays, checkpoint_arrays, logged_step, make_tiny, signal_when
from train.checkpoint import load_params, whole_steps

STEPS = 80
LONG = (f"train.steps={STEPS}", "train.checkpoint_every=10", "train.eval_every=40")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    assert tiny.called(tiny.root / "straight", *LONG).returncode == 0
    return tiny


def interrupt(tiny: Tiny, run: Path, number: signal.Signals, *, step: int) -> tuple[int, str]:
    process = tiny.start(run, *LONG)
    out, _ = signal_when(process, number, lambda: logged_step(run) >= step and bool(whole_steps(run / "checkpoints")))
    return process.returncode, out


def steps_logged(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    return [line["step"] for line in lines if line["kind"] == "train"]


def test_kill_9(tiny: Tiny):
    run = tiny.root / "killed"
    code, _ = interrupt(tiny, run, signal.SIGKILL, step=12)
    assert code == -signal.SIGKILL
    last = whole_steps(run / "checkpoints")[-1]
    assert 10 <= last < STEPS, "killed on the way"
    done = tiny.called(run, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"going on from step {last}" in done.stdout
    assert_same_arrays(checkpoint_arrays(run, STEPS), checkpoint_arrays(tiny.root / "straight", STEPS))
    assert steps_logged(run) == list(range(1, STEPS + 1)), "every step once"


def test_a_half_written_checkpoint_does_not_count(tiny: Tiny):
    """What a kill during a save leaves behind, under either name Orbax may give it, is passed over."""
    run = tiny.root / "halfway"
    code, _ = interrupt(tiny, run, signal.SIGTERM, step=12)
    assert code == 128 + signal.SIGTERM
    last = whole_steps(run / "checkpoints")[-1]
    tmp = run / "checkpoints" / f"{last + 1}.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / str(last), tmp)
    shutil.rmtree(tmp / "params")
    done = tiny.called(run, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"going on from step {last}" in done.stdout
    assert_same_arrays(checkpoint_arrays(run, STEPS), checkpoint_arrays(tiny.root / "straight", STEPS))


def test_sigterm_saves_and_says_how_to_go_on(tiny: Tiny):
    run = tiny.root / "stopped"
    code, out = interrupt(tiny, run, signal.SIGTERM, step=12)
    assert code == 128 + signal.SIGTERM
    assert "saved step" in out
    assert "--resume" in out
    done = tiny.called(run, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_arrays(checkpoint_arrays(run, STEPS), checkpoint_arrays(tiny.root / "straight", STEPS))


def test_a_finished_run_is_not_overwritten(tiny: Tiny):
    done = tiny.called(tiny.root / "straight", *LONG)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


def test_another_recipe_is_refused_with_the_fields(tiny: Tiny):
    done = tiny.called(
        tiny.root / "straight",
        *LONG,
        "--resume",
        "drafter.width=3",
        "batches.blocks={3: 4}",
        "drafter.target_layer_ids=[0]",
    )
    assert done.returncode == 2
    assert "width: checkpoint 4, recipe 3" in done.stderr
    assert "taps: checkpoint [1], recipe [0]" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["features.mode=online"], "features.mode: checkpoint 'cached', recipe 'online'"),
        (["features.dtype=float16"], "features.dtype: checkpoint 'float32', recipe 'float16'"),
        (["train.dtype=bfloat16"], "train.dtype: checkpoint 'float32', recipe 'bfloat16'"),
        (["target.dtype=bfloat16"], "target.dtype: checkpoint 'float32', recipe 'bfloat16'"),
    ],
)
def test_another_computation_is_refused(tiny: Tiny, changes: list[str], said: str):
    done = tiny.called(tiny.root / "straight", *LONG, "--resume", *changes)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().split("\n")
    assert said in line


def test_the_first_parts_recipe_stays(tiny: Tiny):
    """What a resumed part changes lies beside it, under the step it went on from; nothing changed writes nothing."""
    run = tiny.root / "parts"
    interrupt(tiny, run, signal.SIGTERM, step=12)
    last = whole_steps(run / "checkpoints")[-1]
    first = {name: (run / name).read_bytes() for name in ("recipe.yaml", "provenance.json")}
    for keep in ("train.keep=3", "train.keep=3"):
        done = tiny.train(run, *LONG, keep, "--resume")
        assert done.returncode == 0, done.stderr
    assert {name: (run / name).read_bytes() for name in first} == first
    later = run / f"recipe.{last}.yaml"
    assert sorted(run.glob("recipe*.yaml")) == sorted([later, run / "recipe.yaml"])
    before, after = (yaml.safe_load(path.read_text()) for path in (run / "recipe.yaml", later))
    assert (before["train"].pop("keep"), after["train"].pop("keep")) == (2, 3)
    assert before == after
    assert "--resume" in json.loads((run / f"provenance.{last}.json").read_text())["command"]


def test_a_truncated_checkpoint_is_one_line(tiny: Tiny, tmp_path: Path):
    run = tmp_path / "cut"
    shutil.copytree(tiny.root / "straight", run)
    for file in (run / "checkpoints" / str(STEPS) / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged or foreign checkpoint"):
        load_params(run / "checkpoints", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["optimizer.accumulation=2", "optimizer.muon_learning_rate=0.003"])
def test_kill_9_with_another_optimizer(tiny: Tiny, change: str):
    for name in ("straight", "killed"):
        run = tiny.root / f"{change}-{name}"
        if name == "killed":
            process = tiny.start(run, change)
            signal_when(process, signal.SIGKILL, lambda run=run: logged_step(run) >= 5)
        assert tiny.called(run, change, "--resume").returncode == 0
    assert_same_arrays(checkpoint_arrays(run, 12), checkpoint_arrays(tiny.root / f"{change}-straight", 12))
