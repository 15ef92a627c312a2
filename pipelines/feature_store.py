"""The files of cached features: where they lie, how they are written and read.

Owned here: a directory of `run.data_dir`/features, named by a digest of its manifest

    manifest.json                       responses directory, taps, whether the final state is in, dtype, attention
    {train,heldout}/00000.array_record  shard: one record a response, the 16 bytes of its `stamp`, then those of an
                                        array [S, L*E] (+ E: where the loss is taught, the final hidden state,
                                        normed, comes last)
    {train,heldout}/00000.json          its completion mark

Record i of a split belongs to response i of the same split, and is as long as that response's prompt and text
together. The last token's row is zero: a block's context ends before its anchor, and nothing follows the last token.
A record is held to its response by the stamp, so that a shard of another split or set of answers is no training data.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from configs.errors import UserError
from configs.schema import Recipe
from models.recorder import Tapped
from pipelines import shards

FORMAT = 2  # raised when the target's forward pass or the records change what stands in a directory
STAMP = 16  # bytes
Ids = Sequence[int] | np.ndarray


def stamp(ids: Ids) -> bytes:
    """16 bytes that name a response's token ids, those of its prompt included."""
    return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=STAMP).digest()


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """The directory of one set of responses' features, as a recipe asks for them."""

    directory: Path
    tapped: Tapped

    @staticmethod
    def of(recipe: Recipe, taps: tuple[int, ...], responses: Path) -> "FeatureStore":
        """The store for `responses`, its manifest written."""
        tapped = tapped_of(recipe, taps)
        manifest = {"format": FORMAT, "responses": responses.name, **dataclasses.asdict(tapped), "taps": list(taps)}
        manifest["attention"] = recipe.features.attention
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        directory = Path(recipe.run.data_dir) / "features" / digest
        shards.describe(directory, manifest)
        return FeatureStore(directory, tapped)

    def write(self, split: str, index: int, features: Sequence[np.ndarray], texts: Sequence[Ids]) -> None:
        """One shard, from arrays [S, L*E] (the last token's row is not looked at) and the token ids they are of.

        Raises:
          UserError: a value does not fit the recipe's features.dtype.
        """
        kind = np.dtype(getattr(ml_dtypes, self.tapped.dtype, self.tapped.dtype))
        records = []
        for values, ids in zip(features, texts, strict=True):
            values = np.array(values, kind)
            values[-1] = 0
            if not np.isfinite(values.astype(np.float32)).all():
                raise UserError(
                    f"features.dtype={self.tapped.dtype}: a feature of the target does not fit it; "
                    "use features.dtype=bfloat16"
                )
            records.append(stamp(ids) + values.tobytes())
        statistics = {"responses": len(records), "bytes": sum(map(len, records))}
        shards.write_shard(self.directory / split, index, records, statistics)


def tapped_of(recipe: Recipe, taps: tuple[int, ...]) -> Tapped:
    """What a recipe keeps of every token: a taught loss needs the final hidden state too."""
    return Tapped(taps, recipe.loss.taught, recipe.features.dtype)


class FeatureSource:
    """Random access to cached features by response number: [S, L*E] arrays."""

    def __init__(self, directory: Path, split: str, hidden_size: int):
        self._folder = directory / split
        self._records = shards.Records(self._folder)
        manifest = json.loads((directory / "manifest.json").read_text())
        name = manifest["dtype"]
        self._dtype = np.dtype(getattr(ml_dtypes, name, name))
        self._width = (len(manifest["taps"]) + manifest["final"]) * hidden_size

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> np.ndarray:
        return self._array(self._records[number])

    def check(self, count: int, ids: Callable[[int], np.ndarray]) -> None:
        """Raises UserError unless there are `count` records, and the first of every shard is of the text `ids(number)`.

        The others are checked as they are read (`of`): looking at all of them first would read gigabytes.
        """
        counts = [mark["responses"] for mark in shards.read_marks(self._folder, "responses")]
        if not (counts == self._records.counts and len(self) == count):
            raise UserError(
                f"{self._folder}: features of {len(self)} responses where there are {count}; "
                f"delete {self._folder.parent} and prepare again"
            )
        for first in np.cumsum([0, *counts[:-1]]).tolist():
            self.of(first, ids(first))

    def of(self, number: int, ids: Ids) -> np.ndarray:
        """The features of response `number`, whose prompt and text are `ids`: [S, L*E].

        Raises:
          UserError: the record is of another response, or not as long as this one.
        """
        record = self._records[number]
        whole = len(record) == STAMP + len(ids) * self._width * self._dtype.itemsize
        if not whole or record[:STAMP] != stamp(ids):
            file, _ = self._records.place(number)
            raise UserError(
                f"{file}: holds features of another response than number {number} of {self._folder.name}; delete "
                f"{file.with_suffix('.json')} and prepare again"
            )
        return self._array(record)

    def _array(self, record: bytes) -> np.ndarray:
        return np.frombuffer(record, self._dtype, offset=STAMP).reshape(-1, self._width)
