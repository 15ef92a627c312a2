"""Our artifact in tpu-inference: its own loader places every tensor in its JAX DFlash model, which computes what ours
does, as far as its attention goes without a TPU (see the fixture). What it reads otherwise than written is pinned."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from models.drafters.artifact import write_artifact
from models.drafters.dflash import block_tokens
from models.layers import RopeScaling
from tests.test_peers_zlab import WIDTH, features_of, our_hidden
from tests.tiny import make_artifact, make_target

PYTHON = os.environ.get("TPU_INFERENCE_PYTHON")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(PYTHON is None, reason="TPU_INFERENCE_PYTHON: no interpreter that has tpu-inference"),
]
ANCHOR = 20
MADE = {"head_dim": 128, "rope_theta": 1e6}
# Under transformers 5 it finds no `rope_theta`, and takes any `rope_scaling`, the default one too, for Llama-3.1's.
AS_READ = {"rope_theta": 1e6, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)}
CASES: dict[str, dict[str, Any]] = {
    "one layer": {"num_layers": 1},
    "two layers": {},
    "five layers": {"num_layers": 5},
    "another rotary base": {"rope_theta": 1e4},
    "heads of 64 load, no kernel for them": {"head_dim": 64},
}
TARGET = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 48,
    "vocab_size": 61,
    "rope_theta": 1e6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1.5e-2)])
def test_tensors_and_hidden_states(tmp_path: Path, dtype: str, tolerance: float):
    """In bfloat16 rounding alone takes both further from the float32 values than from each other."""
    target = make_target(dtype="bfloat16")  # their embedding computes in it
    ids = np.random.default_rng(0).integers(3, 60, (1, ANCHOR + 1)).astype(np.int32)
    features = features_of(target, ids)
    inputs = {
        "features": np.asarray(features[0, :ANCHOR], np.float32),
        "embedding": np.asarray(target.embed(jnp.arange(61)), np.float32),
        "block": block_tokens(jnp.asarray(ids)[0, ANCHOR], WIDTH, 60),
    }
    expected = {}
    for case, changes in CASES.items():
        directory = tmp_path / case
        directory.mkdir()
        write_artifact(make_artifact(**MADE | changes), directory)
        np.savez(directory / "inputs.npz", **inputs)
        as_read = make_artifact(**MADE | changes | AS_READ)
        ours, exact = (
            our_hidden(as_read.drafter(kind), target, ids, features, ANCHOR).astype(np.float32)
            for kind in (dtype, "float32")
        )
        expected[directory] = ours, exact
    shape = tmp_path / "target"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps(TARGET))

    call = [str(PYTHON), "tests/tpu_inference_fixture.py", str(shape), dtype, *map(str, expected)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    *run, refused = expected
    assert "not supported on the head_dim==64" in (refused / "refused.txt").read_text()
    for directory in run:
        theirs, (ours, exact) = np.load(directory / "hidden.npy"), expected[directory]
        apart, their_rounding, our_rounding = (
            float(np.linalg.norm(a - b) / np.linalg.norm(exact))
            for a, b in ((theirs, ours), (theirs, exact), (ours, exact))
        )
        print(f"{directory.name}, {dtype}: {apart:.1e} of the norm apart,", end=" ")
        print(f"from float32 {their_rounding:.1e} theirs, {our_rounding:.1e} ours")
        assert apart <= tolerance, directory.name
        assert their_rounding <= 1.25 * our_rounding + 1e-4, directory.name
