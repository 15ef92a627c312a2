"""The training loss of EAGLE-3 (arXiv 2503.01840): its training-time test, unrolled over every chain.

In: a `Trainee` and a batch of `pipelines.batches`. Out: the loss and its scalars. A chain starts at every anchor p of
the batch (as many as a row has places for, if all of a response's positions are to be trained on): its first step
reads the feature of p - 1 and the anchor's token, each later one the step before and the response's own token, and sees
the pairs before and its own steps, as `models.drafters.eagle3_kind` does when it drafts. Step i is scored against the
token at p + i, as slot i of a block.

As published, the label is the target's distribution over the draft vocabulary (loss.kl=1) and step i weighs
0.8^(i-1): loss.weighting=decay, loss.gamma=4.4814.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from configs import schema
from configs.errors import UserError
from configs.schema import Recipe
from models.attention import Blocks, Kernel
from models.cache import Slots
from models.drafters.artifact import check_fit, read_artifact
from models.drafters.eagle3 import Eagle3Config, Eagle3Drafter, random_weights, target_weights
from models.layers import logits
from models.sharding import looked_up
from models.target import Target
from models.tokenizer import Tokenizer
from pipelines.prepare import taps_of
from train.objectives.slots import (
    LossSettings,
    anchor_groups,
    loss_settings,
    slot_labels,
    slot_losses,
    slot_scalars,
    slot_teachers,
    slot_weights,
)
from train.objectives.trainee import Trainee, row_features

__all__ = ["drafter_config", "leading_hits", "loss_of", "make_trainee", "read_rows"]  # `train.objectives.Objective`


def drafter_config(recipe: Recipe, target: Target, tokenizer: Tokenizer | None) -> Eagle3Config:
    """The drafter's architecture: the target's own layer shape, the recipe's taps, width and options."""
    section, shape = recipe.drafter, target.config
    assert isinstance(section, schema.Eagle3)
    vocab = section.draft_vocab_size
    if vocab is not None and not 2 <= vocab <= shape.vocab_size:
        raise UserError(f"drafter.draft_vocab_size: expected 2 to {shape.vocab_size} or null, got {vocab}")
    if len(section.target_layer_ids) != 3:
        raise UserError(
            f"drafter.target_layer_ids: expected three, a low, a middle and a high layer (published: "
            f"{[1, shape.num_layers // 2 - 1, shape.num_layers - 4]}), got {list(section.target_layer_ids)}"
        )
    return Eagle3Config(
        width=section.width,
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
        draft_vocab_size=vocab,
        norm_before_fc=section.norm_before_fc,
        norm_before_residual=section.norm_before_residual,
    )


def make_trainee(recipe: Recipe, config: Eagle3Config, target: Target, draft_vocab: np.ndarray | None) -> Trainee:
    """The drafter at step 0, with what it borrows of the target, whose head rows are its teacher's.

    Raises:
      UserError: drafter.init_from is not an artifact, or not of the shape the recipe describes.
    """
    section, rng = recipe.drafter, jax.random.key(recipe.run.seed)
    head = target.head if draft_vocab is None else target.head[draft_vocab]
    if section.init_from is not None:
        weights = _weights_of(Path(section.init_from), config, target, draft_vocab)
    elif section.init == "target":
        weights = target_weights(config, target, head, rng)
    else:
        weights = random_weights(config, rng)
    drafter = Eagle3Drafter(config, weights, recipe.train.dtype, target.mesh)
    online, kernel = recipe.features.mode == "online", cast(Kernel, recipe.features.attention)
    return Trainee(drafter, target, draft_vocab, online=online, attention=kernel)


def _weights_of(path: Path, config: Eagle3Config, target: Target, vocab: np.ndarray | None) -> dict[str, Any]:
    """The weights of the artifact at `path`, for a drafter of `config`. Of its shape, the width alone may differ."""
    artifact = read_artifact(path)
    check_fit(artifact, target, path)
    theirs, ours = dataclasses.asdict(artifact.config), dataclasses.asdict(config)
    free = ("width", "max_positions", "num_target_layers")
    differing = [name for name in ours if name not in free and theirs.get(name) != ours[name]]
    held, asked = (None if ids is None else np.asarray(ids).tolist() for ids in (artifact.draft_vocab, vocab))
    if held != asked:
        differing.append("draft_vocab")
    if differing:
        raise UserError(
            f"drafter.init_from={path}: another drafter than the recipe's ({', '.join(differing)}); change the recipe"
        )
    return artifact.weights


