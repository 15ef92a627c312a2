"""No update is kept unchecked: whatever log_every and checkpoint_every are, a run that diverges leaves checkpoints of
finite parameters alone, ends in one line, and names the first update that was not finite."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import Tiny, checkpoint_arrays, make_tiny
from train.checkpoint import whole_steps

DIVERGES = ("optimizer.learning_rate=1.0e+30", "optimizer.clip=1.0e+30")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def refusal(done) -> str:
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().split("\n")
    return line


@pytest.mark.parametrize("every", [1, 3], ids=["saved at every step", "saved at every third"])
def test_checkpoints_between_looks_at_the_log(tiny: Tiny, every: int):
    run = tiny.root / f"nan{every}"
    rare = ("train.log_every=100", "train.eval_every=0", f"train.checkpoint_every={every}", "train.keep=2")
    line = refusal(tiny.called(run, *DIVERGES, *rare))
    found = re.match(r"error: step (\d+): (loss|gradient_norm) is (nan|inf); (.*); lower optimizer.learning_rate", line)
    assert found, line
    kept = whole_steps(run / "checkpoints")
    assert all(step < int(found[1]) for step in kept), "the update that failed is not among them"
    assert found[4] == (f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint was written yet")
    for step in kept:
        for name, values in checkpoint_arrays(run, step).items():
            assert np.isfinite(values).all(), f"step {step}: {name}"


def test_the_checkpoint_that_is_kept_can_be_gone_on_from(tiny: Tiny):
    """Nine good updates, then features that are not finite: what was saved before is named, whole, and goes on."""
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from train.__main__ import main\n"
        "from train.trainer import DrafterTrainer\n"
        "count = 0\n"
        "def poisoned(self, batch):\n"
        "    global count\n"
        "    count += 1\n"
        "    return batch if count < 10 else batch | {'features': np.full_like(batch['features'], np.nan)}\n"
        "DrafterTrainer._prepare_inputs = poisoned\n"
        "sys.exit(main())"
    )
    run = tiny.root / "good"
    steps = [f"run.dir={run}", "train.checkpoint_every=4", "train.eval_every=0", "train.log_every=100"]
    call = [sys.executable, "-c", program, "--config", str(tiny.config), *steps]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert "step 10: loss is nan; the checkpoint of step 8 is kept" in refusal(done)
    assert whole_steps(run / "checkpoints") == [4, 8]
    assert all(np.isfinite(values).all() for values in checkpoint_arrays(run, 8).values())
    done = tiny.called(run, *steps, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on from step 8" in done.stdout
