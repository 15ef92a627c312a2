"""Orbax checkpoints of MaxText and Tunix give the logits of the Hugging Face model they came from.

Tunix's are written here by Tunix itself. MaxText needs an environment of its own (`make test-peers` makes a real
checkpoint there), so its trees are laid out here by the inverse of its documented transforms, in every layout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from configs.errors import UserError
from models.sources import load_target
from models.sources.orbax import orbax_weights
from tests.test_target_parity import LENGTH, forward, torch_model
from tests.tiny import TARGET
from tests.tiny_run import EIGHT

IDS = np.random.default_rng(1).integers(0, 96, (2, LENGTH))
MAXTEXT_YML = """
model_name: tiny
decoder_block: {block}
vocab_size: 96
base_emb_dim: 32
base_num_decoder_layers: 4
base_num_query_heads: 4
base_num_kv_heads: 2
head_dim: {head_dim}
base_mlp_dim: 48
mlp_activations: [silu, linear]
use_qk_norm: {qk_norm}
rope_max_timescale: 10_000
normalization_layer_epsilon: 1.0e-5
"""


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(family, its directory, its tensors, torch's logits)."""
    import torch

    made = torch_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    with torch.no_grad():
        logits = made(torch.tensor(IDS)).logits.numpy()
    return request.param, folder, {name: value.numpy() for name, value in made.state_dict().items()}, logits


