"""Preparation of a recipe's data: prompts, responses and, where cached, features; each written once and reused."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.console import say
from configs.errors import UserError
from configs.schema import DFlash, Recipe
from models.statistics import outside_share
from models.target import Target, TargetConfig, default_taps
from models.tokenizer import Tokenizer
from pipelines.batches import RowSource
from pipelines.feature_store import FeatureSource
from pipelines.features import prepare_features
from pipelines.prompts import load_prompts, split_heldout
from pipelines.records import Responses
from pipelines.responses import prepare_responses


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a recipe's data lie on disk; features is None when they are computed online."""

    responses: Path
    features: Path | None

    def rows(self, split: str, hidden_size: int, row_length: int, first: int | None = None) -> RowSource:
        """Packed rows of a split, or of its first responses."""
        features = FeatureSource(self.features, split, hidden_size) if self.features else None
        return RowSource(Responses(self.responses / split), features, row_length, first)


def taps_of(recipe: Recipe, target: Target) -> tuple[int, ...]:
    """The recipe's tapped layers, or DFlash's default for its depth.

    Raises:
      UserError: a tap is not a layer of the target.
    """
    num_layers = target.config.num_layers
    taps = recipe.drafter.target_layer_ids
    if taps is None:
        assert isinstance(recipe.drafter, DFlash)  # the other kinds' recipes name theirs
        taps = default_taps(num_layers, recipe.drafter.num_layers)
    for tap in taps:
        if not 0 <= tap < num_layers:
            raise UserError(
                f"drafter.target_layer_ids: {tap} is no layer of {target.config.name}; expected 0 to {num_layers - 1}"
            )
    return taps


def prepare(recipe: Recipe, target: Target, tokenizer: Tokenizer) -> Prepared:
    """Everything training reads, on disk; what is there already is reused."""
    section = recipe.prompts
    prompts = load_prompts(section.sources, limit=section.limit + section.heldout, seed=recipe.prompts.seed)
    train, heldout = split_heldout(prompts, section.heldout, recipe.prompts.seed)
    say(f"prompts: {len(train)} for training, {len(heldout)} held out, from {', '.join(section.sources)}")
    taps = taps_of(recipe, target) if recipe.features.mode == "cached" else None
    responses = prepare_responses(recipe, target, tokenizer, {"train": train, "heldout": heldout}, taps)
    features = None if taps is None else prepare_features(recipe, target, taps, responses)
    return Prepared(responses, features)


def draft_vocabulary(recipe: Recipe, prepared: Prepared, target: TargetConfig) -> np.ndarray | None:
    """The token ids a drafter by this recipe drafts from, sorted; None: the whole vocabulary."""
    size, written = recipe.drafter.draft_vocab_size, prepared.responses / "train"
    return None if size is None else frequent_tokens(Responses(written), size, target.eos_ids, recipe.batches.responses)


def describe_vocabulary(responses: Responses, vocab: np.ndarray) -> str:
    """What a draft vocabulary lacks of each task's responses, in words."""
    texts: dict[str, list[Sequence[int]]] = defaultdict(list)
    for number in range(len(responses)):
        texts[responses[number].task].append(responses[number].response_ids)
    shares = [f"{task} {outside_share(texts[task], vocab):.1%}" for task in sorted(texts)]
    return f"{len(vocab)} tokens; of held-out responses it lacks: {', '.join(shares)}"


def frequent_tokens(responses: Responses, size: int, always: tuple[int, ...], first: int | None = None) -> np.ndarray:
    """The `size` most frequent tokens of the `first` responses, sorted by id, with `always` among them."""
    counts = np.zeros(max((responses.token_range[1], *always)) + 1, np.int64)
    for number, prompt_length in enumerate(responses.prompt_lengths[:first].tolist()):
        np.add.at(counts, responses.ids(number)[prompt_length:], 1)
    counts[list(always)] = np.iinfo(np.int64).max
    ranked = np.argsort(-counts, kind="stable")[: min(size, np.count_nonzero(counts))]
    return np.sort(ranked).astype(np.int32)
