"""Our artifact in z-lab's own PyTorch code (PyPI `dflash`): the same hidden states, the same accepted lengths."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Blocks, whole
from models.decode import make_engine
from models.drafters import Draft
from models.drafters.artifact import write_artifact
from models.drafters.dflash import block_tokens
from serve.bench_peers import Theirs, whole_steps
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target

pytestmark = pytest.mark.peers
WIDTH, TAPS = 6, (0, 2)


def features_of(target, ids: np.ndarray) -> np.ndarray:
    _, features, _ = target(jnp.asarray(ids), whole(jnp.asarray(ids)), taps=TAPS)
    return features


def our_hidden(drafter, target, ids: np.ndarray, features, anchor: int) -> np.ndarray:
    """Hidden states of the block at `anchor`, its context computed afresh."""
    places = jnp.arange(ids.shape[1])[None]
    context = drafter.context(features, places)
    at, zero = jnp.array([[anchor]]), jnp.zeros((1, 1), jnp.int32)
    where = Blocks(at, zero, places, jnp.zeros_like(places))
    block = target.embed(block_tokens(jnp.asarray(ids)[:, anchor][None], WIDTH, drafter.config.mask_token_id))
    return np.asarray(drafter(block, where, context))[0, 0]


KINDS = {
    "one layer": {"num_layers": 1},
    "two layers": {},
    "windows": {"windows": (9, None), "causal": (True, False)},
    "windows, bidirectional": {"windows": (4, 4)},
    "causal": {"causal": (True, True)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states(tmp_path, kind: str):
    """Prefill, then steps that accept few or all of the drafts: their cache is cropped, ours follows what was kept."""
    import torch
    from dflash.model import DFlashDraftModel, _crop_to, _make_cache

    target, artifact = make_target(), make_artifact(**KINDS[kind])
    write_artifact(artifact, tmp_path)
    theirs = DFlashDraftModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(3, 60, (1, 64)).astype(np.int32)
    features = features_of(target, ids)
    cache, known, anchor = _make_cache(theirs.config), 0, 20
    for accepted in (1, 4, 2, 6, 1, 3, 6, 0):
        block = np.concatenate([ids[:, anchor : anchor + 1], np.full((1, WIDTH - 1), 60)], axis=1)
        with torch.inference_mode():
            hidden = theirs(
                target_hidden=torch.tensor(np.asarray(features[:, known:anchor])),
                noise_embedding=torch.tensor(np.asarray(target.embed(jnp.asarray(block)))),
                position_ids=torch.arange(known, anchor + WIDTH)[None],
                past_key_values=cache,
                use_cache=True,
            ).numpy()
        _crop_to(cache, anchor)
        ours = our_hidden(artifact.drafter("float32"), target, ids, features, anchor)
        assert np.abs(ours - hidden[0, -WIDTH:]).max() <= 1e-4
        known, anchor = anchor, anchor + accepted


def test_accepted_lengths():
    """Twelve prompts through both decoders, over a vocabulary so small that an untrained drafter is often right."""
    target = make_target(vocab_size=7, eos_ids=(), tied_head=True)
    artifact = make_artifact(vocab_size=7, mask_token_id=6, tied_head=True)
    ours = Decoder(make_engine(target, artifact), Letters(), Draft("drafter", WIDTH), capacity=256)
    theirs = Theirs(target, artifact, WIDTH)
    rng = np.random.default_rng(3)
    seen = []
    for _ in range(12):
        ids = rng.integers(0, 6, 9).tolist()
        found = theirs.generate(ids, 60)
        (answer,) = ours.generate([[*ids, found.tokens[0]]], max_new_tokens=59)
        assert answer.ids == found.tokens[1:]
        steps = whole_steps(found.runs, 59, WIDTH)
        assert whole_steps(answer.runs, 59, WIDTH) == steps
        seen += steps
    assert len(set(seen)) >= 3, "steps that accepted nothing, something and more"
