"""Two processes of one run, each on a device of its own, train what one process trains; killed, they go on exactly, on
one process too; and when one ends before its time the other says so in a line and ends."""

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.records import Responses
from tests.tiny_run import Tiny, assert_same_arrays, checkpoint_arrays, logged_step, make_tiny, start
from train.checkpoint import whole_steps
from train.metrics import read_metrics

LONG = ("train.steps=40", "train.checkpoint_every=5", "train.eval_every=20", "batches.rows=4")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def begin(tiny: Tiny, run: Path, count: int, *changes: str) -> list[subprocess.Popen[str]]:
    """`count` processes that train `run` together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    given = ["--config", str(tiny.config), f"run.dir={run}", f"mesh.data={count}", *LONG, *changes]
    met = ["--coordinator", address, "--processes", str(count), "--process"]
    return [start(["train", *given, *met, str(number)]) for number in range(count)]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def wait_for_step(run: Path, step: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 180
    while logged_step(run) < step or not whole_steps(run / "checkpoints"):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def trained_by(tiny: Tiny, count: int) -> Path:
    """A run of `count` processes, never stopped."""
    run = tiny.root / f"straight{count}"
    for code, _, err in finish(begin(tiny, run, count)):
        assert code == 0, err
    return run


def killed_and_resumed(tiny: Tiny, count: int, straight: Path) -> None:
    """All killed on the way, then resumed by as many."""
    run = tiny.root / f"killed{count}"
    processes = begin(tiny, run, count)
    wait_for_step(run, 12, processes)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    finish(processes)
    assert 5 <= whole_steps(run / "checkpoints")[-1] < 40, "killed on the way"
    for code, _, err in finish(begin(tiny, run, count, "--resume")):
        assert code == 0, err
    assert_same_arrays(checkpoint_arrays(run, 40), checkpoint_arrays(straight, 40))


def losses(run: Path) -> list[float]:
    return [line["values"]["loss"] for line in read_metrics(run) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def two(tiny: Tiny) -> Path:
    return trained_by(tiny, 2)


def test_two_train_what_one_does(tiny: Tiny, two: Path):
    done = tiny.train(tiny.root / "one", *LONG, f"run.data_dir={tiny.root}/alone")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(two), losses(tiny.root / "one"), rtol=1e-4)
    for split in ("train", "heldout"):
        (ours,) = (tiny.root / "data/responses").glob(f"*/{split}")
        (theirs,) = (tiny.root / "alone/responses").glob(f"*/{split}")
        assert list(Responses(ours)) == list(Responses(theirs))


def test_stopped_by_a_signal_to_one_and_resumed_by_one(tiny: Tiny, two: Path):
    """Both save the same step; one process alone goes on with the same batches."""
    run = tiny.root / "stopped"
    processes = begin(tiny, run, 2)
    wait_for_step(run, 7, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "--resume" in ended[0][1]
    assert "next:" not in ended[1][1], "one of them speaks"
    assert whole_steps(run / "checkpoints")[-1] < 40
    done = tiny.train(run, *LONG, "--resume")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(run), losses(two), rtol=1e-4)


def test_one_of_two_killed(tiny: Tiny):
    """The other ends with a line; what was saved stays and the two go on from it."""
    run = tiny.root / "lost"
    processes = begin(tiny, run, 2)
    wait_for_step(run, 7, processes)
    processes[0].send_signal(signal.SIGKILL)
    ended = finish(processes)
    assert ended[1][0] == 1, ended
    assert ended[1][2].strip().split("\n")[-1].startswith("error: another process of this run ended")
    assert whole_steps(run / "checkpoints")


def test_a_refusal_ends_both(tiny: Tiny):
    """What only the first process finds out, it says, and the other ends with it."""
    held = tiny.root / "held"
    held.mkdir()
    with open(held / ".lock", "a+") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        ended = finish(begin(tiny, held, 2))
    assert [code for code, _, _ in ended] == [2, 1], ended
    assert "is writing there" in ended[0][2]
    assert "error: process 0 of 2 ended: " in ended[1][2]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_all_killed_and_resumed(tiny: Tiny, count: int):
    killed_and_resumed(tiny, count, trained_by(tiny, count))
