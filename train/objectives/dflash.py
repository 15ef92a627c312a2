"""The training loss: how far every drafted slot is from the target's next token, weighted by what the slot is worth.

In: a `Trainee` and a batch of `pipelines.batches`. Out: the loss and its scalars. Slot i of a block at anchor p is
scored against the token at p + i of the same response; slot 0 is the anchor and is not scored; slots past the end of
the response, or whose token the draft vocabulary lacks, weigh nothing. A drafter that is to `sample_from_anchor` has
the same slots 1 to W-1, each of them lying one place earlier in its block, the first at the anchor.
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

from configs.schema import DFlash, Recipe
from models import layers
from models.attention import BlockKernel, Blocks, Kernel, Packed
from models.cache import Slots
from models.drafters.dflash import DrafterConfig, block_tokens
from models.drafters.mixing import PASSES
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
ROUNDS, GIVEN_GUESSES, WITHOUT_BIAS = 3, 0.3, 0.6  # of a refiner's own guesses; shares of its further losses


class Trainee(nnx.Module):
    """The drafter with what it borrows from the target, frozen: embedding, LM head, the target itself when online."""

    def __init__(
        self,
        drafter: Any,  # a network, whatever its kind
        target: Target,
        draft_vocab: np.ndarray | None,
        *,
        online: bool,
        attention: Kernel = "dense",  # of the target
        blocks: BlockKernel = "dense",  # attention of the drafter's
    ):
        self.drafter = drafter
        self.attention: Kernel = attention
        self.blocks: BlockKernel = blocks
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
