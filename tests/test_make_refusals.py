"""What a make target needs is found by running it, before anything is built; what is missing is said in one line."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """As pyenv's: it exists, and ends with 127 where no version it stands for is chosen."""
    path = tmp_path / "python3.12"
    path.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\necho 'try another' >&2\nexit 127\n")
    path.chmod(0o755)
    return path


def refusal(tmp_path: Path, target: str, **settings: object) -> list[str]:
    """What `make TARGET` says on stderr, make's own lines left out; nothing was made."""
    given = {"VENV": tmp_path / "a", "PEERS_VENV": tmp_path / "b", "MAXTEXT_VENV": tmp_path / "c", **settings}
    call = ["make", "--no-print-directory", target, *(f"{name}={value}" for name, value in given.items())]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert not any((tmp_path / folder).exists() for folder in "abc")
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


def test_a_shim_for_maxtext(tmp_path: Path, shim: Path):
    assert refusal(tmp_path, "test-peers", PYTHON312=shim, PYTHON="false") == [
        f"peers: {shim}: expected Python 3.12 or newer for MaxText, got: pyenv: python3.12: command not found; "
        "name another with make PYTHON312=PATH test-peers"
    ]


def test_a_shim_for_the_environment(tmp_path: Path, shim: Path):
    assert refusal(tmp_path, "setup", PYTHON=shim) == [
        f"setup: {shim}: expected Python 3.11 or newer, got: pyenv: python3.12: command not found; "
        "name another with make PYTHON=python3.12 setup"
    ]


@pytest.mark.parametrize("target", ["bench-decode", "bench-peers"])
def test_no_drafter_to_time(tmp_path: Path, target: str):
    assert refusal(tmp_path, target, DRAFTER=tmp_path / "none", PYTHON="false") == [
        f"bench: no drafter at {tmp_path / 'none'}; expected an artifact: run make demo, or name one with DRAFTER=PATH"
    ]
