"""Packed rows through splash attention, JAX's kernel for TPUs (interpreted here), are the dense ones: the target's
features, and those of a training step with online features."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Packed
from models.target import packed_features
from tests.tiny import make_artifact, make_target
from train.objectives.trainee import Trainee, row_features

LENGTH = 256


def rows(**changes):
    """Two packed rows, of texts that end within, at and beyond a kernel's blocks; padding after them."""
    ends = [[40, 128, 131, 250], [1, 200, 256]]
    segments, positions = np.zeros((2, LENGTH), np.int32), np.zeros((2, LENGTH), np.int32)
    for row, places in enumerate(ends):
        for number, (begin, end) in enumerate(zip([0, *places], places, strict=False), start=1):
            segments[row, begin:end], positions[row, begin:end] = number, np.arange(end - begin)
    tokens = np.random.default_rng(0).integers(3, 60, (2, LENGTH)).astype(np.int32)
    return jnp.asarray(tokens), Packed(jnp.asarray(positions), jnp.asarray(segments), **changes)


@pytest.mark.parametrize("heads", [(4, 2, 8), (2, 2, 64)], ids=["grouped, narrow", "64 wide"])
def test_features(heads: tuple[int, int, int]):
    target = make_target(**dict(zip(("num_heads", "num_kv_heads", "head_dim"), heads, strict=True)))
    tokens, where = rows()
    dense = packed_features(target, tokens, where, taps=(0, 3), final=True)
    splash = packed_features(target, tokens, dataclasses.replace(where, kernel="splash"), taps=(0, 3), final=True)
    assert np.abs(dense - splash).max() <= 1e-4 * np.abs(dense).max()
    assert "pallas" in str(jax.make_jaxpr(lambda: attended(target, "splash"))())
    assert "pallas" not in str(jax.make_jaxpr(lambda: attended(target, "dense"))())


def attended(target, kernel: str):
    tokens, where = rows(kernel=kernel)
    return target(tokens, where)[0]


def test_online_features_of_a_training_step():
    target, artifact = make_target(), make_artifact()
    tokens, where = rows()
    batch = {"tokens": tokens, "positions": where.positions, "segments": where.segments}
    dense, splash = (
        row_features(
            Trainee(artifact.drafter("float32"), target, None, online=True, attention=kernel), batch, final=True
        )
        for kernel in ("dense", "splash")
    )
    assert np.abs(dense - splash).max() <= 1e-4 * np.abs(dense).max()
    assert (np.asarray(dense) != np.asarray(splash)).any(), "another kernel"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_lowers_for_tpu(dtype: str):
    target = make_target(dtype=dtype, head_dim=64)
    tokens, where = rows(kernel="splash")
    leaves, structure = jax.tree.flatten(target)
    flat = jax.jit(lambda *leaves: jax.tree.unflatten(structure, leaves)(tokens, where)[0])
    text = jax.export.export(flat, platforms=["tpu"])(*leaves).mlir_module()
    assert text.count("tpu_custom_call") >= 1
