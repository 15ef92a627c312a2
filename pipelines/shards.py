"""Sharded record files with completion marks: the one way the pipelines put data on disk.

A split is a folder of `NNNNN.array_record` files, each with a mark `NNNNN.json` written after it; both appear under
their final name only when whole. A folder's shards are those that have a mark.
"""

import bisect
import contextlib
import errno
import functools
import itertools
import json
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from configs.errors import UserError
from configs.files import replacing, write_atomic, write_json
from configs.processes import agreed, held_by_first, leads

# A split at scale has more shards than a process may hold files open; responses and features of two splits are read.
OPEN_FILES = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)


def missing(folder: Path, count: int, size: int) -> list[tuple[int, range]]:
    """(shard index, the numbers of its items) for every shard of `size` of `count` items not yet whole in `folder`."""
    parts = [(index, range(first, min(first + size, count))) for index, first in enumerate(range(0, count, size))]
    return [(index, part) for index, part in parts if not _mark(folder, index).is_file()]


@contextlib.contextmanager
def claim_missing(folder: Path, count: int, size: int) -> Iterator[list[tuple[int, range]]]:
    """What `missing` says, held against other runs while open; each of several processes is given its own part.

    Where another run is writing the folder, its end is waited for: what it wrote is no longer missing. Every process
    leaves when all have written theirs.
    Raises:
      UserError: a process does not see what the others wrote.
    """
    if agreed(lambda: not missing(folder, count, size)):
        yield []
        return
    with held_by_first(folder, wait=True):
        claimed = agreed(lambda: [index for index, _ in missing(folder, count, size)])
        own = claimed[jax.process_index() :: jax.process_count()]
        yield [(index, part) for index, part in missing(folder, count, size) if index in own]
    if missing(folder, count, size):
        raise UserError(
            f"{folder}: what other processes wrote is not there for this one; expected a file system that "
            "all hosts share"
        )


def write_shard(folder: Path, index: int, records: Iterable[bytes], statistics: dict[str, Any]) -> None:
    """One shard, atomically: the records, then the mark with `statistics`.

    Raises:
      OSError: the disk is full or the folder cannot be written; no mark is left behind.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with replacing(_mark(folder, index).with_suffix(".array_record")) as partial:
        with open(partial, "wb"):  # an unwritable folder fails here, as an OSError with the file's name
            pass
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # how the writer reports a full disk
            raise OSError(errno.ENOSPC, f"cannot write ({' '.join(str(error).split())[:120]})", str(partial)) from error
    write_atomic(_mark(folder, index), json.dumps(statistics) + "\n")


def paths(folder: Path) -> list[Path]:
    """The record files of all complete shards, in order.

    Raises:
      UserError: there is none.
    """
    found = [mark.with_suffix(".array_record") for mark in sorted(folder.glob("*.json"))]
    if not found:
        raise UserError(f"{folder}: no complete shard; expected NNNNN.array_record with NNNNN.json; run prepare")
    return found


def read_marks(folder: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The statistics in the marks of all complete shards, in order.

    Raises:
      UserError: there is none, or one is not JSON or lacks one of `fields`.
    """
    for path in paths(folder):
        mark = path.with_suffix(".json")
        try:
            statistics = json.loads(mark.read_text())
        except ValueError:
            statistics = None
        if not isinstance(statistics, dict) or not statistics.keys() >= set(fields):
            raise UserError(f"{mark}: expected JSON with {', '.join(fields)}; delete it and prepare again")
        yield statistics


class Records:
    """The records of all complete shards, by number, each read from disk when asked for.

    At most OPEN_FILES files are open at once; array_record's own source keeps open all it ever read from.
    Raises:
      UserError: a file is damaged, on opening it or on reading.
    """

    def __init__(self, folder: Path):
        self.paths = paths(folder)
        self.counts = [self._count(path) for path in self.paths]
        self._ends = list(itertools.accumulate(self.counts))
        self._reader = functools.lru_cache(OPEN_FILES)(_open_reader)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> bytes:
        path, place = self.place(number)
        with _damage(path):
            return self._reader(path).read([place])[0]

    def place(self, number: int) -> tuple[Path, int]:
        """The file that holds record `number`, and which of its records that is."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = bisect.bisect_right(self._ends, number)
        return self.paths[shard], number - (self._ends[shard] - self.counts[shard])

    @staticmethod
    def _count(path: Path) -> int:
        with _damage(path):
            reader = _open_reader(path)
            count = reader.num_records()
            reader.close()
        return count


def _open_reader(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what array_record says of a file that is not whole into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: damaged ({reason}); delete {path.with_suffix('.json')} and prepare again") from error


def describe(folder: Path, manifest: Any) -> None:
    """Writes the manifest of `folder`, which is named by its digest, unless it is there: whole data need no writing."""
    if leads() and not (folder / "manifest.json").is_file():
        write_json(folder / "manifest.json", manifest)


def _mark(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.json"
