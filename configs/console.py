"""What a user sees on the terminal: stage lines, progress with rate and ETA, and errors as one line.

Every command of the project runs under `command`: a mistake of the user's (ValueError) or of the disk's (OSError)
ends it with one line on stderr and exit code 2; anything else is a fault of ours and keeps its traceback.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """`main` with user errors reported as one line and exit code 2."""

    @functools.wraps(main)
    def guarded(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (ValueError, OSError) as error:
            if not is_users(error):
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2

    return guarded


def is_users(error: ValueError | OSError) -> bool:
    """Whether the error was raised for the user: any OSError with a file, any ValueError of our own modules."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return module.partition(".")[0] in ("configs", "models", "pipelines", "train", "serve", "__main__")


def one_line(error: ValueError | OSError) -> str:
    """The message of an error; for the disk's errors also the file and what was left in place."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; what was already written is kept; free space or choose another directory"
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
