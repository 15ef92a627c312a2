"""Target weights in the Orbax checkpoints that MaxText and Tunix write.

The trees, with the wrappers that come and go between versions (leading `params` and `base`, a last `value`) left out:

    MaxText  token_embedder/embedding, decoder/{decoder_norm/scale, logits_dense/kernel},
             decoder/layers/... stacked on axis 1 (scanned) or decoder/layers_<i>/... (unscanned) with
             {pre,post}_self_attention_layer_norm/scale, self_attention/{query,key,value,out}/kernel,
             self_attention/{query,key}_norm/scale, mlp/{wi_0,wi_1,wo}/kernel
    Tunix    embedder/input_embedding, final_norm/w, lm_head/w, layers/<i>/{input,post_attention}_layernorm/w,
             layers/<i>/attn/{q,k,v,o}_proj/w, attn/{q,k}_norm/w, attn/{q,k,v}_bias, mlp/{gate,up,down}_proj/kernel

MaxText keeps a Llama's queries divided by sqrt(head_dim), and its queries and keys with rotary pairs interleaved; both
are undone here. A Qwen3 it keeps as it is.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from configs.errors import UserError
from models.sharding import spread
from models.sources.layout import Checkpoint
from models.target import TargetConfig

_ITEMS = ("", "items", "model_params", "default", "params")
_MAXTEXT_TOP = {
    "model.embed_tokens.weight": "token_embedder/embedding",
    "model.norm.weight": "decoder/decoder_norm/scale",
    "lm_head.weight": "decoder/logits_dense/kernel",
}
_MAXTEXT_LAYER = {
    "input_layernorm.weight": "pre_self_attention_layer_norm/scale",
    "post_attention_layernorm.weight": "post_self_attention_layer_norm/scale",
    "self_attn.q_proj.weight": "self_attention/query/kernel",
    "self_attn.k_proj.weight": "self_attention/key/kernel",
    "self_attn.v_proj.weight": "self_attention/value/kernel",
    "self_attn.o_proj.weight": "self_attention/out/kernel",
    "self_attn.q_norm.weight": "self_attention/query_norm/scale",
    "self_attn.k_norm.weight": "self_attention/key_norm/scale",
    "mlp.gate_proj.weight": "mlp/wi_0/kernel",
    "mlp.up_proj.weight": "mlp/wi_1/kernel",
    "mlp.down_proj.weight": "mlp/wo/kernel",
}
_TUNIX_TOP = {
    "model.embed_tokens.weight": "embedder/input_embedding",
    "model.norm.weight": "final_norm/w",
    "lm_head.weight": "lm_head/w",
}
_TUNIX_LAYER = {
    "input_layernorm.weight": "input_layernorm/w",
    "post_attention_layernorm.weight": "post_attention_layernorm/w",
    **{f"self_attn.{part}_proj.weight": f"attn/{part}_proj/w" for part in "qkvo"},
    **{f"self_attn.{part}_proj.bias": f"attn/{part}_bias" for part in "qkv"},
    **{f"self_attn.{part}_norm.weight": f"attn/{part}_norm/w" for part in "qk"},
    **{f"mlp.{part}_proj.weight": f"mlp/{part}_proj/kernel" for part in ("gate", "up", "down")},
}


def orbax_weights(path: Path, config: TargetConfig, mesh: jax.sharding.Mesh | None) -> Checkpoint:
    """The tensors of an Orbax checkpoint by their Hugging Face names, restored one by one, spread over `mesh`.

    `path` is the item MaxText's load_parameters_path or Tunix's step directory names: STEP/items, STEP/model_params, or
    STEP itself.

    Raises:
      UserError: no checkpoint there, neither program's tree, or a damaged one.
    """
    leaves = _Leaves(path, mesh)
    if "token_embedder/embedding" in leaves:
        if config.qkv_bias:
            raise UserError(f"{path}: a MaxText checkpoint of a Qwen2 is not read here; expected a Llama or a Qwen3")
        return _maxtext(leaves, config)
    if "embedder/input_embedding" in leaves:
        return _tunix(leaves, config)
    raise UserError(
        f"{path}: neither a MaxText nor a Tunix tree; expected token_embedder/embedding or embedder/input_embedding, "
        f"got {', '.join(sorted(leaves.names)[:4])}, ..."
    )


def _maxtext(leaves: "_Leaves", config: TargetConfig) -> Checkpoint:
    scanned = any(name.startswith("decoder/layers/") for name in leaves.names)
    untransformed = config.qk_norm  # Qwen3

    def read(name: str) -> jax.Array:
        if name in _MAXTEXT_TOP:
            value = leaves.read(_MAXTEXT_TOP[name])
            if name == "model.embed_tokens.weight":
                return value[: config.vocab_size]  # MaxText pads it to a round number
            return value[:, : config.vocab_size].T if name == "lm_head.weight" else value
        _, _, index, part = name.split(".", 3)
        if scanned:
            stacked = leaves.shared(f"decoder/layers/{_MAXTEXT_LAYER[part]}")
            if stacked.shape[1] != config.num_layers:
                raise UserError(f"{leaves.item}: {stacked.shape[1]} layers; its config says {config.num_layers}")
            value = stacked[:, int(index)]
        else:
            value = leaves.read(f"decoder/layers_{index}/{_MAXTEXT_LAYER[part]}")
        if not untransformed and part == "self_attn.q_proj.weight":
            value = value * math.sqrt(config.head_dim)
        if not untransformed and part in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            value = jnp.concatenate([value[..., ::2], value[..., 1::2]], axis=-1)
        return _matrix(value, part)

    return Checkpoint(read, leaves.unread)


def _tunix(leaves: "_Leaves", config: TargetConfig) -> Checkpoint:
    def read(name: str) -> jax.Array:
        if name in _TUNIX_TOP:
            value = leaves.read(_TUNIX_TOP[name])
            return value.T if name == "lm_head.weight" else value
        _, _, index, part = name.split(".", 3)
        return _matrix(leaves.read(f"layers/{index}/{_TUNIX_LAYER[part]}"), part)

    return Checkpoint(read, leaves.unread)


def _matrix(value: jax.Array, part: str) -> jax.Array:
    """[out, in], the heads (last two dimensions, or the first two of the output projection) made one."""
    if not part.endswith("_proj.weight"):
        return value
    inputs = math.prod(value.shape[:-1]) if part == "self_attn.o_proj.weight" else value.shape[0]
    return value.reshape(inputs, -1).T


class _Leaves:
    """The arrays of one Orbax item by their unwrapped names, restored as they are read."""

    def __init__(self, path: Path, mesh: jax.sharding.Mesh | None):
        self._mesh = mesh
        found = next((path / item for item in _ITEMS if (path / item / "_METADATA").is_file()), None)
        if found is None:
            raise UserError(f"{path}: no Orbax checkpoint; expected STEP/items, STEP/model_params or what they hold")
        self.item = found
        with _handler(self.item) as handler:
            metadata = tree_leaves_with_path(handler.metadata(self.item.resolve()).tree)
        leaves = {tuple(keystr(path, simple=True, separator="/").split("/")): leaf for path, leaf in metadata}
        states = {"opt_state", "step", "opt_states"}
        self._leaves = {_unwrapped(key): (key, leaf) for key, leaf in leaves.items() if not states & set(key)}
        self._shared: dict[str, jax.Array] = {}
        self._asked: set[str] = set()

    @property
    def names(self) -> list[str]:
        return list(self._leaves)

    def __contains__(self, name: str) -> bool:
        return name in self._leaves

    def read(self, name: str) -> jax.Array:
        if name not in self._leaves:
            raise UserError(f"{self.item}: no array {name}; the checkpoint is of another family or of fewer layers")
        self._asked.add(name)
        return self._restore(name)

    def unread(self) -> list[str]:
        """The arrays nobody read; the state of random number generators (`rngs`) is none of the model's."""
        left = set(self._leaves) - self._asked
        return sorted(name for name in left if not any(part.endswith("rngs") for part in name.split("/")))

    def shared(self, name: str) -> jax.Array:
        """An array that every layer reads a part of: restored once and kept."""
        if name not in self._shared:
            self._shared[name] = self.read(name)
        return self._shared[name]

    def _restore(self, name: str) -> jax.Array:
        import orbax.checkpoint as ocp

        key, leaf = self._leaves[name]
        shape, dtype = leaf.shape, leaf.dtype
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        sharding = one if self._mesh is None else spread(shape, self._mesh)
        where = ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype, global_shape=shape)
        item, how = jax.ShapeDtypeStruct(shape, dtype), where
        for part in reversed(key):
            item, how = {part: item}, {part: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        with _handler(self.item) as handler:
            tree = handler.restore(self.item.resolve(), args=args)
        return jax.block_until_ready(jax.tree.leaves(tree)[0])  # what follows may move it between devices


@contextlib.contextmanager
def _handler(item: Path) -> Iterator[Any]:
    """Orbax's reader of array trees; what it raises on files that are missing or cut becomes one UserError."""
    import orbax.checkpoint as ocp

    try:
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            yield handler
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{item}: cannot read it ({reason}); copy the checkpoint again") from error


def _unwrapped(key: tuple[str, ...]) -> str:
    while key[0] in ("params", "base"):
        key = key[1:]
    return "/".join(key[:-1] if key[-1] == "value" else key)
