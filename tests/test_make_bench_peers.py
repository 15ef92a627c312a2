"""The last line of `make bench-peers` holds what both of its programs measured; a failing one fails it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"""#!/bin/sh
case "$2" in
  train.bench_peers) echo "bench: on the way"; echo '{{"peers": {{"spec": {{"x": 3.5}}}}}}'; exit $TRAINING ;;
  serve.bench_peers) echo "bench: on the way"; echo '{{"peers": {{"zlab": {{"x": 1.75}}}}}}' ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


def bench_peers(tmp_path: Path, training: int) -> subprocess.CompletedProcess[str]:
    """`make bench-peers` where the peers' interpreter is a script; the training part ends with the given code."""
    venv, drafter = tmp_path / "peers", tmp_path / "drafter"
    (venv / "bin").mkdir(parents=True)
    drafter.mkdir()
    (venv / "bin" / "python").write_text(PYTHON.replace("$TRAINING", str(training)))
    (venv / "bin" / "python").chmod(0o755)
    (venv / ".peers").touch()
    call = ["make", "--no-print-directory", "bench-peers", f"PEERS_VENV={venv}", f"DRAFTER={drafter}"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"
    }
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_both_in_one_line(tmp_path: Path):
    done = bench_peers(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"peers": {"spec": {"x": 3.5}, "zlab": {"x": 1.75}}}
    assert done.stderr.count("bench: on the way") == 2


def test_a_part_that_fails(tmp_path: Path):
    assert bench_peers(tmp_path, 1).returncode == 2
