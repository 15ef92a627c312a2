"""Features: the target's tapped hidden states over prompt and response.

Generation keeps them as it goes (`pipelines.responses`); what is missing on disk after it, because other taps are
asked for or the responses were given, is computed here from packed rows. In: a directory of responses, the target, its
taps. Out: a `pipelines.feature_store` directory.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs.console import progress, say
from configs.schema import Recipe
from models.attention import Packed
from models.target import Target, packed_features
from pipelines import shards
from pipelines.feature_store import FeatureStore
from pipelines.packing import Row, fill, pack
from pipelines.responses import Response, read_responses

ROWS = 4  # packed rows per forward


def prepare_features(recipe: Recipe, target: Target, taps: tuple[int, ...], responses: Path) -> Path:
    """The directory holding the features of every response in `responses`, written where missing."""
    store = FeatureStore.of(recipe, taps, responses)
    for split in sorted(path.name for path in responses.iterdir() if path.is_dir()):
        everything = read_responses(responses, split)
        with shards.claim_missing(store.directory / split, everything, recipe.responses.shard_size) as parts:
            if parts:
                _write_shards(recipe, target, store, split, parts)
        size = sum(path.stat().st_size for path in shards.paths(store.directory / split))
        where = f"{size / 1e6:.0f} MB in {store.directory}"
        say(f"features: {split}: {len(everything)} responses, taps {list(taps)}, {where}")
    return store.directory


def _write_shards(
    recipe: Recipe, target: Target, store: FeatureStore, split: str, parts: Sequence[tuple[int, list[Response]]]
) -> None:
    with progress(f"features: {split}", sum(len(part) for _, part in parts), "responses") as bar:
        for index, part in parts:
            store.write(split, index, _extract(recipe, target, store, part), [r.ids for r in part])
            bar.advance(len(part))


def _extract(recipe: Recipe, target: Target, store: FeatureStore, part: Sequence[Response]) -> list[np.ndarray]:
    """The features of one shard's responses, computed on packed rows."""
    length = recipe.batches.row_length
    rows = pack([response.length for response in part], length)
    rows += [Row(())] * (-len(rows) % ROWS)
    found: list[np.ndarray] = [np.empty(0)] * len(part)
    for start in range(0, len(rows), ROWS):
        group = rows[start : start + ROWS]
        contents = [fill(row, part, length) for row in group]
        names = ("tokens", "positions", "segments")
        tokens, *places = (jnp.stack([content[name] for content in contents]) for name in names)
        where = Packed(*places, kernel=recipe.features.attention)
        features = packed_features(target, tokens, where, taps=store.tapped.taps, final=store.tapped.final)
        for row, values in zip(group, np.asarray(features), strict=True):
            for number, place in zip(row.numbers, row.starts([r.length for r in part]), strict=True):
                found[number] = values[place : place + part[number].length]
    return found
