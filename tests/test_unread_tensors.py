"""A checkpoint that holds a tensor which the forward pass does not read is refused by that tensor's name: it would
compute something else without it."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.sources import load_target
from tests.test_sources_gguf import torch_model, write_gguf
from tests.test_sources_orbax import maxtext_tree, save
from tests.test_target_parity import torch_model as parity_model
from tests.tiny_run import write_target


def add(path: Path, **tensors: np.ndarray) -> None:
    file = path / "model.safetensors"
    save_file(load_file(file) | {name.replace("__", "."): value for name, value in tensors.items()}, file)


def test_biases_in_a_gguf(tmp_path: Path):
    """A Llama with attention biases, as llama.cpp would compute it."""
    model = torch_model("llama")
    bias = np.ones(64, np.float32)
    extra = {f"blk.{layer}.attn_{part}.bias": bias for layer in range(2) for part in "qkv"}
    path = write_gguf(tmp_path / "m.gguf", model, "llama", gguf.GGMLQuantizationType.F32, extra=extra)
    with pytest.raises(ValueError, match=r"holds blk\.0\.attn_k\.bias \(and 5 more\), which no part of a Llama"):
        load_target(str(path), "float32")


def test_a_directory(tmp_path: Path):
    path = write_target(tmp_path / "target")
    add(path, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(4, np.float32))
    load_target(str(path), "float32")  # follows from the config
    add(path, model__layers__0__self_attn__o_proj__bias=np.ones(32, np.float32))
    with pytest.raises(ValueError, match=r"holds model\.layers\.0\.self_attn\.o_proj\.bias, which no part of a Llama"):
        load_target(str(path), "float32")


def test_an_adapter_that_is_not_merged(tmp_path: Path):
    path = write_target(tmp_path / "target")
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config\.json\) beside the weights; merge it"):
        load_target(str(path), "float32")


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_that_is_saved_too_must_be_the_embedding(tmp_path: Path, equal: bool):
    path = write_target(tmp_path / "target")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    if equal:
        add(path, lm_head__weight=load_file(path / "model.safetensors")["model.embed_tokens.weight"])
        load_target(str(path), "float32")
    else:
        with pytest.raises(ValueError, match=r"holds lm_head\.weight, which no part"):
            load_target(str(path), "float32")


def test_an_orbax_tree(tmp_path: Path):
    made = parity_model("llama")
    made.save_pretrained(tmp_path / "directory")
    tree = maxtext_tree("llama", {name: value.numpy() for name, value in made.state_dict().items()}, scanned=False)
    tree["decoder"]["dropout"] = {"rngs": {"params": {"count": np.uint32(3)}}}
    source = f"{tmp_path / 'directory'} load_parameters_path={{}}"
    load_target(source.format(save(tree, tmp_path / "plain")), "float32")
    tree["decoder"]["layers_0"]["self_attention"]["query"]["bias"] = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match=r"holds decoder/layers_0/self_attention/query/bias, which no part of a Llama"):
        load_target(source.format(save(tree, tmp_path / "biased")), "float32")
