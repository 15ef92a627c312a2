"""Two processes at once: a run's directory has one writer and the second is told who; data asked for twice are written
once; a file under its name is always whole."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.files import held, write_json
from pipelines.records import Responses
from tests.tiny_run import Tiny, logged_step, make_tiny
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_has_one_writer(tiny: Tiny):
    """The second is refused in a line that says who holds it; the first, killed, holds it no longer."""
    run, steps = tiny.root / "run", "train.steps=5000"
    first = tiny.start(run, steps, "train.checkpoint_every=0", "train.eval_every=0")
    try:
        wait_until(lambda: logged_step(run) > 0, first)
        second = tiny.train(run, steps, "--resume")
        assert first.poll() is None, "it goes on undisturbed"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert second.returncode == 2
    (line,) = second.stderr.strip().split("\n")
    assert line.startswith(f"error: {run}: process {first.pid} on ")
    assert "choose another directory" in line
    with held(run, wait=False):
        pass


def test_data_held_by_another_are_waited_for(tiny: Tiny, tmp_path: Path):
    """This process holds the folder of responses; the command says so, waits, and goes on when it is let go."""
    data = tmp_path / "data"
    done = tiny.called(tmp_path / "a", "train.steps=1", f"run.data_dir={data}")
    assert done.returncode == 0, done.stderr
    (folder,) = (data / "responses").glob("*/train")
    expected = list(Responses(folder.parent / "train"))
    mark = folder / "00001.json"
    content = json.loads(mark.read_text())
    mark.unlink()
    with held(folder, wait=False):
        process = tiny.start(tmp_path / "b", "train.steps=1", f"run.data_dir={data}")
        assert process.stdout is not None
        line = next(line for line in process.stdout if "waiting for its end" in line)
        assert line.startswith(f"{folder}: process {os.getpid()} on ")
        write_json(mark, content)  # what was missing is there when it gets its turn
        written = {path: path.stat().st_mtime_ns for path in folder.glob("0*")}
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("0*")} == written, "nothing is written twice"
    assert list(Responses(folder.parent / "train")) == expected


def test_the_same_data_asked_for_at_the_same_time(tiny: Tiny, tmp_path: Path):
    runs = [tiny.start(tmp_path / name, "train.steps=2", f"run.data_dir={tmp_path}/data") for name in "ab"]
    for process in runs:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    losses = [[line["values"]["loss"] for line in read_metrics(tmp_path / name)[:2]] for name in "ab"]
    assert losses[0] == losses[1]
    left = [path.name for path in (tmp_path / "data").rglob("*") if "partial" in path.name]
    assert left == []


def test_whoever_writes_last_the_file_is_whole(tmp_path: Path):
    """Two processes write the same JSON file 400 times each, of different lengths; no reader ever meets half of one."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipelines.shards import write_json\n"
        "for _ in range(400):\n"
        "    write_json(Path(sys.argv[1]), [int(sys.argv[2])] * int(sys.argv[2]))\n"
    )
    file = tmp_path / "shared.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(file), size], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for size in ("3000", "50")
    ]
    while any(writer.poll() is None for writer in writers):
        if file.is_file():
            found = json.loads(file.read_text())
            assert found in ([3000] * 3000, [50] * 50)
    ends = [(writer.communicate()[1], writer.returncode) for writer in writers]
    assert ends == [("", 0)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["shared.json"]
