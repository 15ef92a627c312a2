"""The loss is what its formula says: labels, weights and each slot's loss against loops written by hand, gradients
against automatic differentiation of the plain formula, and no logits larger than a chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core

from models.attention import Packed
from models.target import packed_features
from tests.tiny import make_artifact, make_target
from train.objectives.dflash import block_hidden, block_loss, draft_context
from train.objectives.slots import LossSettings, head_loss, slot_labels, slot_weights
from train.objectives.trainee import Trainee

CHUNK = 16
LOSSES = {"ce": (1.0, 0.0, 0.0), "kl": (0.3, 0.7, 0.0), "tv": (0.0, 0.0, 1.0), "all": (0.2, 0.3, 0.5)}


def make_batch(target, final: bool):
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 10 + [2] * 12 + [0] * 2, [1] * 20 + [0] * 4], np.int32)
    positions = np.array([[*range(10), *range(12), 0, 0], [*range(20), 0, 0, 0, 0]], np.int32)
    tokens = np.where(segments > 0, rng.integers(3, 60, segments.shape), 0).astype(np.int32)
    rows = {"tokens": jnp.asarray(tokens), "positions": jnp.asarray(positions), "segments": jnp.asarray(segments)}
    features = packed_features(
        target, rows["tokens"], Packed(rows["positions"], rows["segments"]), taps=(0, 2), final=final
    )
    anchors = {"anchors_w6": jnp.array([[3, 8], [5, -1]]), "anchors_w3": jnp.array([[4, 12, 20], [2, 9, 17]])}
    return {**rows, "features": features, **anchors}


def labels_by_hand(batch, anchors, width):
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segments"])
    out = np.full((*anchors.shape, width - 1), -1)
    for row, row_anchors in enumerate(np.asarray(anchors)):
        for index, anchor in enumerate(row_anchors):
            for slot in range(1, width):
                place = anchor + slot
                if anchor >= 0 and place < tokens.shape[1] and segments[row, place] == segments[row, anchor]:
                    out[row, index, slot - 1] = tokens[row, place]
    return out


def loss_by_hand(trainee, batch, settings):
    """Sum of weight * loss over all slots, over the number of blocks; plain loops over plain softmaxes."""
    vocab = np.asarray(trainee.draft_index[...])
    head = np.asarray(trainee.head[...], np.float64)
    markov = trainee.drafter.markov_w1 is not None
    w1, w2 = (
        np.asarray(w[...], np.float64) if markov else None
        for w in (trainee.drafter.markov_w1, trainee.drafter.markov_w2)
    )
    config, mixing = trainee.drafter.config, trainee.drafter.mixing
    proj, bias = (
        (None, None) if mixing is None else (np.asarray(p[...], np.float64) for p in (mixing.proj, mixing.bias))
    )

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def transition(before, state, memory):
        e = w1[before]
        if config.markov_head_type == "vanilla":
            return e, memory
        if config.markov_head_type == "gated":
            return sigmoid(np.concatenate([state, e]) @ proj + bias) * e, memory
        gate, candidate, out = np.split(np.concatenate([memory, e, state]) @ proj + bias, 3)
        return np.tanh(out), sigmoid(gate) * memory + (1 - sigmoid(gate)) * np.tanh(candidate)

    context = draft_context(trainee, batch, batch["features"])
    final = np.asarray(batch["features"], np.float64)[..., 64:]
    total, blocks = 0.0, 0
    for width in (3, 6):
        anchors = batch[f"anchors_w{width}"]
        early = config.sample_from_anchor
        hidden = np.asarray(block_hidden(trainee, batch, anchors, width - early, context=context), np.float64)
        labels = labels_by_hand(batch, anchors, width)
        blocks += anchors.size
        for row, index in np.ndindex(anchors.shape):
            hard, mixed, usable, memory = [], [], [], np.zeros(config.markov_rank or 0)
            anchor = int(batch["tokens"][row, max(int(anchors[row, index]), 0)])
            if markov and not early:  # the anchor's own slot is read, though it drafts nothing
                _, memory = transition(anchor, hidden[row, index, 0], memory)
            for slot in range(1, width):
                label = labels[row, index, slot - 1]
                use = label >= 0 and vocab[label] >= 0
                place = int(anchors[row, index]) + slot - 1
                logits = head @ hidden[row, index, slot - early]
                if markov:
                    before = anchor if slot == 1 else max(labels[row, index, slot - 2], 0)
                    x, memory = transition(before, hidden[row, index, slot - early], memory)
                    logits = logits + w2 @ x
                logp = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
                usable.append(use)
                hard.append(-logp[vocab[label]] if use else 0.0)
                said = head @ final[row, min(max(place, 0), final.shape[1] - 1)] if settings.taught else logits
                belief = np.exp(said - said.max()) / np.exp(said - said.max()).sum()
                kl, tv = belief @ (np.log(belief) - logp), 1 - np.minimum(belief, np.exp(logp)).sum()
                mixed.append(settings.ce * hard[-1] + settings.kl * kl + settings.tv * tv if use else 0.0)
            if settings.weighting == "decay":
                weights = [use * np.exp(-i / settings.gamma) for i, use in enumerate(usable)]
            else:
                p = [use * (0.25 + 0.75 * np.exp(-h)) for use, h in zip(usable, hard, strict=True)]
                survive = np.cumprod(p)
                worth = np.array([survive[i:].sum() for i in range(width - 1)])
                weights = usable * worth / max(worth[0], 1e-6)
            total += float(np.dot(weights, mixed))
    return total / blocks


def settings_of(loss: str, weighting: str = "dpace", gamma: float = 2.0, head_chunk: int = CHUNK) -> LossSettings:
    ce, kl, tv = LOSSES[loss]
    return LossSettings(weighting, gamma, ce=ce, kl=kl, tv=tv, head_chunk=head_chunk, remat=False)


@pytest.mark.parametrize(
    ("loss", "weighting", "changes"),
    [
        ("ce", "dpace", {}),
        ("ce", "decay", {"draft_vocab_size": 40}),
        ("kl", "decay", {"markov_rank": 3}),
        ("kl", "dpace", {"draft_vocab_size": 40, "markov_rank": 3}),
        ("tv", "dpace", {}),
        ("all", "decay", {"draft_vocab_size": 40}),
        ("all", "dpace", {"draft_vocab_size": 40, "markov_rank": 3}),
        ("ce", "dpace", {"sample_from_anchor": True, "markov_rank": 3}),
        ("kl", "dpace", {"draft_vocab_size": 40, "markov_rank": 3, "markov_head_type": "gated"}),
        ("ce", "decay", {"markov_rank": 3, "markov_head_type": "rnn"}),
        ("ce", "dpace", {"markov_rank": 3, "markov_head_type": "rnn", "sample_from_anchor": True}),
    ],
)
def test_block_loss_equals_loops(loss: str, weighting: str, changes: dict):
    target, artifact = make_target(), make_artifact(**changes)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    settings = settings_of(loss, weighting)
    batch = make_batch(target, final=settings.taught)
    total, scalars = block_loss(trainee, batch, settings)
    assert float(total) == pytest.approx(loss_by_hand(trainee, batch, settings), rel=1e-5)
    assert scalars["loss"] == total


def test_online_features_give_the_same_loss():
    target, artifact = make_target(), make_artifact()
    settings = dataclasses.replace(settings_of("all"), remat=True)
    batch = make_batch(target, final=True)
    cached = Trainee(artifact.drafter("float32"), target, None, online=False)
    online = Trainee(artifact.drafter("float32"), target, None, online=True)
    without = {name: value for name, value in batch.items() if name != "features"}
    expected = block_loss(cached, batch, settings)[0]
    assert float(block_loss(online, without, settings)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_labels():
    batch = {"tokens": jnp.array([[5, 6, 7, 8, 9]]), "segments": jnp.array([[1, 1, 1, 1, 2]])}
    labels = slot_labels(batch, jnp.array([[1, 3, -1, 4]]), 4)
    assert labels.tolist() == [[[7, 8, -1], [-1, -1, -1], [-1, -1, -1], [-1, -1, -1]]]


def test_dpace_weights_by_hand():
    """Probabilities 1 and 0.5 (mixed with 1/4: 1, 0.625): worth 1 + 0.625 and 0.625, over the first."""
    hard, usable = -jnp.log(jnp.array([[[1.0, 0.5]]])), jnp.ones((1, 1, 2), bool)
    weights = slot_weights(hard, usable, settings_of("ce"))
    assert weights.ravel().tolist() == pytest.approx([1.0, 0.625 / 1.625])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rank", [0, 3])
def test_gradient_equals_automatic_differentiation(loss: str, rank: int):
    """By the states and by W2, in chunks of one block of each row, at a cotangent that is not 1."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    states, teacher, head, w2 = normal(2, 3, 5, 8 + rank), normal(2, 3, 5, 8), normal(20, 8), normal(20, rank)
    rows = jnp.asarray(rng.integers(-1, 20, (2, 3, 5)))
    settings = settings_of(loss, head_chunk=7)

    def ours(states, w2):
        second = w2 if rank else None
        return 3 * head_loss(states, second, head, rows, teacher if settings.taught else None, settings, None)[0]

    def plain(states, w2):
        logq, logp = (jax.nn.log_softmax(x) for x in (states @ jnp.concatenate([head, w2], 1).T, teacher @ head.T))
        hard = jnp.where(rows >= 0, -jnp.take_along_axis(logq, jnp.maximum(rows, 0)[..., None], -1)[..., 0], 0)
        kl, tv = jnp.exp(logp) * (logp - logq), jnp.abs(jnp.exp(logp) - jnp.exp(logq)) / 2
        mixed = settings.ce * hard + settings.kl * kl.sum(-1) + settings.tv * tv.sum(-1)
        weights = jax.lax.stop_gradient(slot_weights(hard, rows >= 0, settings))
        return 3 * jnp.sum(jnp.where(rows >= 0, weights * mixed, 0))

    assert ours(states, w2) == pytest.approx(float(plain(states, w2)), rel=1e-5)
    found, expected = (jax.grad(f, argnums=(0, 1))(states, w2) for f in (ours, plain))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


@pytest.mark.parametrize("loss", ["ce", "all"])
def test_no_logits_larger_than_a_chunk(loss: str):
    """Nothing in loss and gradient has a vocabulary dimension and more than CHUNK rows, taught or not."""
    states, w2, head = jnp.ones((2, 20, 5, 35)), jnp.ones((53, 3)), jnp.ones((53, 32))
    rows, settings = jnp.zeros(states.shape[:3], jnp.int32), settings_of(loss)
    teacher = states[..., :32] if settings.taught else None

    def total(states, w2):
        return head_loss(states, w2, head, rows, teacher, settings, None)[0]

    graph = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(states, w2)
    shapes = {variable.aval.shape for variable in _variables(graph.jaxpr) if 53 in variable.aval.shape}
    assert (10, 53) in shapes, "a block of each of two rows"
    assert all(np.prod(shape) <= max(CHUNK, 35) * 53 for shape in shapes), shapes


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = inner.jaxpr if isinstance(inner, jax_core.ClosedJaxpr) else inner
                if isinstance(inner, jax_core.Jaxpr):
                    yield from _variables(inner)
