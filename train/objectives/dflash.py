"""The training loss: cross-entropy of every drafted slot, weighted by what the slot is worth.

In: a `Trainee` and a batch of `pipelines.batches`. Out: the loss and its scalars. Slot i of a block at anchor p is
scored against the token at p + i of the same response; slot 0 is the anchor and is not scored; slots past the end of
the response, or whose token the draft vocabulary lacks, weigh nothing.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from configs.schema import Recipe
from models import layers
from models.attention import Blocks, Kernel, Packed
from models.cache import Slots
from models.drafters.dflash import Drafter, DrafterConfig, block_tokens
from models.layers import Frozen
from models.sharding import constrain, looked_up
from models.target import AXES, Target, packed_features
from train.objectives.dflash_build import drafter_config, new_drafter

__all__ = ["drafter_config", "leading_hits", "loss_of", "make_trainee", "read_rows"]  # `train.objectives.Objective`


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How slots are weighted and how much of the LM head exists at once."""

    weighting: Literal["dpace", "decay"]
    gamma: float
    soft: float  # share of the target's distribution in the label; the rest is the response's token
    head_chunk: int
    remat: bool


class Trainee(nnx.Module):
    """The drafter with what it borrows from the target, frozen: embedding, LM head, the target itself when online."""

    def __init__(
        self,
        drafter: Drafter,
        target: Target,
        draft_vocab: np.ndarray | None,
        *,
        online: bool,
        attention: Kernel = "dense",  # of the target
    ):
        self.drafter = drafter
        self.attention: Kernel = attention
        self.target = target if online else None
        self.mesh = target.mesh
        self.embedding = Frozen(target.embedding[...], axes=AXES["embedding"])
        head, index = target.head, np.arange(target.config.vocab_size)
        if draft_vocab is not None:
            head = head[draft_vocab]
            index = np.full(target.config.vocab_size, -1)
            index[draft_vocab] = np.arange(len(draft_vocab))
        self.head = Frozen(head.astype(drafter.dtype), axes=AXES["head"])
        self.draft_index = Frozen(jnp.asarray(index, jnp.int32))  # token id -> row of head, -1 where it has none

    @property
    def width(self) -> int:
        return self.drafter.config.width


def make_trainee(recipe: Recipe, config: DrafterConfig, target: Target, draft_vocab: np.ndarray | None) -> Trainee:
    """The drafter at step 0, with what it borrows of the target."""
    section = recipe.features
    online, kernel = section.mode == "online", cast(Kernel, section.attention)
    return Trainee(new_drafter(recipe, config, target), target, draft_vocab, online=online, attention=kernel)


