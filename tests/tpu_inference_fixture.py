"""Our artifact in tpu-inference's own loader and model. Run by tpu-inference's environment, not by ours.

python tests/tpu_inference_fixture.py TARGET DTYPE ARTIFACT...

TARGET is a directory with the target's config.json. Beside each artifact lies `inputs.npz`: features [S, LE], the
target's embedding [V, D], block [W]. Written there: `hidden.npy` [W, D], or `refused.txt` where attention refuses.

One thing is not as on a TPU: the reference beside their ragged paged attention takes the kernel's place, which Pallas
cannot interpret on a CPU. Configuration, loader, model, cache pages and metadata are their own.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import vllm.platforms
from flax import nnx
from safetensors.numpy import load_file
from tpu_inference.kernels.ragged_paged_attention.v3 import kernel
from tpu_inference.layers.common import attention_interface
from tpu_inference.layers.common.attention_metadata import AttentionMetadata
from tpu_inference.layers.common.sharding import MESH_AXIS_NAMES_2D
from tpu_inference.models.common.model_loader import _get_model_architecture, _get_nnx_model
from tpu_inference.platforms.tpu_platform import TpuPlatform
from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig, set_current_vllm_config

vllm.platforms._current_platform = TpuPlatform()
PAGES, PAGE = 8, 16
MESH = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), MESH_AXIS_NAMES_2D)
sharded = attention_interface.sharded_ragged_paged_attention


def attend(mesh, q, k, v, cache, lengths, pages, starts, distribution, sink, **options):
    """Their reference, where they would have called the kernel; their own refusals where they would have refused."""
    causal, scale = options["use_causal_mask"], options["sm_scale"]
    if q.shape[-1] == 64 and causal:
        return q, cache  # this call writes the context, its result is dropped; the block's own call comes next
    if q.shape[-1] == 64:
        return sharded(mesh, q, k, v, cache, lengths, pages, starts, distribution, sink, **options)
    rows = (lengths, pages, starts, distribution)
    found, cache = kernel.ref_ragged_paged_attention(q, k, v, cache, *rows, use_causal_mask=causal, sm_scale=scale)
    return found, cache


def load(target: str, dtype: str, directory: Path, width: int) -> tuple[nnx.Module, Any]:
    """Their model with the artifact's weights, and the drafter's configuration as they read it."""
    model = ModelConfig(model=target, tokenizer=target, skip_tokenizer_init=True, dtype=dtype, max_model_len=128)
    drafter = SpeculativeConfig(
        method="dflash",
        model=str(directory),
        num_speculative_tokens=width - 1,
        target_model_config=model,
        target_parallel_config=ParallelConfig(),
    )
    config = VllmConfig(model_config=model, speculative_config=drafter)
    model.dtype = jnp.dtype(dtype)  # as their get_flax_model does before it loads
    read = drafter.draft_model_config.hf_config
    with set_current_vllm_config(config):
        kind = _get_model_architecture(read)
        return _get_nnx_model(kind, config, jax.random.key(0), MESH, is_draft_model=True), read


def check_tensors(loaded: nnx.Module, directory: Path, dtype: str) -> None:
    """Every number of the file is in the model, and the model holds no other but the target's embedding and head."""
    placed = dict(nnx.to_flat_state(nnx.state(loaded.model, nnx.Param)))
    del placed["embed_tokens", "embedding"]
    names = {".".join(map(str, path[:-1])) + ".weight": param.get_value() for path, param in placed.items()}
    tensors = load_file(directory / "model.safetensors")
    assert names.keys() == tensors.keys(), names.keys() ^ tensors.keys()
    for name, tensor in tensors.items():  # [out, in] there; transposed and split into heads here
        assert np.array_equal(jnp.asarray(tensor.T, dtype).ravel(), names[name].ravel()), name


def hidden_states(loaded: nnx.Module, read, inputs, dtype: str) -> np.ndarray:
    """Those of one block after the features, computed as their proposer asks for them."""
    loaded.model.embed_tokens.embedding.set_value(jnp.asarray(inputs["embedding"], dtype))
    width, length = len(inputs["block"]), len(inputs["features"])
    shape = kernel.get_kv_cache_shape(PAGES, PAGE, read.num_key_value_heads, read.head_dim, jnp.dtype(dtype))
    metadata = AttentionMetadata(
        input_positions=jnp.arange(length, length + width),
        block_tables=jnp.arange(PAGES)[::-1],
        seq_lens=jnp.array([length]),
        query_start_loc=jnp.array([0, width]),
        request_distribution=jnp.array([0, 0, 1]),
    )
    context = loaded.combine_hidden_states(jnp.asarray(inputs["features"], dtype))
    told = (context, jnp.array([0, length]), jnp.arange(length))
    caches = [jnp.zeros(shape, dtype) for _ in range(read.num_hidden_layers)]
    return np.asarray(loaded(caches, jnp.asarray(inputs["block"]), told, metadata)[1], np.float32)


target, dtype, *directories = sys.argv[1:]
attention_interface.sharded_ragged_paged_attention = attend
for directory in map(Path, directories):
    inputs = np.load(directory / "inputs.npz")
    loaded, read = load(target, dtype, directory, len(inputs["block"]))
    check_tensors(loaded, directory, dtype)
    with jax.set_mesh(MESH):
        try:
            np.save(directory / "hidden.npy", hidden_states(loaded, read, inputs, dtype))
        except NotImplementedError as error:
            (directory / "refused.txt").write_text(str(error))
