"""The training loss: cross-entropy of every drafted slot, weighted by what the slot is worth.

In: a `Trainee` and a batch of `pipelines.batches`. Out: the loss and its scalars. Slot i of a block at anchor p is
scored against the token at p + i of the same response; slot 0 is the anchor and is not scored; slots past the end of
the response, or whose token the draft vocabulary lacks, weigh nothing.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.drafter import Drafter, block_tokens
from models.kv_cache import KVCache
from models.layers import Frozen
from models.masks import context_mask
from models.target import Target
from pipelines.features import packed_features


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How slots are weighted and how much of the LM head exists at once."""

    weighting: Literal["dpace", "decay"]
    gamma: float
    head_chunk: int
    remat: bool


class Trainee(nnx.Module):
    """The drafter with what it borrows from the target, frozen: embedding, LM head, the target itself when online."""

    def __init__(self, drafter: Drafter, target: Target, draft_vocab: np.ndarray | None, *, online: bool):
        self.drafter = drafter
        self.target = target if online else None
        self.embedding = Frozen(target.embedding[...])
        head, index = target.head, np.arange(target.config.vocab_size)
        if draft_vocab is not None:
            head = head[draft_vocab]
            index = np.full(target.config.vocab_size, -1)
            index[draft_vocab] = np.arange(len(draft_vocab))
        self.head = Frozen(head.astype(drafter.dtype))
        self.draft_index = Frozen(jnp.asarray(index, jnp.int32))  # token id -> row of head, -1 where it has none


def block_loss(
    trainee: Trainee, batch: dict[str, Array], settings: LossSettings
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss (mean over all blocks asked for, empty ones included, so that microbatches add up) and its scalars."""
    context = draft_context(trainee, batch)
    total, blocks, scalars = jnp.float32(0), 0, {}
    for width, anchors in sorted(anchor_groups(batch).items()):
        hidden = block_hidden(trainee, batch, anchors, width, context=context, remat=settings.remat)
        labels = slot_labels(batch, anchors, width)
        rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
        loss, hit = head_cross_entropy(hidden[:, :, 1:], trainee.head[...], rows, settings.head_chunk)
        weights = slot_weights(loss, labels >= 0, rows >= 0, settings)
        total = total + jnp.sum(weights * loss)
        blocks += anchors.size
        scalars |= _scalars(width, loss, hit, labels >= 0)
    return total / blocks, scalars | {"loss": total / blocks}


def anchor_groups(batch: dict[str, Array]) -> dict[int, Int[Array, "B A"]]:
    """Block width -> anchors, from the batch's `anchors_w<W>` entries."""
    prefix = "anchors_w"
    return {int(name.removeprefix(prefix)): value for name, value in batch.items() if name.startswith(prefix)}


def draft_context(trainee: Trainee, batch: dict[str, Array]) -> KVCache:
    """The drafter's keys and values of a batch's rows, from cached features or the target's own forward."""
    if trainee.target is not None:
        taps = trainee.drafter.config.target_layer_ids
        features = packed_features(trainee.target, batch["tokens"], batch["positions"], batch["segments"], taps=taps)
    else:
        features = batch["features"]
    return trainee.drafter.context(features, batch["positions"])


def block_hidden(
    trainee: Trainee,
    batch: dict[str, Array],
    anchors: Int[Array, "B A"],
    width: int,
    *,
    context: KVCache,
    remat: bool = False,
) -> Float[Array, "B A W D"]:
    """Final hidden states of the blocks at `anchors` (row indices; -1 gives a block nobody scores)."""
    drafter = trainee.drafter
    at = jnp.maximum(anchors, 0)
    tokens, positions, segments = (
        jnp.take_along_axis(batch[name], at, axis=1) for name in ("tokens", "positions", "segments")
    )
    window = drafter.config.sliding_window
    mask = context_mask(positions, segments, batch["positions"], batch["segments"], sliding_window=window)
    block = trainee.embedding[...][block_tokens(tokens, width, drafter.config.mask_token_id)]
    return drafter(block, positions, context, mask, remat=remat)


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
    hidden: Float[Array, "B A W1 D"], head: Float[Array, "V D"], rows: Int[Array, "B A W1"], chunk: int
) -> tuple[Float[Array, "B A W1"], Bool[Array, "B A W1"]]:
    """Cross-entropy of each slot against its head row, and whether that row has the highest logit.

    At most `chunk` slots' logits exist at a time. Slots with row -1 get 0 and False.
    """
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), rows.reshape(-1)
    padding = -len(flat) % chunk
    flat = jnp.pad(flat, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    labels = jnp.pad(labels, (0, padding), constant_values=-1).reshape(-1, chunk)
    loss, hit = jax.lax.map(lambda part: _chunk_cross_entropy(part[0], head, part[1]), (flat, labels))
    size = rows.size
    return loss.reshape(-1)[:size].reshape(rows.shape), hit.reshape(-1)[:size].reshape(rows.shape)


@jax.custom_vjp
def _chunk_cross_entropy(hidden: Array, head: Array, labels: Array) -> tuple[Array, Array]:
    return _chunk_forward(hidden, head, labels)[0]


def _chunk_forward(hidden: Array, head: Array, labels: Array) -> tuple[tuple[Array, Array], Array]:
    """Loss and hit, and the loss's gradient by the hidden state, taken while the logits are here.

    The head is frozen and the loss is linear in its weight, so this is all the backward pass needs: two head matmuls
    in place of the four that recomputing would take.
    """
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    valid, label = labels >= 0, jnp.maximum(labels, 0)
    top = logits.max(axis=-1)
    exponent = jnp.exp(logits - top[:, None])
    total = exponent.sum(axis=-1)
    chosen = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
    loss = jnp.where(valid, jnp.log(total) + top - chosen, 0.0)
    expected = (exponent.astype(head.dtype) @ head).astype(jnp.float32) / total[:, None]
    gradient = jnp.where(valid[:, None], expected - head[label].astype(jnp.float32), 0.0)
    return (loss, valid & (chosen >= top)), gradient.astype(hidden.dtype)


def _chunk_backward(gradient: Array, cotangents: tuple[Array, Any]) -> tuple[Array, None, None]:
    return (cotangents[0][:, None] * gradient).astype(gradient.dtype), None, None


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
