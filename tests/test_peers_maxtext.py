"""A checkpoint that MaxText's own `to_maxtext` made from a tiny Hugging Face model gives that model's logits, scanned
and unscanned, with the architecture from the directory or from MaxText's config keys."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.test_sources_orbax import IDS, logits_of
from tests.test_target_parity import torch_model

pytestmark = pytest.mark.peers
NAMES = {"llama": ("llama3.1-8b", "llama2", 8), "qwen3": ("qwen3-0.6b", "qwen3", 16)}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits(tmp_path: Path, family: str, scanned: bool):
    import torch

    model = torch_model(family)
    model.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    name, block, head_dim = NAMES[family]
    shape = {
        "base_emb_dim": 32,
        "base_num_decoder_layers": 4,
        "base_num_query_heads": 4,
        "base_num_kv_heads": 2,
        "head_dim": head_dim,
        "base_mlp_dim": 48,
        "vocab_size": model.config.vocab_size,
        "rope_max_timescale": 10000,
        "max_target_length": 256,
        "logits_via_embedding": "false",
        "scan_layers": str(scanned).lower(),
    }
    settings = [f"{key}={value}" for key, value in shape.items()]
    call = [os.environ["MAXTEXT_PYTHON"], "tests/maxtext_fixture.py", name, str(tmp_path / "hf"), str(tmp_path / "out")]
    done = subprocess.run([*call, *settings], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    items = sorted(Path(tmp_path / "out").rglob("items"))
    assert items, done.stdout[-2000:]

    assert np.abs(logits_of(f"{tmp_path}/hf load_parameters_path={items[0]}") - expected).max() <= 1e-4
    config = tmp_path / "tiny.yml"
    config.write_text(f"decoder_block: {block}\nuse_qk_norm: {str(family == 'qwen3').lower()}\n")
    words = [f"load_parameters_path={items[0]}", f"tokenizer_path={tmp_path}/hf", *settings]
    assert np.abs(logits_of(" ".join([str(config), *words])) - expected).max() <= 1e-4
