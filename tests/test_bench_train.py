"""`python -m train.bench` times a step in a process that prepares nothing: a process has one peak of memory."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.tiny_run import command, make_tiny
from train import bench


def test_each_mode_prepares_in_one_process_and_measures_in_another(monkeypatch: pytest.MonkeyPatch, capsys):
    calls = []

    def run(call, **_):
        calls.append(call[2:])
        return subprocess.CompletedProcess(call, 0, f'said\n{{"number": {len(calls)}}}\n')

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(["--config", "smoke.yaml", "run.seed=3"]) == 0
    common = ["train.bench", "--config", "smoke.yaml"]
    parts = [("--prepare", "cached"), ("--mode", "cached"), ("--prepare", "online"), ("--mode", "online")]
    assert calls == [[*common, *part, "run.seed=3"] for part in parts]
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"cached": {"number": 2}, "online": {"number": 4}}


@pytest.mark.slow
def test_measuring_finds_everything_prepared(tmp_path: Path):
    tiny = make_tiny(tmp_path)
    call = ["train.bench", "--config", str(tiny.config), "prompts.limit=20", "prompts.heldout=4"]

    def written() -> dict[Path, int]:
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".json"]
        return {path: path.stat().st_mtime_ns for path in files}

    prepared = command([*call, "--prepare", "cached"])
    assert prepared.returncode == 0, prepared.stderr
    before = written()
    assert {"responses", "features"} <= {part for path in before for part in path.parts}
    done = command([*call, "--mode", "cached"])
    assert done.returncode == 0, done.stderr
    assert written() == before
    assert json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"] > 1e8
