"""A report that is not whole, or cannot be written, is refused in one line and leaves what was there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import made_up_report

from serve.report import write_report


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda report: report.pop("revision"), "report.revision: expected a value, got 'nothing'"),
        (lambda report: report["tasks"]["code"].pop("tau"), "report.tasks.code.tau: expected a value"),
        (lambda report: report.update(tasks={}), "report.tasks: expected at least one task"),
        (lambda report: report.update(schema=1), "report.schema: expected 4, got 1"),
        (lambda report: report.update(width="4"), "report.width: expected int, got '4'"),
        (
            lambda report: report["cost"]["widths"][1].update(draft_ms=float("nan")),
            r"report.cost.widths\[1\].draft_ms: expected a finite number, got nan",
        ),
        (
            lambda report: report["tasks"]["chat"].update(tau_interval=[1.0]),
            "report.tasks.chat.tau_interval: expected 2 values",
        ),
        (
            lambda report: report["tasks"]["chat"].update(survival=0.5),
            "report.tasks.chat.survival: expected a list",
        ),
        (lambda report: report.update(average=None), "report.average: expected a mapping, got None"),
    ],
)
def test_a_wrong_dictionary_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], said: str):
    report = made_up_report()
    spoil(report)
    with pytest.raises(ValueError, match=said) as refusal:
        write_report(report, tmp_path)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(OSError, match=r"taken: expected a directory to write the report into, got: .*--out$"):
        write_report(made_up_report(), taken)
    assert taken.read_text() == "mine"


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_report(made_up_report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self: Path, *arguments: object, **options: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    newer = made_up_report()
    newer["revision"] = "newer"
    with pytest.raises(OSError, match="No space left on device"):
        write_report(newer, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
