"""Building what a recipe describes: the drafter's shape, its first weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from configs.schema import DFlash, Recipe
from models.drafters.artifact import check_fit, read_artifact
from models.drafters.dflash import Drafter, DrafterConfig
from models.drafters.dflash_weights import confidence_weights, random_weights, target_head_weights, target_weights
from models.drafters.mixing import resized
from models.target import Target
from models.tokenizer import Tokenizer
from pipelines.prepare import taps_of


def drafter_config(recipe: Recipe, target: Target, tokenizer: Tokenizer | None) -> DrafterConfig:
    """The drafter's architecture: the target's own layer shape, the recipe's depth, width, taps and options.

    The tokenizer says which token masks a slot, and may be None where the recipe does.
    """
    section, shape = recipe.drafter, target.config
    assert isinstance(section, DFlash)
    mask = section.mask_token_id
    if mask is None:
        assert tokenizer is not None
        mask = tokenizer.unused_token_id(shape)
    if not 0 <= mask < shape.vocab_size:
        raise UserError(f"drafter.mask_token_id: expected 0 to {shape.vocab_size - 1} ({shape.name}), got {mask}")
    vocab = section.draft_vocab_size
    if vocab is not None and not 2 <= vocab <= shape.vocab_size:
        raise UserError(f"drafter.draft_vocab_size: expected 2 to {shape.vocab_size} or null, got {vocab}")
    if section.init == "target" and section.num_layers > shape.num_layers:
        raise UserError(
            f"drafter.num_layers={section.num_layers}: init=target takes layers of {shape.name}, which has "
            f"{shape.num_layers}; lower it or set drafter.init=random"
        )
    return DrafterConfig(
        width=section.width,
        num_layers=section.num_layers,
        target_layer_ids=taps_of(recipe, target),
        num_target_layers=shape.num_layers,
        target_hidden_size=shape.hidden_size,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        mlp_size=shape.mlp_size,
        rms_eps=shape.rms_eps,
        rope_theta=shape.rope_theta,
        rope_scaling=shape.rope_scaling,
        max_positions=shape.max_positions,
        vocab_size=shape.vocab_size,
        tied_head=shape.tied_head,
        mask_token_id=mask,
        causal=(section.causal,) * section.num_layers,
        windows=(section.sliding_window,) * section.num_layers,
        draft_vocab_size=vocab,
        markov_size=section.markov_size,
        markov_rank=section.markov_rank,
        markov_head_type=section.markov_head_type,
        confidence_head=section.confidence_head,
        sample_from_anchor=section.sample_from_anchor,
    )


def new_drafter(recipe: Recipe, config: DrafterConfig, target: Target, draft_vocab: np.ndarray | None) -> Drafter:
    """A drafter at step 0, over the tokens `draft_vocab` [Vd] or all.

    Raises:
      UserError: drafter.init_from is not an artifact, or not of the shape the recipe describes.
    """
    if recipe.drafter.init_from is not None:
        weights = _weights_of(Path(recipe.drafter.init_from), config, target, draft_vocab)
        return Drafter(config, weights, recipe.train.dtype, target.mesh)
    rng, taken = jax.random.key(recipe.run.seed), recipe.drafter.init == "target"
    weights = target_weights(config, target, rng, draft_vocab) if taken else random_weights(config, rng)
    return Drafter(config, weights, recipe.train.dtype, target.mesh)


def _weights_of(path: Path, config: DrafterConfig, target: Target, draft_vocab: np.ndarray | None) -> dict[str, Any]:
    """The weights of the artifact at `path`, for a drafter of `config`.

    Width and draft vocabulary may differ; tokens that are new to it have no row of W2 yet. A head the artifact lacks
    starts without effect.
    """
    artifact = read_artifact(path)
    check_fit(artifact, target, path)
    theirs, ours = dataclasses.asdict(artifact.config), dataclasses.asdict(config)
    headless = theirs["markov_size"] is None and theirs["markov_rank"] is None
    confidence = confidence_weights(config)  # new where the artifact has none
    free = {"confidence_head"} if "confidence" not in artifact.weights else set()
    free |= {"width", "draft_vocab_size", "max_positions"}
    free |= {"num_target_layers"}  # `check_fit` compares it, where the artifact says it
    free |= {"markov_size", "markov_rank", "markov_head_type"} if headless else set()
    differing = [name for name in ours if name not in free and theirs[name] != ours[name]]
    if differing:
        listed = "; ".join(f"{name}: artifact {theirs[name]!r}, recipe {ours[name]!r}" for name in differing)
        raise UserError(f"drafter.init_from={path}: another shape than the recipe's ({listed}); change the recipe")
    if headless:
        heads = target_head_weights(config, target, jax.random.key(0), draft_vocab)
        if theirs["confidence_head"] and config.confidence_head and config.markov_rank:
            known = artifact.weights["confidence"]
            heads["confidence"] = known | {"proj": jnp.pad(known["proj"], (0, config.markov_rank))}
        return confidence | artifact.weights | heads
    if config.markov_rank is None:
        return confidence | artifact.weights
    mixing = artifact.weights.get("mixing", {})
    if config.refines:
        mixing = mixing | {"mix_l": resized(mixing["mix_l"], config.slots(config.width))}
    everywhere = np.arange(config.vocab_size)
    old, new = (everywhere if vocab is None else vocab for vocab in (artifact.draft_vocab, draft_vocab))
    w2 = jnp.zeros((config.vocab_size, config.markov_rank)).at[old].set(artifact.weights["markov_w2"])[new]
    return confidence | artifact.weights | {"markov_w2": w2} | ({"mixing": mixing} if mixing else {})