def maxtext_tree(family: str, tensors: dict[str, np.ndarray], *, scanned: bool) -> dict[str, Any]:
    size = 8 if family == "llama" else 16

    def heads(name: str, index: int) -> np.ndarray:
        value = tensors[f"model.layers.{index}.self_attn.{name}_proj.weight"].T.reshape(32, -1, size)
        if family == "llama" and name in "qk":
            value = np.stack([value[..., : size // 2], value[..., size // 2 :]], axis=-1).reshape(value.shape)
        return value / np.sqrt(size, dtype=np.float32) if family == "llama" and name == "q" else value

    def layer(index: int) -> dict[str, Any]:
        own = f"model.layers.{index}."
        attention = {
            "query": {"kernel": heads("q", index)},
            "key": {"kernel": heads("k", index)},
            "value": {"kernel": heads("v", index)},
            "out": {"kernel": tensors[own + "self_attn.o_proj.weight"].T.reshape(-1, size, 32)},
        }
        if family == "qwen3":
            attention["query_norm"] = {"scale": tensors[own + "self_attn.q_norm.weight"]}
            attention["key_norm"] = {"scale": tensors[own + "self_attn.k_norm.weight"]}
        mlp = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
        return {
            "pre_self_attention_layer_norm": {"scale": tensors[own + "input_layernorm.weight"]},
            "post_self_attention_layer_norm": {"scale": tensors[own + "post_attention_layernorm.weight"]},
            "self_attention": attention,
            "mlp": {theirs: {"kernel": tensors[f"{own}mlp.{ours}_proj.weight"].T} for theirs, ours in mlp.items()},
        }

    layers = [layer(index) for index in range(4)]
    decoder: dict[str, Any] = {
        "decoder_norm": {"scale": tensors["model.norm.weight"]},
        "logits_dense": {"kernel": tensors["lm_head.weight"].T},
    }
    if scanned:
        decoder["layers"] = stack(layers)
    else:
        decoder |= {f"layers_{index}": value for index, value in enumerate(layers)}
    padding = np.full((32, 32), 9.0, np.float32)
    return {
        "token_embedder": {"embedding": np.concatenate([tensors["model.embed_tokens.weight"], padding])},
        "decoder": decoder,
    }


def stack(trees: list[Any]) -> Any:
    """Equal trees as one, leaves stacked on axis 1."""
    if isinstance(trees[0], dict):
        return {key: stack([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees, axis=1)


def valued(tree: Any) -> Any:
    return {key: valued(value) for key, value in tree.items()} if isinstance(tree, dict) else {"value": tree}


WRAPPED = {
    "linen": lambda tree: {"params": {"params": tree}},
    "nnx": valued,
    "state": lambda tree: {"params": {"params": tree}, "opt_state": {"mu": {"params": tree}}, "step": np.int32(7)},
    "base": lambda tree: {"base": valued(tree)},
}


def save(tree: Any, path: Path) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree))
    return path


def logits_of(source: str) -> np.ndarray:
    target = load_target(source, "float32")
    hidden, _, _ = forward(target, IDS, ())
    return np.asarray(target.logits(hidden))


@pytest.mark.parametrize(
    ("layout", "scanned"), [("linen", True), ("linen", False), ("nnx", True), ("state", True), ("base", False)]
)
def test_maxtext_layouts(model, tmp_path: Path, layout: str, scanned: bool):
    family, folder, tensors, expected = model
    save(WRAPPED[layout](maxtext_tree(family, tensors, scanned=scanned)), tmp_path / "0" / "items")
    for path in (tmp_path / "0", tmp_path / "0" / "items"):
        assert np.abs(logits_of(f"{folder} load_parameters_path={path}") - expected).max() <= 1e-4


def test_maxtext_config(model, tmp_path: Path):
    """The architecture from base.yml-style keys and key=value settings, the tokenizer from a directory."""
    family, folder, tensors, expected = model
    items = save(WRAPPED["linen"](maxtext_tree(family, tensors, scanned=True)), tmp_path / "0" / "items")
    config = tmp_path / "tiny.yml"
    block, size = ("llama2", 8) if family == "llama" else ("qwen3", 16)
    config.write_text(MAXTEXT_YML.format(block=block, head_dim=size, qk_norm=str(family == "qwen3").lower()))
    words = f"{config} load_parameters_path={items} tokenizer_path={folder} max_target_length=256"
    assert np.abs(logits_of(words) - expected).max() <= 1e-4
    target = load_target(words, "float32")
    assert target.config.eos_ids == (2,)
    assert target.config.name == "tiny"
    for bad, message in {
        "base_moe_mlp_dim=8": "not understood: base_moe_mlp_dim; understood are attention_bias, ",
        "num_experts=4": "num_experts=4 is not supported; expected 1",
        "decoder_block=gemma": "decoder_block 'gemma'; expected llama2 or qwen3",
        "rope_type=yarn": "rope_type 'yarn'; expected default or llama3.1",
        "logits_via_embedding=true": "normalize_embedding_logits=false",
        "base_num_decoder_layers=5": "items: 4 layers; its config says 5",
        "load_parameters_path=nowhere": "nowhere: no Orbax checkpoint; expected STEP/items",
        "tokenizer_path=nowhere": "tokenizer_path: expected a Hugging Face directory, got 'nowhere'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_target(f"{words} {bad}", "float32")
    with pytest.raises(ValueError, match="missing max_target_length"):
        load_target(words.removesuffix(" max_target_length=256"), "float32")


def test_a_checkpoint_of_another_program(model, tmp_path: Path):
    _, folder, tensors, _ = model
    save({"wte": tensors["lm_head.weight"]}, tmp_path / "items")
    with pytest.raises(ValueError, match=r"neither a MaxText nor a Tunix tree; .* got wte"):
        load_target(f"{folder} load_parameters_path={tmp_path}", "float32")


def test_a_damaged_checkpoint(model, tmp_path: Path):
    family, folder, tensors, _ = model
    items = save(WRAPPED["linen"](maxtext_tree(family, tensors, scanned=True)), tmp_path / "items")
    for file in items.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"items: cannot read it \(.*\); copy the checkpoint again"):
        load_target(f"{folder} load_parameters_path={items}", "float32")


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", '{"tree_metadata": 3}', '{"tree_metadata": {"a": {}}}'])
def test_damaged_metadata(tmp_path: Path, left: str):
    items = save({"token_embedder": {"embedding": np.ones((2, 2), np.float32)}}, tmp_path / "items")
    (items / "_METADATA").write_text(left)
    with pytest.raises(UserError, match=r"items: cannot read it \(.*\); copy the checkpoint again"):
        orbax_weights(tmp_path, TARGET, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tunix(tmp_path: Path):
    """Read by Tunix from safetensors, saved by Tunix's own checkpoint manager, read by us. Tunix knows no llama3
    scaling and one theta, so the comparison is of weights, by our forward."""
    import torch
    from tunix.models.llama3 import model as llama3
    from tunix.models.qwen2 import model as qwen2
    from tunix.models.qwen3 import model as qwen3
    from tunix.sft.checkpoint_manager import CheckpointManager

    for family, module in {"llama": llama3, "qwen2": qwen2, "qwen3": qwen3}.items():
        made = torch_model(family)
        folder = tmp_path / family
        made.save_pretrained(folder)
        with torch.no_grad():
            expected = made(torch.tensor(IDS)).logits.numpy()
        theirs = tunix_model(module, family, folder)
        manager = CheckpointManager(str(tmp_path / f"{family}-tunix"))
        manager.save(3, theirs, force=True)
        manager.close()
        got = logits_of(f"{folder} load_parameters_path={tmp_path / f'{family}-tunix' / '3'}")
        assert np.abs(got - expected).max() <= 1e-4, family


def tunix_model(module: Any, family: str, folder: Path) -> nnx.Module:
    import importlib

    params = importlib.import_module(f"tunix.models.{family.replace('llama', 'llama3')}.params")
    tied = {"use_tied_embedding": True} if family == "qwen2" else {}
    config = module.ModelConfig(
        num_layers=4,
        vocab_size=96,
        embed_dim=32,
        hidden_dim=48,
        num_heads=4,
        head_dim=16 if family == "qwen3" else 8,
        num_kv_heads=2,
        rope_theta=10000,
        norm_eps=1e-5,
        **tied,
    )
    return params.create_model_from_safe_tensors(str(folder), config, dtype=jnp.float32)


def test_restored_into_shardings(model, tmp_path: Path):
    """On eight devices every matrix lies split over fsdp as soon as it is loaded, and the logits stay."""
    family, folder, tensors, expected = model
    items = save(WRAPPED["linen"](maxtext_tree(family, tensors, scanned=True)), tmp_path / "items")
    np.save(tmp_path / "ids.npy", IDS)
    program = (
        "import json, sys\n"
        "import jax, numpy as np\n"
        "from configs.schema import Mesh\n"
        "from models.sharding import make_mesh\n"
        "from models.sources import load_target\n"
        "from tests.test_target_parity import forward\n"
        "target = load_target(sys.argv[1], 'float32', make_mesh(Mesh(2, 4, 1)))\n"
        "for leaf in jax.tree.leaves(target):\n"
        "    parts = 4 if leaf.ndim > 1 else 1\n"
        "    assert leaf.addressable_shards[0].data.size * parts == leaf.size, leaf.sharding\n"
        "ids = np.load(sys.argv[2] + '/ids.npy').repeat(4, axis=0)\n"
        "hidden, _, _ = forward(target, ids, ())\n"
        "np.save(sys.argv[2] + '/logits.npy', np.asarray(target.logits(hidden))[::4])\n"
    )
    environment = os.environ | EIGHT
    for source in (f"{folder} load_parameters_path={items}", str(folder)):
        call = [sys.executable, "-c", program, source, str(tmp_path)]
        done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent)
        assert done.returncode == 0, done.stderr
        assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() <= 1e-4
    assert json.loads((items / "_METADATA").read_text())
