"""Batches: packed rows with random anchors, a deterministic and checkpointable grain pipeline.

In: responses and, when cached, their features. Out: dictionaries of numpy arrays, one training step each:

    tokens, positions, segments [B, S] int32      packed context; segment 0 is padding
    features [B, S, L*E]                          only when cached
    anchors_w<W> [B, A] int32, one per width W    row indices of the anchors, rising; -1 where a row has too few

Rows are shuffled and anchors drawn anew every epoch. Everything is a function of the seed, the step, and how wide the
widest blocks are. Of the data only the rows of a few batches are in memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from configs.errors import UserError
from configs.schema import Batches, Recipe
from pipelines.feature_store import FeatureSource
from pipelines.packing import fill, pack, padding, startable
from pipelines.records import Responses

PREFETCH = 4  # batches; the default of 500 would hold gigabytes of features


class RowSource:
    """Packed rows by number, read when asked for, features included when there are any; of the `first` responses.

    Raises:
      UserError: there are not so many, one is longer than a row, or the features are of others.
    """

    def __init__(self, responses: Responses, features: FeatureSource | None, row_length: int, first: int | None = None):
        if features is not None:
            features.check(len(responses), responses.ids)
        if first is not None and first > len(responses):
            raise UserError(f"batches.responses={first}: there are {len(responses)}; lower it, or raise prompts.limit")
        self.responses, self._features, self._length = responses, features, row_length
        self._lengths = responses.lengths[:first]
        self.packing = pack(self._lengths, row_length)

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        numbers = self.packing[index].tolist()
        texts = [self.responses.ids(number) for number in numbers]
        out = fill(texts, self._length)
        out["startable"] = startable(texts, self.responses.prompt_lengths[numbers].tolist(), self._length)
        if self._features is not None:
            parts = [self._features.of(number, ids) for number, ids in zip(numbers, texts, strict=True)]
            missing = self._length - sum(map(len, parts))
            out["features"] = np.concatenate([*parts, np.zeros((missing, parts[0].shape[1]), parts[0].dtype)])
        return out

    def describe(self) -> str:
        """How full the rows are."""
        share = padding(self._lengths, len(self), self._length)
        return f"{len(self._lengths)} responses in {len(self)} rows of {self._length} tokens, padding {share:.1%}"


Blocks = Mapping[int, int]  # block width -> anchors per row


class TrainBatches(Iterator[dict[str, np.ndarray]]):
    """The endless batches that a recipe trains on; its widest blocks are `widest` wide, which a curriculum sets.

    The anchors of all widths in turn are drawn and those of the others left out here, so what `get_state` gives and
    `set_state` takes is a function of the step alone.
    """

    def __init__(self, recipe: Recipe, source: RowSource, process: tuple[int, int] = (0, 1)):
        section, self._in_turn = recipe.batches, widest_in_turn(recipe.batches)
        self.widest = max(section.blocks)
        given = {"rows": section.rows, "seed": recipe.run.seed, "process": process}
        self._drawn = train_batches(source, section.blocks, **given, in_turn=self._in_turn)

    def __next__(self) -> dict[str, np.ndarray]:
        others = {f"anchors_w{width}" for width in self._in_turn if width != self.widest}
        return {name: value for name, value in next(self._drawn).items() if name not in others}

    def get_state(self) -> Any:
        return self._drawn.get_state()

    def set_state(self, state: Any) -> None:
        self._drawn.set_state(state)

    def start_prefetch(self) -> None:
        self._drawn.start_prefetch()


def widest_in_turn(section: Batches) -> dict[int, int]:
    """Width -> anchors per row, of what the widest blocks are in turn: fewer slots a block, as many in all.

    Example: blocks {4: 90, 32: 2}, curriculum {16: 0.05} -> {16: 4, 32: 2}.
    """
    widest = max(section.blocks)
    slots = section.blocks[widest] * (widest - 1)
    return {width: max(1, round(slots / (width - 1))) for width in (*section.curriculum, widest)}


def train_batches(
    source: RowSource,
    blocks: Blocks,
    *,
    rows: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
    in_turn: Blocks | None = None,
) -> Any:
    """An endless grain iterator of batches; with the anchors of all blocks that are `in_turn` the widest.

    With `process` (i, n) it gives part i of n of every batch, rows / n rows, and reads no other: concatenated in the
    order of the processes, the parts are the batch of one process. Its state is the same in all of them.
    Raises:
      UserError: the responses fill fewer rows than a batch, or the processes do not divide a batch.
    """
    index, count = process
    if rows % count:
        raise UserError(f"batches.rows={rows}: expected a multiple of the {count} processes; change it")

    def draw(row: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return draw_anchors(row, blocks, rng, in_turn)

    if len(source) < rows:
        raise UserError(
            f"batches.rows={rows}: the responses fill only {len(source)} rows; lower it, or raise prompts.limit"
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    dataset = dataset.random_map(draw)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    parts = dataset.batch(rows // count, drop_remainder=True)  # a batch's parts follow each other
    return iter(parts[index::count].to_iter_dataset(options))


def draw_anchors(
    row: dict[str, np.ndarray], blocks: Blocks, rng: np.random.Generator, in_turn: Blocks | None = None
) -> dict[str, np.ndarray]:
    """`row` with anchors drawn without replacement among its startable positions; of those that are `in_turn` the
    widest blocks, each without regard to the others."""
    row, widest = dict(row), max(blocks)
    places = rng.permutation(np.flatnonzero(row.pop("startable"))).astype(np.int32)
    for width, count in blocks.items():
        alternatives = in_turn if in_turn and width == widest else {width: count}
        for named, number in alternatives.items():
            anchors, taken = np.full(number, -1, np.int32), places[:number]
            anchors[: len(taken)] = np.sort(taken)  # neighbours see nearly the same: see models.kernels.blocks
            row[f"anchors_w{named}"] = anchors
        places = np.concatenate([places[count:], places[:count]])  # comes round only when a row is short of places
    return row
