"""EAGLE-3's training and decoding are one rule: the logits of a chain unrolled in training from anchor p equal those
the decoder drafts with at p, from its state built as the row grew, to 1e-4 in float32; and both equal the rule written
out for one chain."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Packed
from models.decode import make_engine
from models.sampling import keys
from models.target import packed_features
from models.verify import GREEDILY
from tests.test_train_serve_parity import decode, packed_row
from tests.tiny import make_eagle3, make_target
from train.objectives.eagle3 import chain_hidden, read
from train.objectives.trainee import Trainee

CASES = {
    "published": {},
    "vocabulary": {"draft_vocab_size": 30},
    "normed": {"norm_before_fc": True, "norm_before_residual": True},
}


@pytest.mark.parametrize("case", CASES)
def test_chain_logits_agree(case: str):
    target, artifact = make_target(), make_eagle3(**CASES[case])
    rng = np.random.default_rng(1)
    engine, width = make_engine(target, artifact), 5
    prompts = [rng.integers(3, 60, size).tolist() for size in (11, 17)]
    finished = [decode(engine, prompt, num_steps=4, width=width) for prompt in prompts]
    written = [np.asarray(state.rows.tokens)[0, : int(state.rows.length[0])].tolist() for state in finished]
    options = {"width": width, "speculation": GREEDILY}
    drafts = [
        engine.drafter.propose(
            target, state.drafter, state.rows, key=keys(state.rows.seed, state.rows.length), **options
        ).tokens
        for state in finished
    ]
    batch, places = packed_row(written)
    anchors = jnp.array([[place + len(text) - 1 for place, text in zip(places, written, strict=True)]])
    where = Packed(batch["positions"], batch["segments"])
    features = packed_features(target, batch["tokens"], where, taps=artifact.config.target_layer_ids)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    context = read(trainee, batch, features)
    hidden = chain_hidden(trainee, batch, anchors, jnp.stack(drafts, axis=1), context=context)
    trained = np.asarray(trainee.drafter.scored(hidden))[0]
    vocab = np.arange(61) if artifact.draft_vocab is None else artifact.draft_vocab
    assert vocab[trained.argmax(axis=-1)].tolist() == [draft[0].tolist() for draft in drafts]
    for text, draft, place, logits in zip(written, drafts, places, trained, strict=True):
        own = np.asarray(features)[0, place : place + len(text) - 1]
        expected = by_hand(artifact, np.asarray(target.embedding[...]), own, [*text, *draft[0].tolist()])
        assert np.abs(logits - expected).max() <= 1e-4


def by_hand(artifact, embedding, features, tokens):
    """Logits of the steps that draft tokens[len(features) + 1:], one token and one head at a time, in float64."""
    config, weights = artifact.config, {name: np.asarray(value, np.float64) for name, value in artifact.weights.items()}
    num_heads, groups, h = config.num_heads, config.num_heads // config.num_kv_heads, config.head_dim
    queries, pairs = weights["q"].reshape(-1, num_heads, h), weights["kv"].reshape(-1, config.num_kv_heads, 2, h)

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2) + config.rms_eps) * weights[name]

    def rotated(x, position):
        angle = position / config.rope_theta ** (np.arange(0, h, 2) / h)
        first, second = np.split(x, 2)
        return np.concatenate(
            [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
        )

    seen, out, hidden = [], [], None
    for position, token in enumerate(tokens[1:-1]):
        if position < len(features):
            feature = features[position].astype(np.float64)
            feature = norm(feature, "input_norm") if config.norm_before_fc else feature
            hidden = feature @ weights["fc"]
        normed = norm(hidden, "hidden_norm")
        both = np.concatenate([norm(embedding[token].astype(np.float64), "embedding_norm"), normed])
        kv = np.einsum("d,dkph->kph", both, pairs)
        seen.append([(rotated(key, position), value) for key, value in kv])
        if position < len(features) - 1:
            continue
        heads = []
        for head in range(num_heads):
            query = rotated(both @ queries[:, head], position)
            scores = np.array([query @ kv[head // groups][0] for kv in seen]) / np.sqrt(h)
            shares = np.exp(scores - scores.max())
            heads.append(shares / shares.sum() @ np.array([kv[head // groups][1] for kv in seen]))
        hidden = (normed if config.norm_before_residual else hidden) + np.concatenate(heads) @ weights["out"]
        inner = norm(hidden, "mlp_norm")
        gate = inner @ weights["gate"]
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (inner @ weights["up"])) @ weights["down"]
        out.append(norm(hidden, "norm") @ weights["lm_head"].T)
    return np.array(out)