def loss_of(recipe: Recipe) -> Callable[[Trainee, dict[str, Array]], tuple[Array, dict[str, Array]]]:
    """The loss as the recipe weights it, a function of trainee and batch."""
    settings = loss_settings(recipe)

    def loss(trainee: Trainee, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        return block_loss(trainee, batch, settings)

    return loss


def loss_settings(recipe: Recipe) -> LossSettings:
    section = recipe.loss
    return LossSettings(section.weighting, section.gamma, section.soft, section.head_chunk, recipe.train.remat)


@jax.jit
def read_rows(trainee: Trainee, batch: dict[str, Array]) -> Slots:
    """What the drafter reads of a batch's rows, whatever the anchors."""
    return draft_context(trainee, batch, row_features(trainee, batch, final=False))


@partial(jax.jit, static_argnames="head_chunk")
def leading_hits(
    trainee: Trainee, batch: dict[str, Array], context: Slots, anchors: Int[Array, "B A"], *, head_chunk: int
) -> Int[Array, "B A"]:
    """How many slots from the first on would draft the response's own token."""
    labels = slot_labels(batch, anchors, trainee.width)
    hidden = slot_hidden(trainee, batch, anchors, labels, context=context)
    rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
    _, _, hit = head_cross_entropy(hidden, trainee.head[...], rows, head_chunk, mesh=trainee.mesh)
    return jnp.cumprod(hit, axis=-1).sum(axis=-1)


def block_loss(
    trainee: Trainee, batch: dict[str, Array], settings: LossSettings
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss (mean over all blocks asked for, empty ones included, so that microbatches add up) and its scalars."""
    features = row_features(trainee, batch, final=settings.soft > 0)
    context = draft_context(trainee, batch, features)
    final = features[..., trainee.drafter.config.feature_size :] if settings.soft > 0 else None
    total, blocks, scalars = jnp.float32(0), 0, {}
    for width, anchors in sorted(anchor_groups(batch).items()):
        labels = slot_labels(batch, anchors, width)
        hidden = slot_hidden(trainee, batch, anchors, labels, context=context, remat=settings.remat)
        rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
        teacher = None if final is None else slot_teachers(final, anchors, width)
        loss, hard, hit = head_cross_entropy(
            hidden,
            trainee.head[...],
            rows,
            settings.head_chunk,
            teacher=teacher,
            soft=settings.soft,
            mesh=trainee.mesh,
        )
        weights = slot_weights(hard, labels >= 0, rows >= 0, settings)
        total = total + jnp.sum(weights * loss)
        blocks += anchors.size
        scalars |= _scalars(width, hard, hit, labels >= 0)
    return total / blocks, scalars | {"loss": total / blocks}


def anchor_groups(batch: dict[str, Array]) -> dict[int, Int[Array, "B A"]]:
    """Block width -> anchors, from the batch's `anchors_w<W>` entries."""
    prefix = "anchors_w"
    return {int(name.removeprefix(prefix)): value for name, value in batch.items() if name.startswith(prefix)}


def row_features(trainee: Trainee, batch: dict[str, Array], *, final: bool) -> Float[Array, "B S LE"]:
    """A batch's features, cached or from the target's own forward; its final hidden state comes last if asked."""
    if trainee.target is None:
        return batch["features"]
    taps = trainee.drafter.config.target_layer_ids
    where = Packed(batch["positions"], batch["segments"], trainee.attention)
    return packed_features(trainee.target, batch["tokens"], where, taps=taps, final=final)


def draft_context(trainee: Trainee, batch: dict[str, Array], features: Float[Array, "B S LE"]) -> Slots:
    """The drafter's keys and values of a batch's rows."""
    size = trainee.drafter.config.feature_size
    return trainee.drafter.context(features[..., :size], batch["positions"])


def block_hidden(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    width: int,
    *,
    context: Slots,
    remat: bool = False,
) -> Float[Array, "B A W D"]:
    """Final hidden states of the blocks at `anchors` (row indices; -1 gives a block nobody scores)."""
    drafter = trainee.drafter
    at = jnp.maximum(anchors, 0)
    tokens, positions, segments = (
        jnp.take_along_axis(batch[name], at, axis=1) for name in ("tokens", "positions", "segments")
    )
    where = Blocks(positions, segments, batch["positions"], batch["segments"])
    block = looked_up(trainee.embedding[...], block_tokens(tokens, width, drafter.config.mask_token_id), trainee.mesh)
    return drafter(block, where, context, remat=remat)


def slot_hidden(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    labels: Int[Array, "B A W1"],
    *,
    context: Slots,
    remat: bool = False,
) -> Float[Array, "B A W1 D"]:
    """Hidden states of slots 1..W-1 as the LM head reads them, every slot given the response's own token before it."""
    hidden = block_hidden(trainee, batch, anchors, labels.shape[-1] + 1, context=context, remat=remat)[:, :, 1:]
    anchor_tokens = jnp.take_along_axis(batch["tokens"], jnp.maximum(anchors, 0), axis=1)[..., None]
    before = jnp.maximum(jnp.concatenate([anchor_tokens, labels[..., :-1]], axis=-1), 0)
    return trainee.drafter.corrected(hidden, looked_up(trainee.embedding[...], before, trainee.mesh))


def slot_labels(batch: dict[str, Array], anchors: Int[Array, "B A"], width: int) -> Int[Array, "B A W1"]:
    """The token each slot 1..W-1 is to draft; -1 past the end of the response, or without an anchor.

    Example: row tokens 5 6 7 8 of one response, anchor at 1 (token 6), width 4 -> labels 7 8 -1.
    """
    length = batch["tokens"].shape[1]
    slots = anchors[:, :, None] + jnp.arange(1, width)
    inside = jnp.clip(slots, 0, length - 1).reshape(anchors.shape[0], -1)
    tokens = jnp.take_along_axis(batch["tokens"], inside, axis=1).reshape(slots.shape)
    segments = jnp.take_along_axis(batch["segments"], inside, axis=1).reshape(slots.shape)
    own = jnp.take_along_axis(batch["segments"], jnp.maximum(anchors, 0), axis=1)[:, :, None]
    valid = (anchors[:, :, None] >= 0) & (slots < length) & (segments == own)
    return jnp.where(valid, tokens, -1)


def slot_teachers(final: Float[Array, "B S D"], anchors: Int[Array, "B A"], width: int) -> Float[Array, "B A W1 D"]:
    """The target's final hidden state that predicts each slot 1..W-1: that of the position before it."""
    before = jnp.clip(anchors[:, :, None] + jnp.arange(width - 1), 0, final.shape[1] - 1)
    taken = jnp.take_along_axis(final, before.reshape(anchors.shape[0], -1, 1), axis=1)
    return taken.reshape(*before.shape, final.shape[-1])


def slot_weights(
    loss: Float[Array, "B A W1"],
    valid: Bool[Array, "B A W1"],
    drafted: Bool[Array, "B A W1"],
    settings: LossSettings,
) -> Float[Array, "B A W1"]:
    """The weight of every slot, no gradient.

    decay: exp(-(i - 1) / gamma) at slot i (DFlash, arXiv 2602.06036).
    dpace: sum_{k >= i} prod_{j <= k} p_j, with p_j the probability the drafter gives slot j's token now. That is the
    derivative of the expected number of accepted tokens by log p_i, the idea of D-PACE (arXiv 2605.18810): a slot
    counts as much as a prefix surviving up to it and beyond is likely. Probabilities are mixed with a floor of 1/4 so
    that an untrained drafter learns past its first slot; weights are scaled to a first slot of 1.
    """
    usable = (valid & drafted).astype(jnp.float32)
    if settings.weighting == "decay":
        return usable * jnp.exp(-jnp.arange(loss.shape[-1]) / settings.gamma)
    probability = usable * (0.25 + 0.75 * jnp.exp(-jax.lax.stop_gradient(loss)))
    survival = jnp.cumprod(probability, axis=-1)
    worth = jnp.cumsum(survival[..., ::-1], axis=-1)[..., ::-1]
    return usable * worth / jnp.maximum(worth[..., :1], 1e-6)


def head_cross_entropy(
    hidden: Float[Array, "B A W1 D"],
    head: Float[Array, "V D"],
    rows: Int[Array, "B A W1"],
    chunk: int,
    *,
    teacher: Float[Array, "B A W1 D"] | None = None,
    soft: float = 0.0,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Float[Array, "B A W1"], Float[Array, "B A W1"], Bool[Array, "B A W1"]]:
    """The loss of each slot, its cross-entropy against its head row alone, and whether that row's logit is highest.

    The label is `soft` times the target's distribution over the head's rows (`teacher` holds the target's final
    hidden states) and 1 - soft times the row. At most `chunk` slots' logits exist at a time (or one slot's of each
    row, where there are more rows), as many of every row, so that a mesh has work for all its devices. Slots with row
    -1 get 0, 0 and False.
    """
    batch, size = rows.shape[0], rows[0].size
    num_chunks = -(-size // max(1, chunk // batch))
    each = -(-size // num_chunks)  # of a row, as many in every chunk: the last one would be mostly padding
    padding = num_chunks * each - size

    def chunked(values: Array, fill: int = 0) -> Array:
        flat = values.reshape(batch, size, *values.shape[rows.ndim :])
        flat = jnp.pad(flat, ((0, 0), (0, padding), *[(0, 0)] * (flat.ndim - 2)), constant_values=fill)
        parts = flat.reshape(batch, num_chunks, each, *flat.shape[2:]).swapaxes(0, 1)
        return constrain(parts.reshape(num_chunks, batch * each, *flat.shape[2:]), mesh, None, "batch")

    states = (hidden,) if teacher is None else (hidden, teacher)
    parts = (chunked(rows, -1), *[chunked(value.astype(hidden.dtype)) for value in states])
    out = jax.lax.map(lambda part: _chunk_cross_entropy(part[1], head, part[0], (*part[2:], soft), mesh), parts)
    parts = (value.reshape(num_chunks, batch, each).swapaxes(0, 1).reshape(batch, -1)[:, :size] for value in out)
    loss, hard, hit = (value.reshape(rows.shape) for value in parts)
    return loss, hard, hit


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunk_cross_entropy(
    hidden: Array, head: Array, labels: Array, teaching: tuple, mesh: jax.sharding.Mesh | None
) -> tuple[Array, Array, Array]:
    return _chunk_forward(hidden, head, labels, teaching, mesh)[0]


def _chunk_forward(
    hidden: Array, head: Array, labels: Array, teaching: tuple, mesh: jax.sharding.Mesh | None
) -> tuple[tuple[Array, Array, Array], Array]:
    """Loss, hard loss and hit, and the loss's gradient by the hidden state, taken while the logits are here.

    The head is frozen and the loss is linear in its weight, so this is all the backward pass needs: two head matmuls
    in place of the four that recomputing would take.
    """
    *teacher, soft = teaching
    hidden, labels = (constrain(value, mesh, "replica") for value in (hidden, labels))
    logits = constrain(layers.logits(hidden, head), mesh, "replica", "head_rows")
    valid, label = labels >= 0, jnp.maximum(labels, 0)
    top = logits.max(axis=-1)
    exponent = jnp.exp(logits - top[:, None])
    total = exponent.sum(axis=-1)
    chosen = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
    hard = jnp.where(valid, jnp.log(total) + top - chosen, 0.0)
    loss, error = hard, exponent / total[:, None]  # becomes what was expected less what was wanted
    if teacher:
        belief = jax.nn.softmax(layers.logits(constrain(teacher[0], mesh, "replica"), head), axis=-1)
        smooth = jnp.log(total) + top - jnp.sum(belief * logits, axis=-1)
        loss = jnp.where(valid, soft * smooth + (1 - soft) * hard, 0.0)
        error = error - soft * belief
    # The label's share goes off here, not off the matmul's result: near the end of training both are almost its head
    # row, and their difference would be rounding alone.
    error = error - (1 - soft) * (jnp.arange(head.shape[0]) == label[:, None])
    with layers.matmul_precision(head.dtype):
        gradient = jnp.einsum("tv,vd->td", error.astype(head.dtype), head, preferred_element_type=jnp.float32)
    gradient = constrain(jnp.where(valid[:, None], gradient, 0.0), mesh, "batch")
    return (loss, hard, valid & (chosen >= top)), gradient.astype(hidden.dtype)


def _chunk_backward(
    mesh: jax.sharding.Mesh | None, gradient: Array, cotangents: tuple[Array, Any, Any]
) -> tuple[Array, None, None, None]:
    return (cotangents[0][:, None] * gradient).astype(gradient.dtype), None, None, None


_chunk_cross_entropy.defvjp(_chunk_forward, _chunk_backward)


def _scalars(width: int, loss: Array, hit: Array, valid: Array) -> dict[str, Array]:
    """Accuracy at the first slot, and tau of teacher-forced blocks: 1 + the mean number of leading hits."""
    leading = jnp.cumprod(hit, axis=-1).sum(axis=-1)
    first = jnp.maximum(valid[..., 0].sum(), 1)
    return {
        f"w{width}/slot1_accuracy": hit[..., 0].sum() / first,
        f"w{width}/block_tau": 1 + (leading * valid[..., 0]).sum() / first,
        f"w{width}/slot1_loss": loss[..., 0].sum() / first,
    }
