"""The whole chain on the embedded target, as a user runs it: smoke.yaml prepared, trained, exported, decoded."""

import json
import time
from pathlib import Path

from tests.tiny_run import command

WEIGHT_BYTES = 134_515_008 * 4  # of the target, in float32


def test_smoke_recipe(tmp_path: Path):
    began = time.monotonic()
    places = [f"run.dir={tmp_path}/run", f"run.data_dir={tmp_path}/data"]
    artifact, report_at = f"{tmp_path}/artifact", f"{tmp_path}/report"
    evaluation = ["serve", "eval", "--target", "smollm2-135m", "--drafter", artifact, "--tasks", "code,chat"]
    calls = [
        ["train", "--config", "smoke.yaml", *places],
        ["train", "export", "--run", f"{tmp_path}/run", "--out", artifact],
        [*evaluation, "--prompts", "1", "--max-new-tokens", "24", "--width", "4", "--out", report_at],
    ]
    for call in calls:
        done = command(call, seconds=400)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(report["tasks"]) == {"code", "chat"}
    assert report["average"]["exact"] == report["average"]["prompts"] == 2
    assert 1 <= report["average"]["tau"] <= 8
    assert 1 <= report["average"]["tokens_per_step"] <= 4
    assert report["peak_memory_bytes"] <= 1.6 * WEIGHT_BYTES + 600e6
    origin = json.loads((tmp_path / "artifact" / "config.json").read_text())["wideblock"]
    assert all(0 <= slot <= 1 for slot in origin["heldout_acceptance"])
    assert origin["heldout_acceptance"], "the held-out acceptance goes where the decoder starts from"
    print(f"smoke chain: {time.monotonic() - began:.0f} s")