def loss_of(recipe: Recipe) -> Callable[[Trainee, dict[str, Array]], tuple[Array, dict[str, Array]]]:
    """The loss as the recipe weights it, a function of trainee and batch."""
    settings = loss_settings(recipe)

    def loss(trainee: Trainee, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return chain_loss(trainee, batch, settings)

    return loss


@struct.dataclass
class Read:
    """What the drafter reads of a batch's rows, whatever the anchors."""

    pairs: Slots
    fused: Float[Array, "B S D"]


@jax.jit
def read_rows(trainee: Trainee, batch: dict[str, Array]) -> Read:
    """What the drafter reads of a batch's rows, whatever the anchors."""
    return read(trainee, batch, row_features(trainee, batch, final=False))


@partial(jax.jit, static_argnames=("width", "head_chunk"))
def leading_hits(
    trainee: Trainee, batch: dict[str, Array], context: Read, anchors: Int[Array, "B A"], *, width: int, head_chunk: int
) -> tuple[Int[Array, "B A"], Float[Array, "B A W1"]]:
    """How many steps from the first on would draft the response's own token, and the chance of each step's likeliest
    token, given the response's own before it."""
    labels = slot_labels(batch, anchors, width)
    hidden = chain_hidden(trainee, batch, anchors, labels, context=context)
    rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
    _, _, hit, sure = head_loss(trainee, hidden, rows, None, LossSettings.of_hits(head_chunk))
    return jnp.cumprod(hit, axis=-1).sum(axis=-1), sure


def chain_loss(
    trainee: Trainee, batch: dict[str, Array], settings: LossSettings
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss (mean over all chains asked for, empty ones included, so that microbatches add up) and its scalars."""
    features = row_features(trainee, batch, final=settings.taught)
    context = read(trainee, batch, features)
    final = features[..., trainee.drafter.config.feature_size :]
    total, chains, scalars = jnp.float32(0), 0, {}
    for width, anchors in sorted(anchor_groups(batch).items()):
        labels = slot_labels(batch, anchors, width)
        hidden = chain_hidden(trainee, batch, anchors, labels, context=context, remat=settings.remat)
        rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
        teacher = slot_teachers(final, anchors, width) if settings.taught else None
        loss, hard, hit, _ = head_loss(trainee, hidden, rows, teacher, settings)
        total = total + jnp.sum(slot_weights(hard, rows >= 0, settings) * loss)
        chains += anchors.size
        scalars |= slot_scalars(width, hard, hit, labels >= 0)
    return total / chains, scalars | {"loss": total / chains}


def read(trainee: Trainee, batch: dict[str, Array], features: Float[Array, "B S LE"]) -> Read:
    """The pairs of a batch's rows, each at its feature's place; those of a text's last token nobody sees."""
    drafter = trainee.drafter
    fused = drafter.fused(features[..., : drafter.config.feature_size])
    following = looked_up(trainee.embedding[...], jnp.roll(batch["tokens"], -1, axis=1), trainee.mesh)
    return Read(drafter.context(fused, following, batch["positions"]), fused)


def chain_hidden(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    *,
    context: Read,
    remat: bool = False,
) -> Float[Array, "B A W1 D"]:
    """Hidden states of every step from the anchors (row indices; -1 gives a chain nobody scores), each given the
    response's own token before it."""
    drafter, at = trainee.drafter, jnp.maximum(anchors, 0)
    tokens, positions, segments = (
        jnp.take_along_axis(batch[name], at, axis=1) for name in ("tokens", "positions", "segments")
    )
    where = Blocks(positions - 1, segments, batch["positions"], batch["segments"], causal=True)
    before = jnp.maximum(jnp.concatenate([tokens[..., None], labels[..., :-1]], axis=-1), 0)
    embedded = looked_up(trainee.embedding[...], before, trainee.mesh)
    step = jax.checkpoint(drafter.step) if remat else drafter.step
    hidden = jnp.take_along_axis(context.fused, (at - jnp.minimum(positions, 1))[..., None], axis=1)
    steps, out = (), []
    for number in range(labels.shape[-1]):
        hidden, steps = step(hidden, embedded[:, :, number], where, context.pairs, steps)
        out.append(hidden)
    return jnp.stack(out, axis=2)


def head_loss(
    trainee: Trainee,
    hidden: Float[Array, "B A W1 D"],
    rows: Int[Array, "B A W1"],
    teacher: Float[Array, "B A W1 D"] | None,
    settings: LossSettings,
) -> tuple[Float[Array, "B A W1"], Float[Array, "B A W1"], Bool[Array, "B A W1"], Float[Array, "B A W1"]]:
    """The loss of each step (`slot_losses`), its head row's cross-entropy, whether that row's logit is highest, and the
    probability of the row whose logit is.

    `teacher` holds the target's final hidden states. At most `head_chunk` steps' logits exist at a time (or one step's
    of each row, where there are more rows); they are computed again for the gradient. Steps with row -1 get 0, 0 and
    False.
    """

    @jax.checkpoint
    def of_rows(part: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        hidden, rows, *teacher = part
        said = logits(teacher[0], trainee.head[...]) if teacher else None
        loss, hard, hit, sure, _, _ = slot_losses(trainee.drafter.scored(hidden), said, rows, settings)
        return jnp.where(rows >= 0, loss, 0), jnp.where(rows >= 0, hard, 0), (rows >= 0) & hit, sure

    def apart(values: Array) -> Array:
        """Steps first, so that every chunk holds some of each row and a mesh has work for all its devices."""
        return values.reshape(len(rows), -1, *values.shape[3:]).swapaxes(0, 1)

    parts = (apart(hidden), apart(rows), *(() if teacher is None else (apart(teacher.astype(hidden.dtype)),)))
    out = jax.lax.map(of_rows, parts, batch_size=max(1, settings.head_chunk // len(rows)))
    loss, hard, hit, sure = (value.swapaxes(0, 1).reshape(rows.shape) for value in out)
    return loss, hard, hit, sure
