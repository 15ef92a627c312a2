"""TPU kernels (interpreted here) on a mesh of eight devices, each with its own rows and heads, are dense on one device:
outputs and gradients."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs.schema import Mesh
from models.attention import Kernel, Packed, attend
from models.cache import Slots
from models.sharding import make_mesh
from tests.test_block_kernel import Case, attended, drawn
from tests.tiny_run import EIGHT


def packed(kernel: Kernel, mesh: jax.sharding.Mesh | None) -> list[np.ndarray]:
    """Two rows of two texts and padding, and what a cotangent makes of them."""
    rng, ends = np.random.default_rng(0), np.array([[50], [128]])
    segments = np.where(np.arange(256) < ends, 1, np.where(np.arange(256) < 250, 2, 0)).astype(np.int32)
    where = Packed(jnp.asarray(np.arange(256) - ends * (segments == 2), jnp.int32), jnp.asarray(segments), kernel)
    shapes = (2, 256, 4, 8), (2, 2, 8, 256), (2, 2, 256, 8), (2, 256, 4, 8)
    *arrays, cotangent = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    @jax.jit
    def both(*arrays):
        output, backward = jax.vjp(lambda q, k, v: attend(q, Slots([k], [v]), where, mesh=mesh), *arrays)
        return output, *backward(cotangent)

    return [np.asarray(part) for part in both(*arrays)]


def differences() -> None:
    """Run in a process of eight devices."""
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2))
    where, arrays, cotangent = drawn(Case(3, 4, 60, (4, 2, 8)), "float32")
    expected = attended(where, arrays, cotangent)
    found = attended(dataclasses.replace(where, kernel="flash"), arrays, cotangent, mesh)
    pairs = [(found[name], value) for name, value in expected.items()]
    pairs += zip(packed("splash", mesh), packed("dense", None), strict=True)
    for got, value in pairs:
        assert np.abs(got - value).max() <= 1e-5 * np.abs(value).max()
    print(len(pairs))


def test_equal_to_dense_on_one_device():
    call = [sys.executable, "-c", "from tests.test_kernel_meshes import differences; differences()"]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | EIGHT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10"]
