"""What a user sees on the terminal: stage lines, progress with rate and ETA, and errors as one line.

Every command of the project runs under `command`: a mistake of the user's (UserError) or a refusal of the system's
(OSError) ends it with one line on stderr and exit code 2, Ctrl-C with one line and 130; anything else is a fault of
ours and keeps its traceback.
"""

import contextlib
import errno
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator

from configs.device import begin_in_huge_pages
from configs.errors import UserError

ADVICE = {
    errno.ENOSPC: "free space or choose another directory",
    errno.EDQUOT: "free space or choose another directory",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "part of the path is a file; choose another",
    errno.EISDIR: "it is a directory; name a file",
    errno.EEXIST: "it is there already; choose another",
    errno.EACCES: "check its permissions or choose another place",
    errno.EPERM: "check its permissions or choose another place",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EIO: "the disk or its file system is damaged; choose another place",
}


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """`main` with user errors reported as one line and exit code 2, Ctrl-C as one line and 130; in huge pages where it
    is the process's own."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        if main.__module__ == "__main__":
            begin_in_huge_pages()
        try:
            return main(*args, **kwargs) or 0
        except (UserError, OSError, KeyboardInterrupt) as error:
            return report(error)

    return guarded


def report(error: BaseException) -> int:
    """Says in one line what ended a command, gives its exit code; raises `error` again where it is a fault of ours."""
    if isinstance(error, KeyboardInterrupt):
        again = shlex.join(["python", "-m", _module(), *sys.argv[1:]])
        print(f"stopped: what was written whole is kept; to go on: {again}", file=sys.stderr)
        return 128 + 2
    if not isinstance(error, UserError) and not (isinstance(error, OSError) and is_systems(error)):
        raise error
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


def _module() -> str:
    """What `python -m` was given."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def is_systems(error: OSError) -> bool:
    """Whether it says what the system refused: it names a file, or is of a kind that needs none."""
    return error.filename is not None or error.errno in ADVICE


def one_line(error: UserError | OSError) -> str:
    """The message of an error; for the system's also the file, what was left in place and what to do."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        advice = ADVICE.get(error.errno, "")
        return f"{where}{error.strerror}; what was already written is kept{advice and '; ' + advice}"
    return " ".join(str(error).split())


def say(text: str) -> None:
    """One line of what is going on."""
    print(text, flush=True)


class Bar:
    """Progress of one stage in units of work; `advance` may carry a short note such as a rate of its own."""

    def __init__(self, update: Callable[[float, str], None]):
        self._update = update

    def advance(self, amount: float, note: str = "") -> None:
        self._update(amount, note)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Bar]:
    """A rich progress bar with rate and ETA; plain lines every ten seconds when stdout is not a terminal."""
    if sys.stdout.isatty():
        with _rich_bar(label, total, unit) as bar:
            yield bar
    else:
        yield _plain_bar(label, total, unit)


@contextlib.contextmanager
def _rich_bar(label: str, total: int, unit: str) -> Iterator[Bar]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f}/s" if task.speed else "")

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    columns += [Rate(), TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns) as display:
        task = display.add_task(label, total=total, note="")

        def update(amount: float, note: str) -> None:
            display.update(task, advance=amount)
            if note:
                display.update(task, note=note)

        yield Bar(update)


def _plain_bar(label: str, total: int, unit: str) -> Bar:
    started = printed = time.monotonic()
    done = 0.0

    def update(amount: float, note: str) -> None:
        nonlocal printed, done
        done += amount
        now = time.monotonic()
        if not amount or (now - printed < 10 and done < total):
            return
        printed = now
        eta = (now - started) * (total - done) / done
        rate = done / (now - started)
        say(f"{label}: {done:.0f}/{total} {unit}, {rate:.2f}/s, ETA {eta:.0f} s {note}".rstrip())

    return Bar(update)
