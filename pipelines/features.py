"""Features: the target's tapped hidden states over prompt and response, computed once.

In: a directory of responses, the target, its taps. Out, owned here: a directory

    manifest.json                       responses directory, taps, whether the final state is in, dtype
    {train,heldout}/00000.array_record  shard: one record a response, the bytes of an array [S, L*E] (+ E: where the
                                        loss has soft labels, the final hidden state, normed, comes last)
    {train,heldout}/00000.json          its completion mark

Record i of a split belongs to response i of the same split, and is as long as that response's prompt and text together.
Shards are resumable as those of `responses` are.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int

from configs.console import progress, say
from configs.schema import Recipe
from models.masks import packed_mask
from models.target import Target
from pipelines import shards
from pipelines.packing import Row, fill, pack
from pipelines.responses import Response, read_responses

ROWS = 4  # packed rows per forward


def prepare_features(recipe: Recipe, target: Target, taps: tuple[int, ...], responses: Path) -> Path:
    """The directory holding the features of every response in `responses`, written where missing."""
    final = recipe.loss.soft > 0
    manifest = {"responses": responses.name, "taps": list(taps), "final": final, "dtype": recipe.features.dtype}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(recipe.run.data_dir) / "features" / digest
    shards.write_json(directory / "manifest.json", manifest)
    for split in sorted(path.name for path in responses.iterdir() if path.is_dir()):
        everything = read_responses(responses, split)
        parts = shards.missing(directory / split, everything, recipe.responses.shard_size)
        if parts:
            with progress(f"features: {split}", sum(len(part) for _, part in parts), "responses") as bar:
                for index, part in parts:
                    records = _extract(recipe, target, taps, part)
                    statistics = {"responses": len(part), "bytes": sum(map(len, records))}
                    shards.write_shard(directory / split, index, records, statistics)
                    bar.advance(len(part))
        size = sum(path.stat().st_size for path in shards.paths(directory / split))
        say(f"features: {split}: {len(everything)} responses, taps {list(taps)}, {size / 1e6:.0f} MB in {directory}")
    return directory


def _extract(recipe: Recipe, target: Target, taps: tuple[int, ...], part: Sequence[Response]) -> list[bytes]:
    """The records of one shard, computed on packed rows."""
    length, dtype = (
        recipe.batches.row_length,
        np.dtype(getattr(ml_dtypes, recipe.features.dtype, recipe.features.dtype)),
    )
    rows = pack([response.length for response in part], length)
    rows += [Row(())] * (-len(rows) % ROWS)
    records: list[bytes] = [b""] * len(part)
    for start in range(0, len(rows), ROWS):
        group = rows[start : start + ROWS]
        contents = [fill(row, part, length) for row in group]
        stacked = [np.stack([content[name] for content in contents]) for name in ("tokens", "positions", "segments")]
        features = np.asarray(packed_features(target, *stacked, taps=taps, final=recipe.loss.soft > 0)).astype(dtype)
        if not np.isfinite(features.astype(np.float32)).all():
            raise ValueError(
                f"features.dtype={recipe.features.dtype}: a feature of {target.config.name} does not fit it; "
                "use features.dtype=bfloat16"
            )
        for row, values in zip(group, features, strict=True):
            for number, place in zip(row.numbers, row.starts([r.length for r in part]), strict=True):
                records[number] = values[place : place + part[number].length].tobytes()
    return records


@partial(jax.jit, static_argnames=("taps", "final"))
def packed_features(
    target: Target,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    *,
    taps: tuple[int, ...],
    final: bool = False,
) -> Float[Array, "B S LE"]:
    """Features of packed rows, and the normed final hidden state after them if asked; the train step calls it too."""
    hidden, features, _ = target(tokens, positions, packed_mask(segments), taps=taps)
    return jnp.concatenate([features, target.normed(hidden)], axis=-1) if final else features


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
