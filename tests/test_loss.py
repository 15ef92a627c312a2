"""The loss is what its formula says: labels, weights and cross-entropy against loops written by hand, gradients
against automatic differentiation of the plain formula, and no logits larger than a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core

from models.attention import Packed
from models.target import packed_features
from tests.tiny import make_artifact, make_target
from train.objectives.dflash import (
    LossSettings,
    Trainee,
    block_hidden,
    block_loss,
    draft_context,
    head_cross_entropy,
    slot_labels,
    slot_weights,
)

CHUNK = 16


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
    """Sum of weight * cross-entropy over all slots, over the number of blocks; plain loops over plain softmaxes."""
    vocab = np.asarray(trainee.draft_index[...])
    head = np.asarray(trainee.head[...], np.float64)
    context = draft_context(trainee, batch, batch["features"])
    final = np.asarray(batch["features"], np.float64)[..., 64:]
    total, blocks = 0.0, 0
    for width in (3, 6):
        anchors = batch[f"anchors_w{width}"]
        hidden = np.asarray(block_hidden(trainee, batch, anchors, width, context=context), np.float64)
        labels = labels_by_hand(batch, anchors, width)
        blocks += anchors.size
        for row, index in np.ndindex(anchors.shape):
            hard, mixed, usable = [], [], []
            for slot in range(1, width):
                label = labels[row, index, slot - 1]
                use = label >= 0 and vocab[label] >= 0
                logits = head @ hidden[row, index, slot]
                logp = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
                usable.append(use)
                hard.append(-logp[vocab[label]] if use else 0.0)
                place = int(anchors[row, index]) + slot - 1
                said = head @ final[row, min(max(place, 0), final.shape[1] - 1)] if settings.soft else logits
                belief = np.exp(said - said.max()) / np.exp(said - said.max()).sum()
                mixed.append(-(settings.soft * belief @ logp) + (1 - settings.soft) * hard[-1] if use else 0.0)
            if settings.weighting == "decay":
                weights = [use * np.exp(-i / settings.gamma) for i, use in enumerate(usable)]
            else:
                p = [use * (0.25 + 0.75 * np.exp(-h)) for use, h in zip(usable, hard, strict=True)]
                survive = np.cumprod(p)
                worth = np.array([survive[i:].sum() for i in range(width - 1)])
                weights = usable * worth / max(worth[0], 1e-6)
            total += float(np.dot(weights, mixed))
    return total / blocks


@pytest.mark.parametrize("soft", [0.0, 0.7])
@pytest.mark.parametrize("weighting", ["dpace", "decay"])
@pytest.mark.parametrize("vocab", [None, 40])
def test_block_loss_equals_loops(weighting: str, vocab: int | None, soft: float):
    target, artifact = make_target(), make_artifact(draft_vocab_size=vocab)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    settings = LossSettings(weighting, gamma=2.0, soft=soft, head_chunk=CHUNK, remat=False)
    batch = make_batch(target, final=soft > 0)
    loss, scalars = block_loss(trainee, batch, settings)
    assert float(loss) == pytest.approx(loss_by_hand(trainee, batch, settings), rel=1e-5)
    assert scalars["loss"] == loss


def test_online_features_give_the_same_loss():
    target, artifact = make_target(), make_artifact()
    settings = LossSettings("dpace", gamma=2.0, soft=0.5, head_chunk=CHUNK, remat=True)
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
    settings = LossSettings("dpace", gamma=1.0, soft=0.0, head_chunk=1, remat=False)
    loss, usable = -jnp.log(jnp.array([[[1.0, 0.5]]])), jnp.ones((1, 1, 2), bool)
    weights = slot_weights(loss, usable, usable, settings)
    assert weights.ravel().tolist() == pytest.approx([1.0, 0.625 / 1.625])


@pytest.mark.parametrize("soft", [0.0, 0.6])
def test_gradient_equals_automatic_differentiation(soft: float):
    rng = np.random.default_rng(0)
    hidden, teacher = (jnp.asarray(rng.standard_normal((2, 3, 5, 8)), jnp.float32) for _ in range(2))
    head = jnp.asarray(rng.standard_normal((20, 8)), jnp.float32)
    rows = jnp.asarray(rng.integers(-1, 20, (2, 3, 5)))
    weights = jnp.asarray(rng.random((2, 3, 5)), jnp.float32)

    def ours(hidden):
        return jnp.sum(weights * head_cross_entropy(hidden, head, rows, 7, teacher=teacher, soft=soft, mesh=None)[0])

    def plain(hidden):
        logp = jax.nn.log_softmax(hidden @ head.T)
        label = jax.nn.one_hot(rows, 20) * (1 - soft) + soft * jax.nn.softmax(teacher @ head.T)
        return jnp.sum(jnp.where(rows >= 0, weights * -jnp.sum(label * logp, axis=-1), 0))

    assert ours(hidden) == pytest.approx(float(plain(hidden)), rel=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(hidden), jax.grad(plain)(hidden), atol=1e-5)


@pytest.mark.parametrize("soft", [0.0, 0.5])
def test_no_logits_larger_than_a_chunk(soft: float):
    """Nothing in loss and gradient has a vocabulary dimension and more than CHUNK rows, soft labels or not."""
    target, artifact = make_target(), make_artifact(draft_vocab_size=53)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    hidden = jnp.ones((2, 20, 5, 32))
    teaching = {"teacher": hidden, "soft": soft} if soft else {}
    graph = jax.make_jaxpr(lambda hidden: _head_gradient(trainee, hidden, teaching))(hidden)
    shapes = {variable.aval.shape for variable in _variables(graph.jaxpr) if 53 in variable.aval.shape}
    assert (CHUNK, 53) in shapes
    assert all(np.prod(shape) <= max(CHUNK, 32) * 53 for shape in shapes), shapes


def _head_gradient(trainee, hidden, teaching):
    rows = jnp.zeros(hidden.shape[:3], jnp.int32)

    def loss(hidden):
        return head_cross_entropy(hidden, trainee.head[...], rows, CHUNK, mesh=None, **teaching)[0].sum()

    return jax.grad(loss)(hidden)


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = inner.jaxpr if isinstance(inner, jax_core.ClosedJaxpr) else inner
                if isinstance(inner, jax_core.Jaxpr):
                    yield from _variables(inner)
