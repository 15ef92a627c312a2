"""Sharded record files with completion marks: the one way the pipelines put data on disk.

A split is a folder of `NNNNN.array_record` files, each with a mark `NNNNN.json` written after it; both appear under
their final name only when whole. A folder's shards are those that have a mark.
"""

import contextlib
import errno
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from configs.errors import UserError
from configs.files import held, replacing, write_json

Item = TypeVar("Item")


def missing(folder: Path, items: Sequence[Item], size: int) -> list[tuple[int, list[Item]]]:
    """(shard index, its items) for every shard of `size` items that is not yet complete in `folder`."""
    parts = [(i, list(items[start : start + size])) for i, start in enumerate(range(0, len(items), size))]
    return [(index, part) for index, part in parts if not _mark(folder, index).is_file()]


@contextlib.contextmanager
def claim_missing(folder: Path, items: Sequence[Item], size: int) -> Iterator[list[tuple[int, list[Item]]]]:
    """What `missing` says, held against other processes while open.

    Where another process is writing the folder, its end is waited for: what it wrote is no longer missing.
    """
    if not missing(folder, items, size):
        yield []
        return
    with held(folder, wait=True):
        yield missing(folder, items, size)


def write_shard(folder: Path, index: int, records: Sequence[bytes], statistics: dict[str, Any]) -> None:
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
    write_json(_mark(folder, index), statistics)


def paths(folder: Path) -> list[Path]:
    """The record files of all complete shards, in order.

    Raises:
      UserError: there is none.
    """
    found = [mark.with_suffix(".array_record") for mark in sorted(folder.glob("*.json"))]
    if not found:
        raise UserError(f"{folder}: no complete shard; expected NNNNN.array_record with NNNNN.json; run prepare")
    return found


def counts(folder: Path) -> list[int]:
    """How many responses each complete shard holds, by its mark."""
    return [json.loads(path.with_suffix(".json").read_text())["responses"] for path in paths(folder)]


def file_of(folder: Path, number: int) -> Path:
    """The record file that holds record `number`."""
    for path, count in zip(paths(folder), counts(folder), strict=True):
        if number < count:
            return path
        number -= count
    raise IndexError(number)


def read_records(folder: Path) -> Iterator[bytes]:
    """All records of all complete shards, in order."""
    source = open_records(folder)
    for index in range(len(source)):
        yield source[index]


def open_records(folder: Path) -> Any:
    """Random access to the records: len() and [index]."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    files = [str(path) for path in paths(folder)]
    try:
        return ArrayRecordDataSource(files)
    except (RuntimeError, ValueError) as error:
        damaged = next((file for file in files if not _opens(file)), files[0])
        mark = Path(damaged).with_suffix(".json")
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{damaged}: damaged ({reason}); delete {mark} and prepare again") from error


def _opens(file: str) -> bool:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return len(ArrayRecordDataSource([file])) >= 0
    except (RuntimeError, ValueError):
        return False


def describe(folder: Path, manifest: Any) -> None:
    """Writes the manifest of `folder`, which is named by its digest, unless it is there: whole data need no writing."""
    if not (folder / "manifest.json").is_file():
        write_json(folder / "manifest.json", manifest)


def _mark(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.json"
