"""z-lab's PyTorch drafter run on JAX by torchax, under `jax.jit`. Run by torchax's environment, not by ours.

python tests/torchax_fixture.py DIRECTORY...

Each directory is an artifact beside `inputs.npz` (the arguments of the drafter's forward); `hidden.npy` is written
there.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import torch
import torchax
from dflash.model import DFlashDraftModel

for directory in map(Path, sys.argv[1:]):
    drafter = DFlashDraftModel.from_pretrained(directory, dtype=torch.float32).eval()
    weights, forward = torchax.extract_jax(drafter)
    hidden = jax.jit(forward)(weights, (), dict(np.load(directory / "inputs.npz")))
    assert isinstance(hidden, jax.Array)
    np.save(directory / "hidden.npy", hidden)
