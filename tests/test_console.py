"""What goes wrong ends a command in one line: the user's mistakes and the disk's; ours keep their traceback."""

import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest
import yaml

from configs.console import command
from configs.errors import DiskError, UserError
from tests.tiny_run import recipe, signal_when, start, write_target


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    @command
    def main() -> None:
        raise error

    code = main()
    return code, capsys.readouterr().err


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert ended(UserError("a.jsonl, row 3:\n  mend it"), capsys) == (2, "error: a.jsonl, row 3: mend it\n")
    assert ended(DiskError("full; free space"), capsys) == (2, "error: full; free space\n")


def test_a_fault_of_ours_is_not_the_users(capsys: pytest.CaptureFixture[str]):
    """Whichever module it comes from: two lists that should be equally long, a number that is none, a lost pipe."""

    def uneven() -> None:
        list(zip([1], [1, 2], strict=True))

    namespace = {"__name__": "serve.evaluate"}
    exec("def uneven():\n    list(zip([1], [1, 2], strict=True))", namespace)
    for fault in (uneven, namespace["uneven"], lambda: int("x"), lambda: {}["x"]):
        with pytest.raises((ValueError, KeyError)):
            command(fault)()
    with pytest.raises(OSError, match="an error without a file"):
        ended(OSError("an error without a file"), capsys)
    assert capsys.readouterr().err == ""


def test_every_error_we_raise_for_the_user_is_a_user_error():
    """A ValueError of ours would reach him as a traceback; one that is meant to says so in its line."""
    root = Path(__file__).parent.parent
    files = [
        file for part in ("configs", "models", "pipelines", "train", "serve") for file in (root / part).rglob("*.py")
    ]
    assert len(files) > 50
    raised = [
        f"{file.relative_to(root)}:{number}"
        for file in files
        if "own" not in file.parts
        for number, line in enumerate(file.read_text().split("\n"), start=1)
        if "raise ValueError(" in line and "# ours" not in line
    ]
    assert raised == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.ENOENT, "check the path"),
        (errno.EACCES, "check its permissions"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "part of the path is a file"),
    ],
)
def test_every_refusal_of_the_disk_has_its_own_advice(number: int, advice: str, capsys: pytest.CaptureFixture[str]):
    code, said = ended(OSError(number, os.strerror(number), "runs/x"), capsys)
    assert code == 2
    assert said.startswith(f"error: runs/x: {os.strerror(number)};")
    assert advice in said
    assert ("free space" in said) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert said.count("\n") == 1


def test_ctrl_c_is_one_line_with_the_way_on(tmp_path: Path):
    """While data are prepared, before there is anything to resume: not 90 lines of where the program stood."""
    write_target(tmp_path / "target")
    os.mkfifo(tmp_path / "prompts.jsonl")  # opening it to read waits for a writer: here, for the signal
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    process = start(["pipelines", "prepare", "--config", str(tmp_path / "tiny.yaml"), "batches.blocks={3: 4, 4: 4}"])
    writers: list[int] = []

    def read_from() -> bool:
        """Whether the program has opened the prompts; it waits for them from then on."""
        with contextlib.suppress(OSError):
            writers.append(os.open(tmp_path / "prompts.jsonl", os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    _, said = signal_when(process, signal.SIGINT, read_from, again=30)
    os.close(writers[0])
    assert process.returncode == 130
    again = f"python -m pipelines prepare --config {tmp_path}/tiny.yaml 'batches.blocks={{3: 4, 4: 4}}'"
    assert said == f"stopped: what was written whole is kept; to go on: {again}\n"
