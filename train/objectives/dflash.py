"""The training loss of DFlash: every slot of a block (`train.objectives.slots`), drafted in one pass.

In: a `Trainee` and a batch of `pipelines.batches`. Out: the loss and its scalars. A drafter that is to
`sample_from_anchor` has the same slots 1 to W-1, each of them lying one place earlier in its block, the first at the
anchor.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from configs.schema import DFlash, Recipe
from models.attention import BlockKernel, Blocks, Kernel
from models.cache import Slots
from models.drafters.dflash import DrafterConfig, block_tokens
from models.drafters.mixing import PASSES
from models.sharding import looked_up
from models.target import Target
from train.objectives.dflash_build import drafter_config, new_drafter
from train.objectives.slots import (
    LossSettings,
    SlotLoss,
    anchor_groups,
    head_loss,
    loss_settings,
    slot_labels,
    slot_scalars,
    slot_teachers,
    slot_weights,
)
from train.objectives.trainee import Trainee, row_features

__all__ = ["drafter_config", "leading_hits", "loss_of", "make_trainee", "read_rows"]  # `train.objectives.Objective`

ROUNDS, GIVEN_GUESSES, WITHOUT_BIAS = 3, 0.3, 0.6  # of a refiner's own guesses; shares of its further losses


def make_trainee(recipe: Recipe, config: DrafterConfig, target: Target, draft_vocab: np.ndarray | None) -> Trainee:
    """The drafter at step 0, with what it borrows of the target."""
    assert isinstance(recipe.drafter, DFlash)
    return Trainee(
        new_drafter(recipe, config, target, draft_vocab),
        target,
        draft_vocab,
        online=recipe.features.mode == "online",
        attention=cast(Kernel, recipe.features.attention),
        blocks=cast(BlockKernel, recipe.drafter.attention),
    )


def loss_of(recipe: Recipe) -> Callable[[Trainee, dict[str, Array]], tuple[Array, dict[str, Array]]]:
    """The loss as the recipe weights it, a function of trainee and batch."""
    settings = loss_settings(recipe)

    def loss(trainee: Trainee, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return block_loss(trainee, batch, settings)

    return loss


@jax.jit
def read_rows(trainee: Trainee, batch: dict[str, Array]) -> Slots:
    """What the drafter reads of a batch's rows, whatever the anchors."""
    return draft_context(trainee, batch, row_features(trainee, batch, final=False))


@partial(jax.jit, static_argnames=("width", "head_chunk"))
def leading_hits(
    trainee: Trainee,
    batch: dict[str, Array],
    context: Slots,
    anchors: Int[Array, "B A"],
    *,
    width: int,
    head_chunk: int,
) -> tuple[Int[Array, "B A"], Float[Array, "B A W1"]]:
    """How many slots from the first on would draft the response's own token, and the drafter's confidence
    in each slot's own draft (`models.drafters.confidence`), given the response's own token before it."""
    labels, settings = slot_labels(batch, anchors, width), LossSettings.of_hits(head_chunk)
    hidden = block_hidden(trainee, batch, anchors, trainee.drafter.config.slots(width), context=context)
    states = scored_states(trainee, batch, anchors, labels, hidden)
    if trainee.drafter.config.refines:  # its later slots may hang on guesses that are not the response's tokens
        found = own_rounds(trainee, batch, anchors, labels, hidden, None, settings, PASSES)[-1]
    else:
        found = slot_loss(trainee, states, labels, None, settings)
    _, _, hit, sure, _, _ = found
    if trainee.drafter.confidence is not None:
        sure = jax.nn.sigmoid(trainee.drafter.acceptance_odds(states, tokens_before(batch, anchors, labels)))
    return jnp.cumprod(hit, axis=-1).sum(axis=-1), sure


