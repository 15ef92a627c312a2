"""The files of cached features: where they lie, how they are written and read.

Owned here: a directory of `run.data_dir`/features, named by a digest of its manifest

    manifest.json                       responses directory, taps, whether the final state is in, dtype
    {train,heldout}/00000.array_record  shard: one record a response, the bytes of an array [S, L*E] (+ E: where the
                                        loss has soft labels, the final hidden state, normed, comes last)
    {train,heldout}/00000.json          its completion mark

Record i of a split belongs to response i of the same split, and is as long as that response's prompt and text
together. The last token's row is zero: a block's context ends before its anchor, and nothing follows the last token.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from configs.schema import Recipe
from models.generate import Tapped
from pipelines import shards

FORMAT = 2  # raised when the target's forward pass or the records change what stands in a directory


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
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        directory = Path(recipe.run.data_dir) / "features" / digest
        shards.write_json(directory / "manifest.json", manifest)
        return FeatureStore(directory, tapped)

    def write(self, split: str, index: int, features: Sequence[np.ndarray]) -> None:
        """One shard, from arrays [S, L*E] without the last token's row (or with it, ignored).

        Raises:
          ValueError: a value does not fit the recipe's features.dtype.
        """
        kind = np.dtype(getattr(ml_dtypes, self.tapped.dtype, self.tapped.dtype))
        records = []
        for values in features:
            values = np.array(values, kind)
            values[-1] = 0
            if not np.isfinite(values.astype(np.float32)).all():
                raise ValueError(
                    f"features.dtype={self.tapped.dtype}: a feature of the target does not fit it; "
                    "use features.dtype=bfloat16"
                )
            records.append(values.tobytes())
        statistics = {"responses": len(records), "bytes": sum(map(len, records))}
        shards.write_shard(self.directory / split, index, records, statistics)


def tapped_of(recipe: Recipe, taps: tuple[int, ...]) -> Tapped:
    """What a recipe keeps of every token: soft labels need the final hidden state too."""
    return Tapped(taps, recipe.loss.soft > 0, recipe.features.dtype)


class FeatureSource:
    """Random access to cached features by response number: [S, L*E] arrays."""

    def __init__(self, directory: Path, split: str, hidden_size: int):
        self._records = shards.open_records(directory / split)
        manifest = json.loads((directory / "manifest.json").read_text())
        name = manifest["dtype"]
        self._dtype = np.dtype(getattr(ml_dtypes, name, name))
        self._width = (len(manifest["taps"]) + manifest["final"]) * hidden_size

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.frombuffer(self._records[number], self._dtype).reshape(-1, self._width)
