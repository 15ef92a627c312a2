"""The target's logits and every tap equal those of transformers' torch models, to 1e-4 in float32."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Chain, Packed, whole
from models.sources import load_target

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LENGTH = 100


def torch_model(family: str):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    configs = {
        "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
        "llama31": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3),
        "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
        "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family]()).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
    return model


@pytest.fixture(scope="module", params=["llama", "llama31", "qwen2", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(our target, token ids, torch's logits, torch's hidden states)."""
    import torch

    model = torch_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, max_shard_size="40KB" if request.param == "qwen3" else "1GB")
    ids = np.random.default_rng(0).integers(0, 96, (2, LENGTH))
    with torch.no_grad():
        out = model(torch.tensor(ids), output_hidden_states=True)
    sharded = len(list(Path(folder).glob("*.safetensors"))) > 1
    assert sharded == (request.param == "qwen3")
    return load_target(str(folder), "float32"), ids, out.logits.numpy(), [h.numpy() for h in out.hidden_states]


def forward(target, ids, taps):
    return target(jnp.asarray(ids), whole(jnp.asarray(ids)), taps=taps)


def test_logits_and_taps(pair):
    target, ids, logits, hidden_states = pair
    hidden, features, _ = forward(target, ids, (0, 1, 2))
    assert np.abs(np.asarray(target.logits(hidden)) - logits).max() <= 1e-4
    assert np.abs(logits).max() > 0.5
    for tap in range(3):
        ours = np.asarray(features[..., tap * 32 : (tap + 1) * 32])
        assert np.abs(ours - hidden_states[tap + 1]).max() <= 1e-4, "tap l is the output of layer l"
        assert np.abs(ours - hidden_states[tap]).max() > 0.1, "not its input"


def test_cached_steps_equal_the_whole_forward(pair):
    """Prefill of 60, then blocks of 8, equal one pass."""
    target, ids, logits, _ = pair
    cache = target.empty_cache(2, 128)
    place, got = 0, []
    for size in (60, 8, 8, 8, 8, 8):
        positions = jnp.broadcast_to(jnp.arange(place, place + size), (2, size))
        part = jnp.asarray(ids[:, place : place + size])
        hidden, _, cache = target(part, Chain(positions), cache=cache)
        got.append(np.asarray(target.logits(hidden)))
        place += size
    assert np.abs(np.concatenate(got, axis=1) - logits).max() <= 1e-4


def test_segments_of_a_packed_row_never_meet(pair):
    target, ids, logits, _ = pair
    half = LENGTH // 2
    packed = np.concatenate([ids[:1, :half], ids[1:, :half]], axis=1)
    positions = jnp.tile(jnp.arange(half), 2)[None]
    segments = jnp.repeat(jnp.array([1, 2]), half)[None]
    hidden, _, _ = target(jnp.asarray(packed), Packed(positions, segments))
    ours = np.asarray(target.logits(hidden))[0]
    assert np.abs(ours[:half] - logits[0, :half]).max() <= 1e-4
    assert np.abs(ours[half:] - logits[1, :half]).max() <= 1e-4
