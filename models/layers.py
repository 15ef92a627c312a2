"""The layers both networks are made of: RMSNorm, rotary positions, SwiGLU, the LM head.

Weights are matrices [in, out]: what has more dimensions a TPU's compiler lays out anew. q/k/v are one, head after head,
so that a mesh may split its columns. Norms, softmax and logits are computed in float32 whatever the compute type.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.sharding import platform

MANY, LEAST = 512, 8  # tokens
Method = TypeVar("Method", bound=Callable[..., Any])


def matmul_precision(dtype: Any) -> contextlib.AbstractContextManager[None]:
    """In it, where `dtype` is float32, matmuls of float32 are of float32: by default a TPU rounds their operands to
    bfloat16, a GPU to TF32. In bfloat16 nothing changes."""
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else contextlib.nullcontext()


def full_precision(method: Method) -> Method:
    """`method` of a network, its matmuls in `matmul_precision` of the network's `dtype`."""

    @functools.wraps(method)
    def precise(network: Any, *arguments: Any, **named: Any) -> Any:
        with matmul_precision(network.dtype):
            return method(network, *arguments, **named)

    return cast(Method, precise)


class Frozen(nnx.Variable):
    """A weight of the target: never trained, never checkpointed."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1 frequency scaling (the `rope_type: llama3` fields of a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[float, ...]:
    """Inverse frequencies (H/2 of them, float32 values), with the Llama-3.1 rule applied when `scaling` is given.

    Wavelengths shorter than original/high_freq_factor are kept, longer than original/low_freq_factor divided by
    `factor`, the band between interpolated linearly in original/wavelength.
    """
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        band = scaling.high_freq_factor - scaling.low_freq_factor
        keep = np.clip((turns - scaling.low_freq_factor) / band, 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return tuple(frequencies.astype(np.float32).tolist())


def rotary(positions: Int[Array, "B T"], frequencies: tuple[float, ...]) -> Float[Array, "2 B T H2"]:
    """cos and sin of every position's angles, float32."""
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def apply_rotary(x: Float[Array, "B T M H"], rotary: Float[Array, "2 B T H2"]) -> Float[Array, "B T M H"]:
    """`x` rotated by its positions, split-half convention (first half pairs with second half)."""
    cos, sin = rotary[:, :, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def rms_norm(x: Float[Array, "*b D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*b D"]:
    """RMSNorm over the last dimension, in float32, back in the type of `x`."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def product(
    x: Float[Array, "*b D"], weight: Float[Array, "D F"], mesh: jax.sharding.Mesh | None = None
) -> Float[Array, "*b F"]:
    """`x @ weight`.

    On a CPU bfloat16 is added up in float32 and rounded once. XLA has a kernel for that product alone (AMX, five times
    the float32 speed where the CPU has it) and turns any other into float32. Few rows are multiplied with the weight
    first, which that kernel reads as it is if it lies [F, D] (it packs what comes second; `reads_turned`); and at least
    LEAST of them, which takes no longer than one, so that a row's result does not depend on how many there are.
    """
    if x.dtype == weight.dtype and reads_turned(x.dtype, mesh):
        return _rounded_product(x, weight)
    return x @ weight


def reads_turned(dtype: Any, mesh: jax.sharding.Mesh | None) -> bool:
    """Whether weights that decode in `dtype` should lie [out, in] (see `product`)."""
    return platform(mesh) == "cpu" and jnp.dtype(dtype) == jnp.bfloat16


@jax.custom_vjp
def _rounded_product(x: Array, weight: Array) -> Array:
    few = x.ndim < 3 or x.size // x.shape[-1] <= MANY
    return (_weight_first(weight.T, x) if few else _contracted(x, weight, of_b=(0,))).astype(x.dtype)


def _rounded_product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded_product(x, weight), (x, weight)


def _rounded_product_backward(seen: tuple[Array, Array], given: Array) -> tuple[Array, Array]:
    x, weight = seen
    leading = tuple(range(x.ndim - 1))
    by_x = _contracted(given, weight, of_b=(1,)).astype(x.dtype)
    return by_x, _contracted(x, given, leading, leading).astype(weight.dtype)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


def _contracted(a: Array, b: Array, of_a: tuple[int, ...] = (-1,), of_b: tuple[int, ...] = (-1,)) -> Array:
    """Summed over the dimensions named, in float32."""
    of_a = tuple(axis % a.ndim for axis in of_a)
    of_b = tuple(axis % b.ndim for axis in of_b)
    return jax.lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=jnp.float32)


def _weight_first(weight: Float[Array, "F D"], x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
    """`weight @ x` of every row of `x` and of as many more as make LEAST."""
    flat = x.reshape(-1, x.shape[-1])
    padded = jnp.pad(flat, ((0, max(0, LEAST - len(flat))), (0, 0)))
    return _contracted(weight, padded)[:, : len(flat)].T.reshape(*x.shape[:-1], -1)


def into_heads(
    x: Float[Array, "*b D"],
    weight: Float[Array, "D KGH"],
    num_kv_heads: int,
    head_dim: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "*b K G H"]:
    """`x @ weight`, whose columns are heads, those of a key/value head side by side.

    Without the barrier XLA's TPU compiler splits the columns of the weight in place of the product's, for which it lays
    the whole weight out anew.
    """
    heads = jax.lax.optimization_barrier(product(x, weight, mesh))
    return heads.reshape(*x.shape[:-1], num_kv_heads, -1, head_dim)


def swiglu(
    x: Float[Array, "*b D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "*b D"]:
    """The gated MLP: silu(gate) * up, projected down.

    For many tokens on a CPU one product reads both: its gradient takes a seventh less of a training step than that of
    two. Elsewhere it would lay the weights out anew, and split a mesh's parts of them in the middle.
    """
    if platform(mesh) == "cpu" and x.size // x.shape[-1] > MANY:
        gated, upper = jnp.split(product(x, jnp.concatenate([gate, up], axis=1), mesh), 2, axis=-1)
    else:
        gated, upper = product(x, gate, mesh), product(x, up, mesh)
    return product(jax.nn.silu(gated) * upper, down, mesh)


def logits(
    hidden: Float[Array, "*b D"], head: Float[Array, "V D"], mesh: jax.sharding.Mesh | None = None
) -> Float[Array, "*b V"]:
    """Float32 logits of `hidden` under an LM head of V rows.

    The head comes first: for a single state, XLA's CPU backend then reads it an eighth faster. In bfloat16 there see
    `product`.
    """
    if platform(mesh) == "cpu" and hidden.dtype == head.dtype == jnp.bfloat16:
        return _weight_first(head, hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    with matmul_precision(hidden.dtype):
        scores = jnp.einsum("vd,td->vt", head, flat, preferred_element_type=jnp.float32).T
    return scores.reshape(*hidden.shape[:-1], head.shape[0])
