"""A refiner (`xpress`): what it computes, what it is held to in training, and that its passes end where slot after slot
would."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Packed
from models.decode import make_engine
from models.drafters import dflash_kind
from models.drafters.artifact import read_artifact, write_artifact
from models.drafters.mixing import refined, resized, seen_of
from models.sampling import keys
from models.target import packed_features
from models.verify import GREEDILY
from tests.test_loss import make_batch, settings_of
from tests.test_train_serve_parity import decode, packed_row
from tests.tiny import make_artifact, make_target
from train.objectives import dflash as objective
from train.objectives.dflash import (
    GIVEN_GUESSES,
    ROUNDS,
    WITHOUT_BIAS,
    block_hidden,
    block_loss,
    draft_context,
    scored_states,
    slot_loss,
)
from train.objectives.slots import LossSettings, head_loss, slot_labels, slot_teachers
from train.objectives.trainee import Trainee

PLAIN = LossSettings.of_hits(64)
HEAD = {"markov_rank": 3, "markov_head_type": "xpress"}


def by_hand(mixing: dict, hidden: np.ndarray, e: np.ndarray) -> np.ndarray:
    """x of one block, [S, R], in loops over its slots."""
    w = {name: np.asarray(value, np.float64) for name, value in mixing.items()}
    mean = hidden.mean(axis=0)
    a = [
        np.concatenate([h @ w["down_h"], mean @ w["down_g"], before]) @ w["in_proj"]
        for h, before in zip(hidden, e, strict=True)
    ]
    out = []
    for k in range(len(hidden)):
        c = a[k] + sum(w["mix_l"][:, k, j] * a[j] for j in range(k + 1))
        gate = c @ w["mlp_gate"]
        out.append(c + (gate / (1 + np.exp(-gate)) * (c @ w["mlp_up"])) @ w["mlp_down"])
    return np.array(out)


@pytest.mark.parametrize("slots", [6, 3])
def test_one_pass(slots: int):
    """Narrower blocks are mixed as the first slots of wide ones are."""
    artifact = make_artifact(**HEAD)
    drafter, rng = artifact.drafter("float32"), np.random.default_rng(0)
    hidden, e = rng.standard_normal((2, slots, 32)), rng.standard_normal((2, slots, 3))
    given, e32 = (jnp.asarray(part, jnp.float32) for part in (hidden, e))
    seen = seen_of(drafter.mixing, lambda p: p[...], given, None)
    ours = refined(drafter.mixing, lambda p: p[...], seen, e32, None)
    expected = np.array([by_hand(artifact.weights["mixing"], *block) for block in zip(hidden, e, strict=True)])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"draft_vocab_size": 40, "sample_from_anchor": True}])
def test_what_it_is_held_to(changes: dict):
    """The response's own tokens, its logits without a bias, and its own guesses, those of the round before."""
    target, artifact = make_target(), make_artifact(**HEAD, **changes)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    settings = settings_of("all")
    batch = make_batch(target, final=True)
    context, size = draft_context(trainee, batch, batch["features"]), trainee.drafter.config.feature_size
    head, w2 = np.asarray(trainee.head[...]), np.asarray(trainee.drafter.markov_w2[...])
    vocab = np.arange(61) if artifact.draft_vocab is None else artifact.draft_vocab
    asked, total, blocks = dataclasses.replace(settings, guesses=True), 0.0, 0
    for width in (3, 6):
        anchors = batch[f"anchors_w{width}"]
        labels = slot_labels(batch, anchors, width)
        teacher = slot_teachers(batch["features"][..., size:], anchors, width)
        hidden = block_hidden(trainee, batch, anchors, artifact.config.slots(width), context=context)
        drafting = hidden[:, :, 1 - width :]
        rows = jnp.where(labels >= 0, trainee.draft_index[...][labels], -1)
        given = scored_states(trainee, batch, anchors, labels, hidden)
        total += float(slot_loss(trainee, given, labels, teacher, settings)[0])
        total += WITHOUT_BIAS * float(head_loss(drafting, None, trainee.head[...], rows, teacher, settings, None)[0])
        guesses = vocab[np.asarray(drafting @ head.T).argmax(axis=-1)]
        places = np.maximum(np.asarray(anchors), 0)
        tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segments"])
        anchor = np.take_along_axis(tokens, places, axis=1)[..., None]
        for _ in range(ROUNDS):
            before = np.concatenate([anchor, guesses[..., :-1]], axis=-1)
            x = np.zeros((*before.shape, 3))
            for row, index in np.ndindex(anchors.shape):
                place = places[row, index]
                own = place and segments[row, place - 1] == segments[row, place]
                earlier = [tokens[row, place - own]] * (not artifact.config.sample_from_anchor)
                e = np.asarray(artifact.weights["markov_w1"])[[*earlier, *before[row, index]]]
                block = np.asarray(hidden[row, index], np.float64)
                x[row, index] = by_hand(artifact.weights["mixing"], block, e)[1 - width :]
            states = jnp.concatenate([drafting, jnp.asarray(x, jnp.float32)], axis=-1)
            total += GIVEN_GUESSES / ROUNDS * float(slot_loss(trainee, states, labels, teacher, asked)[0])
            guesses = vocab[(np.asarray(drafting) @ head.T + x @ w2.T).argmax(axis=-1)]
        blocks += anchors.size
    assert float(block_loss(trainee, batch, settings)[0]) == pytest.approx(total / blocks, rel=1e-5)


