"""Slots and their loss: how far every drafted slot is from the target's next token, weighted by what the slot is worth.

In: a batch's tokens and anchors, and what a drafter's slots see of the head. Out: labels, weights, losses with their
gradients, scalars. Slot i of a block at anchor p is scored against the token at p + i of the same response; slot 0 is
the anchor and is not scored; slots past the end of the response, or whose token the draft vocabulary lacks, weigh
nothing. Whatever the kind of drafter.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from configs.schema import Recipe
from models import layers
from models.sharding import constrain
from models.target import AXES


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How slots are weighted and how much of the LM head exists at once."""

    weighting: Literal["dpace", "decay"]
    gamma: float
    ce: float  # the shares of the three losses, see `head_loss`
    kl: float
    tv: float
    head_chunk: int
    remat: bool
    guesses: bool = False  # whether the likeliest head row of each slot is asked for

    @property
    def taught(self) -> bool:
        return self.kl + self.tv > 0

    @staticmethod
    def of_hits(head_chunk: int) -> "LossSettings":
        """Where only the hits are looked at."""
        return LossSettings("decay", gamma=1.0, ce=1.0, kl=0.0, tv=0.0, head_chunk=head_chunk, remat=False)


SlotLoss = tuple[  # what `head_loss` says
    Float[Array, ""],
    Float[Array, "B A W1"],
    Bool[Array, "B A W1"],
    Float[Array, "B A W1"],
    Float[Array, "B A W1"],
    Int[Array, "B A W1"],
]


def loss_settings(recipe: Recipe) -> LossSettings:
    section = recipe.loss
    return LossSettings(
        section.weighting,
        section.gamma,
        ce=section.ce,
        kl=section.kl,
        tv=section.tv,
        head_chunk=section.head_chunk,
        remat=recipe.train.remat,
    )


def anchor_groups(batch: dict[str, Array]) -> dict[int, Int[Array, "B A"]]:
    """Block width -> anchors, from the batch's `anchors_w<W>` entries."""
    prefix = "anchors_w"
    return {int(name.removeprefix(prefix)): value for name, value in batch.items() if name.startswith(prefix)}


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
    hard: Float[Array, "*b W1"], usable: Bool[Array, "*b W1"], settings: LossSettings
) -> Float[Array, "*b W1"]:
    """The weight of every slot, no gradient; `hard`: the cross-entropy of its token, `usable`: whether it has one.

    decay: exp(-(i - 1) / gamma) at slot i (DFlash, arXiv 2602.06036).
    dpace: sum_{k >= i} prod_{j <= k} p_j, with p_j the probability the drafter gives slot j's token now. That is the
    derivative of the expected number of accepted tokens by log p_i, the idea of D-PACE (arXiv 2605.18810): a slot
    counts as much as a prefix surviving up to it and beyond is likely. Probabilities are mixed with a floor of 1/4 so
    that an untrained drafter learns past its first slot; weights are scaled to a first slot of 1.
    """
    if settings.weighting == "decay":
        return usable * jnp.exp(-jnp.arange(hard.shape[-1]) / settings.gamma)
    probability = usable * (0.25 + 0.75 * jnp.exp(-jax.lax.stop_gradient(hard)))
    survival = jnp.cumprod(probability, axis=-1)
    worth = jnp.cumsum(survival[..., ::-1], axis=-1)[..., ::-1]
    return usable * worth / jnp.maximum(worth[..., :1], 1e-6)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def head_loss(
    states: Float[Array, "B A W1 DR"],
    w2: Float[Array, "Vd R"] | None,
    head: Float[Array, "Vd D"],
    rows: Int[Array, "B A W1"],
    teacher: Float[Array, "B A W1 D"] | None,
    settings: LossSettings,
    mesh: jax.sharding.Mesh | None,
) -> SlotLoss:
    """The weighted loss of all slots, summed; the cross-entropy of each slot's head row; whether its logit is highest;
    the probability of the row whose logit is; how likely the slot's draft is to be accepted; the row whose logit is
    highest, where `settings.guesses`, else 0.

    A slot's logits are `states @ [head | w2]^T`: with a Markov head its state ends in x. `rows` holds
    the head row of each slot's token, -1 where it has none: such slots count for nothing and get 0 and False. With q
    the drafter's distribution over the head's rows and p the target's, of its final hidden states `teacher`, the loss

        ce * -log q(token) + kl * sum p log(p / q) + tv * sum |p - q| / 2

    has at logit k the gradient ce * (q_k - [k is the token]) + kl * (q_k - p_k) + tv * q_k (g_k - sum_j q_j g_j), with
    g = sign(q - p) / 2. 1 - TV is the chance that a draft drawn from q is accepted; DSpark (arXiv 2607.05147) takes
    ce 0.1 and tv 0.9.

    At most `head_chunk` slots' logits exist at a time (or one block's of each row, where that is more), as many of
    every row, so that a mesh has work for all its devices. The head is frozen and a slot's weight is known with its
    block, so the gradients by `states` and `w2` are taken while the logits are here: two head matmuls in place of the
    four that recomputing would take.
    """
    return _head_forward(states, w2, head, rows, teacher, settings, mesh)[0]


