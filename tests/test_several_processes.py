"""Processes of one run, each on devices of its own, write and train what one process does; stopped or killed, they go
on exactly, and as another number of them; when one ends before its time the others say so in a line and end."""

import argparse
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.errors import UserError
from configs.files import held
from configs.processes import add_options, collective_failed, joined
from pipelines.records import Responses
from tests.tiny_run import Tiny, assert_same_arrays, checkpoint_arrays, logged_step, make_tiny, start
from train.checkpoint import load_params, whole_steps
from train.metrics import read_metrics

# Stopped on the way.
ENDLESS = ("train.steps=5000", "train.checkpoint_every=100", "train.eval_every=0", "batches.rows=4")
WHOLE = ("train.steps=60", "train.checkpoint_every=10", "train.eval_every=30", "batches.rows=4")
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "NPROC": "32"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def begin(
    tiny: Tiny, run: Path, count: int, *changes: str, environment: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """`count` processes that train `run` together."""
    given = ["train", "--config", str(tiny.config), f"run.dir={run}", f"mesh.data={count}", *changes]
    met = ["--coordinator", free_address(), "--processes", str(count), "--process"]
    return [start([*given, *met, str(number)], environment=environment) for number in range(count)]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


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
    while logged_step(run) < step:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def losses(run: Path) -> list[float]:
    return [line["values"]["loss"] for line in read_metrics(run) if line["kind"] == "train"]


def stop(run: Path, processes: Sequence[subprocess.Popen[str]], *, after: int) -> list[tuple[int, str, str]]:
    """SIGTERM to the last process once a step is logged; how all of them ended."""
    wait_for_step(run, after, processes)
    processes[-1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * len(processes), ended
    return ended


def test_two_stopped_by_a_signal_to_one_and_resumed_by_one(tiny: Tiny):
    """Both stop at the same step, and one goes on with the batches that one would have seen from the start."""
    run, alone = tiny.root / "two", tiny.root / "one"
    ended = stop(run, begin(tiny, run, 2, *ENDLESS), after=5)
    assert "--resume" in ended[0][1]
    assert "next:" not in ended[1][1], "one of them speaks"
    (last,) = whole_steps(run / "checkpoints")[-1:]
    stop(run, [tiny.start(run, *ENDLESS, "--resume")], after=last + 5)
    stop(alone, [tiny.start(alone, *ENDLESS, f"run.data_dir={tiny.root}/alone")], after=last + 5)
    np.testing.assert_allclose(losses(run)[: last + 5], losses(alone)[: last + 5], rtol=1e-3)
    np.testing.assert_allclose(losses(run)[:8], losses(alone)[:8], rtol=1e-5)  # before rounding has grown
    for split in ("train", "heldout"):
        (ours,) = (tiny.root / "data/responses").glob(f"*/{split}")
        (theirs,) = (tiny.root / "alone/responses").glob(f"*/{split}")
        assert list(Responses(ours)) == list(Responses(theirs))


def test_weights_split_over_processes(tiny: Tiny):
    """As on a slice of two hosts: fsdp over both, tensor over the devices of each, the target online in the step."""
    shape = ("features.mode=online", "batches.rows=4", "train.eval_every=6")
    one, two = tiny.root / "unsplit", tiny.root / "split"
    done = tiny.train(one, *shape)
    assert done.returncode == 0, done.stderr
    split = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2", f"run.data_dir={tiny.root}/split_data")
    for code, _, err in finish(begin(tiny, two, 2, *shape, *split, environment=TWO_DEVICES)):
        assert code == 0, err
    assert len(losses(two)) == 12
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    for name, value in checkpoint_arrays(one, 12).items():
        if name.startswith("params"):
            np.testing.assert_allclose(checkpoint_arrays(two, 12)[name], value, atol=2e-5, err_msg=name)
    (alone,), (split_over,) = (
        [line["values"] for line in read_metrics(run) if line["step"] == 12 and line["kind"] != "train"]
        for run in (one, two)
    )
    assert split_over == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow  # the last process is missed after 30 s
def test_one_of_two_killed(tiny: Tiny):
    """The other ends with a line, what was saved is whole, and both go on to what was trained undisturbed, bit for bit;
    named by options, by a scheduler's variables or by JAX's."""
    run, straight = tiny.root / "lost", tiny.root / "undisturbed"
    processes = begin(tiny, run, 2, *WHOLE)
    wait_for_step(run, 25, processes)
    processes[0].send_signal(signal.SIGKILL)
    ended = finish(processes)
    assert ended[1][0] == 1, ended
    assert ended[1][2].strip().split("\n")[-1].startswith("error: another process of this run ended")
    assert 10 <= load_params(run / "checkpoints", "last")[2] < 60, "killed on the way"

    given = ["train", "--config", str(tiny.config), "mesh.data=2", *WHOLE]
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    resumed = [
        start(
            [*given, f"run.dir={run}", "--resume", "--processes", "auto"],
            environment=slurm | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
        )
        for number in range(2)
    ]
    for code, out, err in finish(resumed):
        assert code == 0, (out, err)
    jax = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": "2"}
    undisturbed = [
        start([*given, f"run.dir={straight}"], environment=jax | {"JAX_PROCESS_ID": str(number)}) for number in range(2)
    ]
    for code, out, err in finish(undisturbed):
        assert code == 0, (out, err)
    assert_same_arrays(checkpoint_arrays(run, 60), checkpoint_arrays(straight, 60))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:16785: Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), False),
        (ValueError("operands could not be broadcast together"), False),
        (UserError("train.rows: expected 1 or more"), False),
    ],
)
def test_what_a_lost_process_looks_like(error: Exception, lost: bool):
    """Of the runtime, by its status, whichever type it comes as: read from a result it is a ValueError."""
    assert collective_failed(error) == lost


