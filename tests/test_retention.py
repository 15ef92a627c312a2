"""Of a run's checkpoints the last k stay, and the one with the highest held-out tau; a full disk loses none of them."""

import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import pytest

from train.checkpoint import Checkpoints, find_step, whole_steps


def batches():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def save(checkpoints: Checkpoints, step: int, tau: float | None, size: int = 4) -> None:
    values = jax.random.normal(jax.random.key(step), size)  # does not compress
    trees = {"params": {"a": values}, "optimizer": {"m": jnp.zeros(size)}}
    checkpoints.save(step, trees, batches(), {"seed": 0, "identity": {}, "tau": tau})


@pytest.mark.parametrize(
    ("taus", "kept", "best"),
    [
        ([1.1, 1.9, 1.2, 1.3, 1.4], [20, 40, 50], 20),
        ([1.1, 1.2, 1.3, 1.4, 1.9], [40, 50], 50),
        ([None, 1.5, None, None, None], [20, 40, 50], 20),
        ([None] * 5, [40, 50], 50),
    ],
)
def test_last_two_and_the_best(tmp_path: Path, taus: list[float | None], kept: list[int], best: int):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for index, tau in enumerate(taus, start=1):
        save(checkpoints, 10 * index, tau)
    checkpoints.close()
    assert whole_steps(tmp_path / "c") == kept
    assert find_step(tmp_path / "c", "best") == best
    assert find_step(tmp_path / "c", "last") == 50


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path):
    """The real thing: a file size limit makes the asynchronous write fail, as a full disk would."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from configs.console import command\n"
        "from tests.test_retention import save\n"
        "from train.checkpoint import Checkpoints\n"
        "@command\n"
        "def main():\n"
        "    checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)\n"
        "    save(checkpoints, 10, 1.5)\n"
        "    checkpoints.wait()\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "    save(checkpoints, 20, 1.6, size=1_000_000)\n"
        "    checkpoints.wait()\n"
        "sys.exit(main())"
    )
    call = [sys.executable, "-c", program, str(tmp_path / "c")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("error: ")
    assert "cannot write a checkpoint" in last
    assert "--resume" in last
    assert whole_steps(tmp_path / "c") == [10]
