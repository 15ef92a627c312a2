"""The training mask and the decode path are one rule: block logits at anchor a in training equal what the decoder
computes at a from its incrementally built cache, to 1e-4 in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Packed
from models.decode import make_engine, prefill, segment
from models.drafters import Draft
from models.layers import logits
from models.sampling import keys
from models.target import packed_features
from models.verify import GREEDILY
from tests.tiny import make_artifact, make_target
from train.objectives.dflash import block_hidden, draft_context, slot_states
from train.objectives.trainee import Trainee

CASES = {
    "bidirectional": {},
    "causal": {"causal": (True, True)},
    "window": {"windows": (9, 9)},
    "windows-in-one-layer": {"windows": (None, 4), "causal": (False, True)},
    "vocabulary": {"draft_vocab_size": 30},
    "MLP head": {"markov_size": 24},
    "Markov head": {"markov_rank": 3},
    "from the anchor's slot": {"sample_from_anchor": True},
    "from the anchor's slot, Markov head, causal": {
        "sample_from_anchor": True,
        "markov_rank": 3,
        "causal": (True, True),
    },
    "gated head": {"markov_rank": 3, "markov_head_type": "gated"},
    "recurrent head": {"markov_rank": 3, "markov_head_type": "rnn"},
    "recurrent head, from the anchor's slot": {"markov_rank": 3, "markov_head_type": "rnn", "sample_from_anchor": True},
    "refiner": {"markov_rank": 3, "markov_head_type": "xpress"},
    "refiner, vocabulary, from the anchor's slot": {
        "markov_rank": 3,
        "markov_head_type": "xpress",
        "draft_vocab_size": 30,
        "sample_from_anchor": True,
    },
    "Markov head, vocabulary, causal-window": {
        "markov_rank": 3,
        "draft_vocab_size": 30,
        "causal": (True, True),
        "windows": (9, 4),
    },
    "causal-window": {"causal": (True,), "windows": (5,), "num_layers": 1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [6, 3])
def test_block_logits_agree(case: str, width: int):
    target, artifact = make_target(), make_artifact(**CASES[case])
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 60, size).tolist() for size in (11, 17)]
    engine = make_engine(target, artifact)
    finished = [decode(engine, prompt, num_steps=5, width=width) for prompt in prompts]
    written = [np.asarray(state.rows.tokens)[0, : int(state.rows.length[0])].tolist() for state in finished]

    batch, places = packed_row(written)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    features = packed_features(target, batch["tokens"], Packed(batch["positions"], batch["segments"]), taps=(0, 2))
    anchors = jnp.array([[place + len(text) - 1 for place, text in zip(places, written, strict=True)]])
    slots = artifact.config.slots(width)
    hidden = block_hidden(trainee, batch, anchors, slots, context=draft_context(trainee, batch, features))
    trained = np.asarray(logits(hidden, trainee.head[...]))[0]

    context = draft_context(trainee, batch, features)
    for index, state in enumerate(finished):
        kind, rows = engine.drafter, state.rows
        decoded = np.asarray(logits(kind.block_hidden(target, state.drafter, rows, slots), kind.head))[0]
        assert np.abs(trained[index] - decoded).max() <= 1e-4
        options = {"key": keys(rows.seed, rows.length), "width": width, "speculation": GREEDILY}
        drafts = kind.propose(target, state.drafter, rows, **options).tokens
        states = slot_states(trainee, batch, anchors[:, index : index + 1], drafts[None], context=context)
        w2 = trainee.drafter.markov_w2
        head = trainee.head[...] if w2 is None else jnp.concatenate([trainee.head[...], w2[...]], axis=1)
        best = np.asarray(logits(states, head)).argmax(axis=-1)[0, 0]
        expected = best if artifact.draft_vocab is None else artifact.draft_vocab[best]
        assert np.asarray(drafts)[0].tolist() == expected.tolist(), "each slot given the draft before it"


def decode(engine, prompt, *, num_steps, width):
    row = jnp.asarray([prompt + [0] * (32 - len(prompt))], jnp.int32)
    length = jnp.array([len(prompt)], jnp.int32)
    state = prefill(engine, row, length, length + 40, length, capacity=128)
    return segment(engine, state, num_steps, Draft("drafter", width))


def packed_row(texts):
    """Both texts in one row with padding at the end, and where each begins."""
    length = sum(map(len, texts)) + 5
    batch = {name: np.zeros((1, length), np.int32) for name in ("tokens", "positions", "segments")}
    places, place = [], 0
    for number, text in enumerate(texts, start=1):
        span = slice(place, place + len(text))
        batch["tokens"][0, span], batch["positions"][0, span] = text, np.arange(len(text))
        batch["segments"][0, span] = number
        places.append(place)
        place += len(text)
    return jax.tree.map(jnp.asarray, batch), places