def test_a_refusal_ends_both(tiny: Tiny):
    """What only the first process finds out, it says, and the other ends with it."""
    run = tiny.root / "held"
    with held(run, wait=False):
        ended = finish(begin(tiny, run, 2))
    assert [code for code, _, _ in ended] == [2, 1], ended
    assert "is writing there" in ended[0][2]
    assert "error: process 0 of 2 ended: " in ended[1][2]


@pytest.mark.parametrize(
    "options", [("--processes", "2"), ("--coordinator", "h:1", "--processes", "2", "--process", "2")]
)
def test_options_that_do_not_fit(tiny: Tiny, options: tuple[str, ...]):
    parser = argparse.ArgumentParser()
    add_options(parser)
    with (
        pytest.raises(UserError, match="expected HOST:PORT, a count N and one of 0 to N - 1"),
        joined(parser.parse_args(options)),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_all_killed_and_resumed(tiny: Tiny, count: int):
    """Bit for bit what processes that were never killed train."""
    run, straight = tiny.root / f"killed{count}", tiny.root / f"straight{count}"
    for code, _, err in finish(begin(tiny, straight, count, *WHOLE)):
        assert code == 0, err
    processes = begin(tiny, run, count, *WHOLE)
    wait_for_step(run, 25, processes)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    finish(processes)
    assert 10 <= whole_steps(run / "checkpoints")[-1] < 60, "killed on the way"
    for code, _, err in finish(begin(tiny, run, count, *WHOLE, "--resume")):
        assert code == 0, err
    assert_same_arrays(checkpoint_arrays(run, 60), checkpoint_arrays(straight, 60))


@pytest.mark.slow
def test_the_last_of_four_killed(tiny: Tiny):
    """Nothing tells the others but that it gives no sign of life; resumed by two, nothing is lost."""
    run = tiny.root / "missed"
    processes = begin(tiny, run, 4, *ENDLESS, "train.checkpoint_every=2")
    wait_for_step(run, 7, processes)
    processes[3].send_signal(signal.SIGKILL)
    for code, _, err in finish(processes)[:3]:
        assert code == 1
        assert err.strip().split("\n")[-1].startswith("error: ")
    last = whole_steps(run / "checkpoints")[-1]
    resumed = begin(tiny, run, 2, *ENDLESS, "train.checkpoint_every=2", "--resume")
    deadline = time.monotonic() + 180
    while whole_steps(run / "checkpoints")[-1] <= last:  # the log may hold later steps of those that were killed
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended = stop(run, resumed, after=last)
    assert f"going on from step {last}" in ended[0][1]
