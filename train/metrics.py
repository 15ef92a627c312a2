"""What training measured: RUN/metrics.jsonl, owned here, and the same scalars as TensorBoard events in RUN/events.

metrics.jsonl: {"step", "kind": "train" or "heldout", "seconds": since this process began, "values": {name: number}}.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from configs.files import write_atomic
from configs.processes import leads


class Metrics:
    """Appends scalars; on resume, lines past the restored step are dropped first. The first process does so for all."""

    def __init__(self, run: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._began, self._events = time.monotonic(), None
        if not leads():
            return
        self._file = run / "metrics.jsonl"
        _drop_after(self._file, step)
        self._events = SummaryWriter(str(run / "events"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if self._events is None:
            return
        line = {"step": step, "kind": kind, "seconds": round(time.monotonic() - self._began, 3), "values": dict(values)}
        with open(self._file, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def read_metrics(run: Path) -> list[dict]:
    """All lines of RUN/metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]


def _drop_after(file: Path, step: int) -> None:
    """Keeps the lines up to `step`; a last line cut short by a kill goes too."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text().split("\n"):
        try:
            if line and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_atomic(file, "".join(kept))
