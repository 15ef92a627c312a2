"""EAGLE-3's loss and its gradient, LM head included, are those of the formula written out over all steps at once."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Packed
from models.target import packed_features
from tests.test_train_serve_parity import packed_row
from tests.tiny import make_eagle3, make_target
from train.objectives.eagle3 import chain_hidden, chain_loss, read
from train.objectives.slots import LossSettings
from train.objectives.trainee import Trainee

SOFT, WIDTH = 0.7, 4


def test_formula():
    target, artifact = make_target(), make_eagle3(draft_vocab_size=40, width=WIDTH)
    rng = np.random.default_rng(3)
    texts = [rng.integers(3, 60, size).tolist() for size in (9, 14)]
    batch, _ = packed_row(texts)
    where = Packed(batch["positions"], batch["segments"])
    batch["features"] = packed_features(
        target, batch["tokens"], where, taps=artifact.config.target_layer_ids, final=True
    )
    places = [4, 7, 8, 12, 20, -1]  # 8 ends its text: nothing to draft
    anchors = jnp.array([places])
    batch[f"anchors_w{WIDTH}"] = anchors
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    settings = LossSettings("decay", 1 / np.log(1.25), ce=1 - SOFT, kl=SOFT, tv=0.0, head_chunk=7, remat=True)

    def formula(trainee: Trainee) -> jax.Array:
        """Sum over steps of 0.8^(i-1) (KL and cross-entropy, shared), by loops over what each chain is to draft."""
        row = np.asarray(batch["tokens"])[0]
        labels = np.full((1, anchors.shape[1], WIDTH - 1), -1)
        for chain, anchor in enumerate(places):
            end = len(texts[0]) if anchor < len(texts[0]) else len(row) - 5
            steps = range(anchor + 1, min(anchor + WIDTH, end)) if anchor >= 0 else ()
            labels[0, chain, : len(steps)] = row[list(steps)]
        context = read(trainee, batch, batch["features"])
        hidden = chain_hidden(trainee, batch, anchors, jnp.asarray(labels), context=context)[0]
        drafter, vocab, total = trainee.drafter, artifact.draft_vocab.tolist(), 0.0
        for chain, anchor in enumerate(places):
            for step, label in enumerate(labels[0, chain].tolist()):
                if label not in vocab:
                    continue
                x = hidden[chain, step]
                x = x / jnp.sqrt(jnp.mean(x**2) + drafter.config.rms_eps) * drafter.norm[...]
                beliefs = jax.nn.log_softmax(drafter.lm_head[...] @ x)
                final = batch["features"][0, anchor + step, -target.config.hidden_size :]
                wanted = jax.nn.log_softmax(target.head[artifact.draft_vocab] @ final)
                apart = jnp.sum(jnp.exp(wanted) * (wanted - beliefs))
                total = total + 0.8**step * (SOFT * apart - (1 - SOFT) * beliefs[vocab.index(label)])
        return total / anchors.size

    ours, theirs = (
        nnx.jit(nnx.value_and_grad(function))(trainee)
        for function in (lambda trainee: chain_loss(trainee, batch, settings)[0], formula)
    )
    (value, gradient), (expected, wanted) = ours, theirs
    assert abs(value - expected) <= 1e-5 * expected
    for name, one in nnx.to_pure_dict(wanted)["drafter"].items():
        other = nnx.to_pure_dict(gradient)["drafter"][name]
        assert np.abs(one).max() > 0, name
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max(), name
