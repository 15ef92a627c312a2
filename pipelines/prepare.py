"""Preparation of a recipe's data: prompts, responses and, where cached, features; each written once and reused."""

import dataclasses
from pathlib import Path

import numpy as np

from configs.console import say
from configs.errors import UserError
from configs.schema import Recipe
from models.target import Target, default_taps
from models.tokenizer import Tokenizer
from pipelines.batches import RowSource
from pipelines.feature_store import FeatureSource
from pipelines.features import prepare_features
from pipelines.packing import padding
from pipelines.prompts import load_prompts, split_heldout
from pipelines.responses import Response, prepare_responses, read_responses


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a recipe's data lie on disk; features is None when they are computed online."""

    responses: Path
    features: Path | None

    def read(self, split: str) -> list[Response]:
        return read_responses(self.responses, split)

    def rows(self, split: str, hidden_size: int, row_length: int) -> RowSource:
        """Packed rows of a split."""
        features = FeatureSource(self.features, split, hidden_size) if self.features else None
        return RowSource(self.read(split), features, row_length)


def taps_of(recipe: Recipe, target: Target) -> tuple[int, ...]:
    """The recipe's tapped layers, or DFlash's default for its depth.

    Raises:
      UserError: a tap is not a layer of the target.
    """
    num_layers = target.config.num_layers
    taps = recipe.drafter.target_layer_ids or default_taps(num_layers, recipe.drafter.num_layers)
    for tap in taps:
        if not 0 <= tap < num_layers:
            raise UserError(
                f"drafter.target_layer_ids: {tap} is no layer of {target.config.name}; expected 0 to {num_layers - 1}"
            )
    return taps


def prepare(recipe: Recipe, target: Target, tokenizer: Tokenizer) -> Prepared:
    """Everything training reads, on disk; what is there already is reused."""
    section = recipe.prompts
    prompts = load_prompts(section.sources, limit=section.limit + section.heldout, seed=recipe.run.seed)
    train, heldout = split_heldout(prompts, section.heldout, recipe.run.seed)
    say(f"prompts: {len(train)} for training, {len(heldout)} held out, from {', '.join(section.sources)}")
    taps = taps_of(recipe, target) if recipe.features.mode == "cached" else None
    responses = prepare_responses(recipe, target, tokenizer, {"train": train, "heldout": heldout}, taps)
    features = None if taps is None else prepare_features(recipe, target, taps, responses)
    return Prepared(responses, features)


def frequent_tokens(responses: list[Response], size: int, always: tuple[int, ...]) -> np.ndarray:
    """The `size` most frequent response tokens, sorted by id, with `always` among them."""
    counts: dict[int, float] = dict.fromkeys(always, float("inf"))
    for response in responses:
        for token in response.response_ids:
            counts[token] = counts.get(token, 0) + 1
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return np.array(sorted(ranked[:size]), np.int32)


def describe_rows(source: RowSource, responses: list[Response], row_length: int) -> str:
    """How full the packed rows are."""
    share = padding(source.rows, [response.length for response in responses], row_length)
    return f"{len(responses)} responses in {len(source)} rows of {row_length} tokens, padding {share:.1%}"
