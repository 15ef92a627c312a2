"""Our artifact in z-lab's own PyTorch code (PyPI `dflash`), which torchax runs on JAX: the same hidden states."""

import os
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.drafters.artifact import write_artifact
from models.drafters.dflash import block_tokens
from tests.test_peers_zlab import KINDS, WIDTH, features_of, our_hidden
from tests.tiny import make_artifact, make_target

PYTHON = os.environ.get("TPU_INFERENCE_PYTHON")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(PYTHON is None, reason="TPU_INFERENCE_PYTHON: no interpreter that has torchax"),
]
ANCHOR = 20


def test_hidden_states(tmp_path: Path):
    target = make_target()
    ids = np.random.default_rng(0).integers(3, 60, (1, ANCHOR + 1)).astype(np.int32)
    features = features_of(target, ids)
    expected = {}
    for kind, changes in KINDS.items():
        artifact, directory = make_artifact(**changes), tmp_path / kind
        directory.mkdir()
        write_artifact(artifact, directory)
        expected[directory] = our_hidden(artifact.drafter("float32"), target, ids, features, ANCHOR)
        block = block_tokens(jnp.asarray(ids)[:, ANCHOR], WIDTH, artifact.config.mask_token_id)
        np.savez(
            directory / "inputs.npz",
            target_hidden=features[:, :ANCHOR],
            noise_embedding=target.embed(block),
            position_ids=np.arange(ANCHOR + WIDTH)[None],
        )

    call = [str(PYTHON), "tests/torchax_fixture.py", *map(str, expected)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    for directory, ours in expected.items():
        assert np.abs(np.load(directory / "hidden.npy")[0] - ours).max() <= 1e-4, directory.name