@pytest.mark.parametrize("passes", [1, 6])
def test_held_out_drafts_are_the_decoders(monkeypatch: pytest.MonkeyPatch, passes: int):
    """Of passes that do not settle too: a text that ends in what was drafted is hit to its end."""
    for module in (dflash_kind, objective):
        monkeypatch.setattr(module, "PASSES", passes)
    target, artifact = make_target(), make_artifact(seed=3, **HEAD, width=10)
    engine = make_engine(target, artifact)
    state = decode(engine, np.random.default_rng(1).integers(3, 60, 11).tolist(), num_steps=5, width=10)
    written = np.asarray(state.rows.tokens)[0, : int(state.rows.length[0])].tolist()
    options = {"key": keys(state.rows.seed, state.rows.length), "width": 10, "speculation": GREEDILY}
    drafts = np.asarray(engine.drafter.propose(target, state.drafter, state.rows, **options).tokens)[0]
    batch, _ = packed_row([[*written, *drafts.tolist()]])
    trainee = Trainee(artifact.drafter("float32"), target, None, online=False)
    batch["features"] = packed_features(
        target, batch["tokens"], Packed(batch["positions"], batch["segments"]), taps=(0, 2)
    )
    anchors = jnp.array([[len(written) - 1]])
    context = draft_context(trainee, batch, batch["features"])
    hits, _ = objective.leading_hits.__wrapped__(trainee, batch, context, anchors, width=trainee.width, head_chunk=64)
    assert hits.tolist() == [[9]]
    if passes == 1:
        labels = slot_labels(batch, anchors, 10)
        hidden = block_hidden(trainee, batch, anchors, 10, context=context)
        _, _, hit, *_ = slot_loss(trainee, scored_states(trainee, batch, anchors, labels, hidden), labels, None, PLAIN)
        assert not hit.all(), "given its own drafts it would go on otherwise"


def test_its_names(tmp_path):
    """Those of `speculators`, whose block_size its mixer has."""
    write_artifact(make_artifact(**HEAD), tmp_path)
    again = read_artifact(tmp_path)
    assert set(again.tensors()) >= {f"refiner_head.{name}.weight" for name in ("token_embed", "readout", "down_h")}
    assert again.tensors()["refiner_head.mix_l"].shape == (3, 6, 6)
    assert again.described("float32") | {"xpress_rank": 3, "num_jacobi_passes": 6} == again.described("float32")
    assert "markov_rank" not in again.described("float32")


def test_a_mixer_for_other_widths():
    mixer = jnp.arange(8.0).reshape(2, 2, 2)
    wider = resized(mixer, 3)
    assert wider.shape == (2, 3, 3)
    assert (wider[:, :2, :2] == mixer).all()
    assert wider.sum() == mixer.sum()
    assert (resized(wider, 2) == mixer).all()
