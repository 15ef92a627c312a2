"""Files that several processes may ask for: each appears under its name only when whole; directories can be held."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from configs.console import say
from configs.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name nobody else has, to write to: what is there takes the place of `path` when the block ends.

    When it fails, `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """`text` in the file `path`, whole or not at all.

    Raises:
      OSError: the directory cannot be written, or the disk is full.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, as `write_atomic` does."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def held(directory: Path, *, wait: bool) -> Iterator[None]:
    """Holds `directory` against other processes by a lock on its file `.lock`, which the system lets go at exit.

    Where another process holds it: waits for its end, or with `wait` False refuses. Says who it is in both cases.
    Raises:
      UserError: another process holds it.
      OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "a+") as file:
        _lock(file, directory, wait)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: IO[str], directory: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read() or "another process"
        if not wait:
            raise UserError(
                f"{directory}: {holder} is writing there; wait for its end, or choose another directory"
            ) from error
        say(f"{directory}: {holder} is writing there; waiting for its end")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        print(f"{directory}: this file system has no locks; let no other process write there", file=sys.stderr)