def _head_forward(
    states: Array,
    w2: Array | None,
    head: Array,
    rows: Array,
    teacher: Array | None,
    settings: LossSettings,
    mesh: jax.sharding.Mesh | None,
) -> tuple[SlotLoss, tuple[Array, Array | None]]:
    batch, num_blocks, slots = rows.shape
    num_chunks = -(-num_blocks // max(1, settings.head_chunk // (batch * slots)))
    each = -(-num_blocks // num_chunks)  # of a row, as many in every chunk: the last one would be mostly padding

    def chunked(values: Array, fill: int = 0) -> Array:
        padding = [(0, 0), (0, num_chunks * each - num_blocks), *[(0, 0)] * (values.ndim - 2)]
        parts = jnp.pad(values, padding, constant_values=fill).reshape(batch, num_chunks, each, *values.shape[2:])
        return constrain(parts.swapaxes(0, 1).reshape(num_chunks, -1, *values.shape[2:]), mesh, None, "batch")

    def whole(parts: Array) -> Array:
        parts = parts.reshape(num_chunks, batch, each, *parts.shape[2:]).swapaxes(0, 1)
        return parts.reshape(batch, -1, *parts.shape[3:])[:, :num_blocks]

    rank = 0 if w2 is None else w2.shape[1]
    matrix = head if w2 is None else jnp.concatenate([head, w2.astype(head.dtype)], axis=1)

    def step(carry: tuple, chunk: tuple) -> tuple[tuple, tuple]:
        total, by_w2 = carry
        states, rows, *teacher = chunk
        flat = constrain(states.reshape(-1, states.shape[-1]), mesh, "replica")
        scores = constrain(layers.logits(flat, matrix), mesh, "replica", "head_rows")
        said = None
        if teacher:
            final = constrain(teacher[0].reshape(flat.shape[0], -1), mesh, "replica")
            said = constrain(layers.logits(final, head), mesh, "replica", "head_rows")
        labels = constrain(rows.reshape(-1), mesh, "replica")
        loss, hard, hit, sure, overlap, error = slot_losses(scores, said, labels, settings)
        best = jnp.argmax(scores, axis=-1) if settings.guesses else jnp.zeros_like(labels)
        overlap = jnp.where(rows >= 0, overlap.reshape(rows.shape), 0)
        hard, hit = jnp.where(rows >= 0, hard.reshape(rows.shape), 0), (rows >= 0) & hit.reshape(rows.shape)
        weights = slot_weights(hard, rows >= 0, settings).reshape(-1)
        # Slots without a token may hold anything; what they do not count for must not be infinite times 0.
        total += jnp.sum(jnp.where(labels >= 0, weights * loss, 0))
        error = jnp.where(labels[:, None] >= 0, weights[:, None] * error, 0).astype(head.dtype)
        with layers.matmul_precision(head.dtype):
            gradient = jnp.einsum("tv,vd->td", error, matrix, preferred_element_type=jnp.float32)
            if rank:
                by_w2 += jnp.einsum("tv,tr->vr", error, flat[:, -rank:], preferred_element_type=jnp.float32)
        gradient = constrain(gradient.astype(states.dtype).reshape(states.shape), mesh, "batch")
        of_slots = hard, hit, sure.reshape(rows.shape), overlap, best.reshape(rows.shape)
        return (total, constrain(by_w2, mesh, *AXES["head"])), (gradient, *of_slots)

    parts = (chunked(states), chunked(rows, -1), *([] if teacher is None else [chunked(teacher.astype(states.dtype))]))
    begun = (jnp.float32(0), None if w2 is None else jnp.zeros(w2.shape, jnp.float32))
    (total, by_w2), (by_states, *of_slots) = jax.lax.scan(step, begun, parts)
    hard, hit, sure, overlap, best = map(whole, of_slots)
    return (total, hard, hit, sure, overlap, best), (whole(by_states), by_w2)


def slot_losses(
    scores: Float[Array, "T Vd"], said: Float[Array, "T Vd"] | None, labels: Int[Array, " T"], settings: LossSettings
) -> tuple[
    Float[Array, " T"],
    Float[Array, " T"],
    Bool[Array, " T"],
    Float[Array, " T"],
    Float[Array, " T"],
    Float[Array, "T Vd"],
]:
    """Loss, cross-entropy of the label, whether the label is on top, the probability of what is on top, how likely a
    draft is to be accepted, and the loss's gradient by the logits `scores`.

    A draft drawn from q is accepted with sum min(p, q) = 1 - TV, DSpark's label of confidence; without a teacher it is
    taken to be accepted where it is the label.

    The label's share goes off here, not off the matmul's result: near the end of training both are almost its head
    row, and their difference would be rounding alone.
    """
    label = jnp.maximum(labels, 0)[:, None]
    top = scores.max(axis=-1)
    exponent = jnp.exp(scores - top[:, None])
    total = exponent.sum(axis=-1)
    chosen = jnp.take_along_axis(scores, label, axis=-1)[:, 0]
    normalizer = jnp.log(total) + top
    hard = normalizer - chosen
    q = exponent / total[:, None]
    hit = chosen >= top
    overlap = hit.astype(jnp.float32) if said is None else jnp.minimum(q, jax.nn.softmax(said, axis=-1)).sum(axis=-1)
    loss, error = settings.ce * hard, settings.ce * (q - (jnp.arange(scores.shape[1]) == label))
    if said is not None:
        p, their_normalizer = jax.nn.softmax(said, axis=-1), jax.nn.logsumexp(said, axis=-1)
        if settings.kl:
            loss += settings.kl * (jnp.sum(p * (said - scores), axis=-1) + normalizer - their_normalizer)
            error += settings.kl * (q - p)
        if settings.tv:
            side = jnp.sign(q - p) / 2
            loss += settings.tv * jnp.sum(side * (q - p), axis=-1)
            error += settings.tv * q * (side - jnp.sum(q * side, axis=-1, keepdims=True))
    return loss, hard, hit, 1 / total, overlap, error


def _head_backward(
    settings: LossSettings, mesh: jax.sharding.Mesh | None, gradients: tuple[Array, Array | None], cotangents: tuple
) -> tuple[Array, Array | None, None, None, None]:
    by_states, by_w2 = gradients
    scaled = (cotangents[0] * by_states).astype(by_states.dtype)
    return scaled, None if by_w2 is None else cotangents[0] * by_w2, None, None, None


head_loss.defvjp(_head_forward, _head_backward)


def slot_scalars(width: int, loss: Array, hit: Array, valid: Array) -> dict[str, Array]:
    """Accuracy at the first slot, and tau of teacher-forced blocks: 1 + the mean number of leading hits."""
    leading = jnp.cumprod(hit, axis=-1).sum(axis=-1)
    first = jnp.maximum(valid[..., 0].sum(), 1)
    return {
        f"w{width}/slot1_accuracy": hit[..., 0].sum() / first,
        f"w{width}/block_tau": 1 + (leading * valid[..., 0]).sum() / first,
        f"w{width}/slot1_loss": loss[..., 0].sum() / first,
    }
