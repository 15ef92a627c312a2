"""Features: the target's tapped hidden states over prompt and response.

Generation keeps them as it goes (`pipelines.responses`); what is missing on disk after it, because other taps are
asked for or the responses were given, is computed here from packed rows. In: a directory of responses, the target, its
taps. Out: a `pipelines.feature_store` directory.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs.console import progress, say
from configs.schema import Recipe
from models.attention import Packed
from models.sharding import whole_rows
from models.target import Target, packed_features
from pipelines import shards
from pipelines.feature_store import FeatureStore
from pipelines.packing import fill, pack, starts
from pipelines.records import Responses

ROWS = 4  # packed rows per forward


def prepare_features(recipe: Recipe, target: Target, taps: tuple[int, ...], responses: Path) -> Path:
    """The directory holding the features of every response in `responses`, written where missing."""
    store = FeatureStore.of(recipe, taps, responses)
    for split in sorted(path.name for path in responses.iterdir() if path.is_dir()):
        asked = Responses(responses / split)
        with shards.claim_missing(store.directory / split, len(asked), recipe.responses.shard_size) as parts:
            if parts:
                _write_shards(recipe, target, store, asked, parts)
        size = sum(path.stat().st_size for path in shards.paths(store.directory / split))
        where = f"{size / 1e6:.0f} MB in {store.directory}"
        say(f"features: {split}: {len(asked)} responses, taps {list(taps)}, {where}")
    return store.directory


def _write_shards(
    recipe: Recipe, target: Target, store: FeatureStore, asked: Responses, parts: list[tuple[int, range]]
) -> None:
    split = asked.folder.name
    with progress(f"features: {split}", sum(len(part) for _, part in parts), "responses") as bar:
        for index, part in parts:
            texts = [asked.ids(number) for number in part]
            store.write(split, index, _extract(recipe, target, store, texts), texts)
            bar.advance(len(part))


def _extract(recipe: Recipe, target: Target, store: FeatureStore, texts: list[np.ndarray]) -> list[np.ndarray]:
    """The features of one shard's texts, computed on packed rows."""
    length, lengths = recipe.batches.row_length, np.array([len(ids) for ids in texts])
    rows = [row.tolist() for row in pack(lengths, length)]
    size = whole_rows(ROWS, target.mesh)
    rows += [[]] * (-len(rows) % size)
    found: list[np.ndarray] = [np.empty(0)] * len(texts)
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        contents = [fill([texts[number] for number in row], length) for row in group]
        names = ("tokens", "positions", "segments")
        tokens, positions, segments = (jnp.stack([content[name] for content in contents]) for name in names)
        where = Packed(positions, segments, kernel=recipe.features.attention)
        features = packed_features(target, tokens, where, taps=store.tapped.taps, final=store.tapped.final)
        for row, values in zip(group, np.asarray(features), strict=True):
            for number, place in zip(row, starts(lengths[row]), strict=True):
                found[number] = values[place : place + lengths[number]]
    return found