def block_loss(
    trainee: Trainee, batch: dict[str, Array], settings: LossSettings
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss (mean over all blocks asked for, empty ones included, so that microbatches add up) and its scalars."""
    features = row_features(trainee, batch, final=settings.taught)
    context = draft_context(trainee, batch, features)
    final = features[..., trainee.drafter.config.feature_size :] if settings.taught else None
    total, blocks, scalars = jnp.float32(0), 0, {}
    for width, anchors in sorted(anchor_groups(batch).items()):
        labels = slot_labels(batch, anchors, width)
        slots = trainee.drafter.config.slots(width)
        hidden = block_hidden(trainee, batch, anchors, slots, context=context, remat=settings.remat)
        states = scored_states(trainee, batch, anchors, labels, hidden)
        teacher = None if final is None else slot_teachers(final, anchors, width)
        loss, hard, hit, _, overlap, _ = slot_loss(trainee, states, labels, teacher, settings)
        total = total + loss
        if trainee.drafter.config.refines:
            total = total + refining_loss(trainee, batch, anchors, labels, hidden, teacher, settings)
        if trainee.drafter.confidence is not None:
            weights = slot_weights(hard, labels >= 0, settings)
            odds = trainee.drafter.acceptance_odds(states, tokens_before(batch, anchors, labels))
            total = total + jnp.sum(weights * confidence_loss(odds, overlap))
        blocks += anchors.size
        scalars |= slot_scalars(width, hard, hit, labels >= 0)
    return total / blocks, scalars | {"loss": total / blocks}


def draft_context(trainee: Trainee, batch: dict[str, Array], features: Float[Array, "B S LE"]) -> Slots:
    """The drafter's keys and values of a batch's rows."""
    size = trainee.drafter.config.feature_size
    return trainee.drafter.context(features[..., :size], batch["positions"])


def block_hidden(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    slots: int,
    *,
    context: Slots,
    remat: bool = False,
) -> Float[Array, "B A W D"]:
    """Final hidden states of the blocks of W `slots` at `anchors` (row indices; -1 gives a block nobody scores)."""
    drafter = trainee.drafter
    at = jnp.maximum(anchors, 0)
    tokens, positions, segments = (
        jnp.take_along_axis(batch[name], at, axis=1) for name in ("tokens", "positions", "segments")
    )
    where = Blocks(positions, segments, batch["positions"], batch["segments"], kernel=trainee.blocks)
    block = looked_up(trainee.embedding[...], block_tokens(tokens, slots, drafter.config.mask_token_id), trainee.mesh)
    return drafter(block, where, context, remat=remat)


def slot_states(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    *,
    context: Slots,
) -> Float[Array, "B A W1 DR"]:
    """Slots 1..W-1 as `head_loss` reads them, every slot given the response's own token before it."""
    slots = trainee.drafter.config.slots(labels.shape[-1] + 1)
    hidden = block_hidden(trainee, batch, anchors, slots, context=context)
    return scored_states(trainee, batch, anchors, labels, hidden)


def scored_states(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    hidden: Float[Array, "B A S D"],
) -> Float[Array, "B A W1 DR"]:
    """The same of blocks whose hidden states are known."""
    before = tokens_before(batch, anchors, labels)
    embedded = looked_up(trainee.embedding[...], before, trainee.mesh)
    return trainee.drafter.scored_states(hidden, before, embedded, earlier_tokens(batch, anchors))


def refining_loss(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    hidden: Float[Array, "B A S D"],
    teacher: Float[Array, "B A W1 D"] | None,
    settings: LossSettings,
) -> Float[Array, ""]:
    """What a refiner is held to beside the response's own tokens: 0.6 of the loss of its logits without a bias, and 0.3
    of the mean loss given its own guesses, ROUNDS of them (XPress, as `speculators` 0.9 trains it).

    Decoding begins with the guesses of the first and goes on as the second does.
    """
    (without, *_), *rounds = own_rounds(trainee, batch, anchors, labels, hidden, teacher, settings, ROUNDS)
    return WITHOUT_BIAS * without + GIVEN_GUESSES * sum(loss for loss, *_ in rounds) / ROUNDS


def own_rounds(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    hidden: Float[Array, "B A S D"],
    teacher: Float[Array, "B A W1 D"] | None,
    settings: LossSettings,
    count: int,
) -> list[SlotLoss]:
    """`head_loss` of a refiner's logits without a bias, and of `count` rounds, each given the guesses before it."""
    drafting, settings = hidden[:, :, -labels.shape[-1] :], dataclasses.replace(settings, guesses=True)
    rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
    out: list[Any] = [head_loss(drafting, None, trainee.head[...], rows, teacher, settings, trainee.mesh)]
    tokens, seen = token_ids(trainee), trainee.drafter.seen(hidden)
    anchor, earlier = tokens_before(batch, anchors, labels)[..., :1], earlier_tokens(batch, anchors)
    for _ in range(count):
        guesses = out[-1][-1]
        before = jnp.concatenate([anchor, tokens[guesses][..., :-1]], axis=-1)
        states = jnp.concatenate([drafting, trainee.drafter.refined(seen, before, earlier)], axis=-1)
        out.append(slot_loss(trainee, states, labels, teacher, settings))
    return out


def token_ids(trainee: Trainee) -> Int[Array, " Vd"]:
    """The token id of each row of the head."""
    index = trainee.draft_index[...]
    rows = jnp.where(index >= 0, index, trainee.head[...].shape[0])
    return jnp.zeros(trainee.head[...].shape[0], jnp.int32).at[rows].set(jnp.arange(len(index)), mode="drop")


def earlier_tokens(batch: dict[str, Array], anchors: Int[Array, "B A"]) -> Int[Array, "B A"]:
    """The token before each anchor; the anchor itself where it is its text's first."""
    at = jnp.maximum(anchors, 0)
    before = jnp.maximum(at - 1, 0)
    segments = (jnp.take_along_axis(batch["segments"], places, axis=1) for places in (at, before))
    own, other = segments
    return jnp.take_along_axis(batch["tokens"], jnp.where(own == other, before, at), axis=1)


def tokens_before(
    batch: dict[str, Array], anchors: Int[Array, "B A"], labels: Int[Array, "B A W1"]
) -> Int[Array, "B A W1"]:
    """The response's own token before each slot 1..W-1; 0 where there is none."""
    anchor_tokens = jnp.take_along_axis(batch["tokens"], jnp.maximum(anchors, 0), axis=1)[..., None]
    return jnp.maximum(jnp.concatenate([anchor_tokens, labels[..., :-1]], axis=-1), 0)


def confidence_loss(odds: Float[Array, "*b"], accepted: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The cross-entropy of the confidence head's log-odds, held to the chances `accepted` that drafts were accepted."""
    return jax.nn.softplus(odds) - jax.lax.stop_gradient(accepted) * odds


def slot_loss(
    trainee: Trainee,
    states: Float[Array, "B A W1 DR"],
    labels: Int[Array, "B A W1"],
    teacher: Float[Array, "B A W1 D"] | None,
    settings: LossSettings,
) -> SlotLoss:
    """`head_loss` of slots that are to draft `labels` (-1: none)."""
    rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
    w2 = trainee.drafter.markov_w2
    w2 = None if w2 is None else w2[...]
    return head_loss(states, w2, trainee.head[...], rows, teacher, settings, trainee.mesh)
