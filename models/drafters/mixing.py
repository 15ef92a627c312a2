"""What the heads of a block's bias see beside the token before a slot, by the name of `DrafterConfig.markov_head_type`.

Each slot's logits get `W2 @ x`, x of size R. With h a slot's final hidden state and e = W1[token before it]:

    vanilla   x = e
    gated     x = sigmoid(G [h; e] + b) * e
    rnn       g, c, o = J [s; e; h] + b;  x = tanh(o);  s' = sigmoid(g) * s + (1 - sigmoid(g)) * tanh(c), s = 0 at first
    xpress    a = P [H h; M mean of h; e];  c_k = a_k + sum_{j <= k} L[:, k, j] * a_j over the block's slots;
              x = c + down(silu(gate c) * up c)

The first three are DSpark's (arXiv 2607.05147), read slot after slot. `xpress` refines a whole block at once: its
tokens before are guesses, those of the logits without a bias at first and then the last pass's (Jacobi). All four as
PyPI `speculators` 0.9 computes them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers import product

HeadType = Literal["vanilla", "gated", "rnn", "xpress"]
PASSES = 6  # of guesses at most, as released refiners were measured with
MLP_RATIO = 2  # of the refiner's MLP, as they were trained with


class Mixing(nnx.Module):
    """The weights of a head that sees more than the token before, by the names of `mixing_shapes`."""

    proj: nnx.Param
    bias: nnx.Param
    down_h: nnx.Param
    down_g: nnx.Param
    in_proj: nnx.Param
    mix_l: nnx.Param
    mlp_gate: nnx.Param
    mlp_up: nnx.Param
    mlp_down: nnx.Param

    def __init__(self, weights: Mapping[str, Array]):
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))


def mixing_shapes(kind: HeadType, rank: int, d: int, slots: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape, matrices [in, out], of such a head for blocks of up to so many slots."""
    if kind == "vanilla":
        return {}
    if kind != "xpress":
        sizes = (d + rank, rank) if kind == "gated" else (2 * rank + d, 3 * rank)
        return {"proj": sizes, "bias": sizes[1:]}
    mlp = MLP_RATIO * rank
    return {
        "down_h": (d, rank),
        "down_g": (d, rank),
        "in_proj": (3 * rank, rank),
        "mix_l": (rank, slots, slots),
        "mlp_gate": (rank, mlp),
        "mlp_up": (rank, mlp),
        "mlp_down": (mlp, rank),
    }


def new_mixing(shapes: Mapping[str, tuple[int, ...]], rng: jax.Array) -> dict[str, Array]:
    """Fresh weights: normal(0.02) matrices; biases and what mixes slots begin at zero."""
    keys = jax.random.split(rng, max(1, len(shapes)))
    return {
        name: 0.02 * jax.random.normal(key, shape) if len(shape) == 2 else jnp.zeros(shape)
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }


def silenced(kind: HeadType, mixing: Mapping[str, Array]) -> dict[str, Array]:
    """The weights of a head that sees hidden states, `rnn` or `xpress`, such that x is 0 until it is trained."""
    if kind == "rnn":
        told = 2 * mixing["proj"].shape[1] // 3  # g and c; the rest is o
        return {**mixing, "proj": mixing["proj"].at[:, told:].set(0)}
    return {**mixing, "in_proj": jnp.zeros_like(mixing["in_proj"])}


def seen_of(
    mixing: Mixing, cast: Callable[[nnx.Param], Array], hidden: Float[Array, "*b S D"], mesh: jax.sharding.Mesh | None
) -> Float[Array, "*b S R2"]:
    """What `xpress` sees of a block's hidden states in every pass: [H h; M mean of h]; `cast` makes a matrix of a
    weight."""
    own = product(hidden, cast(mixing.down_h), mesh)
    mean = product(hidden.mean(axis=-2, keepdims=True), cast(mixing.down_g), mesh)
    return jnp.concatenate([own, jnp.broadcast_to(mean, own.shape)], axis=-1)


def refined(
    mixing: Mixing,
    cast: Callable[[nnx.Param], Array],
    seen: Float[Array, "*b S R2"],
    e: Float[Array, "*b S R"],
    mesh: jax.sharding.Mesh | None,
) -> Float[Array, "*b S R"]:
    """x of `xpress` for every slot of a block, `seen` being what `seen_of` gives."""
    a = product(jnp.concatenate([seen, e], axis=-1), cast(mixing.in_proj), mesh)
    slots = a.shape[-2]
    mixer = jnp.tril(mixing.mix_l[...][:, :slots, :slots]).astype(a.dtype)
    c = a + jnp.einsum("rkj,...jr->...kr", mixer, a)
    inner = jax.nn.silu(product(c, cast(mixing.mlp_gate), mesh)) * product(c, cast(mixing.mlp_up), mesh)
    return c + product(inner, cast(mixing.mlp_down), mesh)


def resized(mixer: Float[Array, "R S S"], slots: int) -> Float[Array, "R T T"]:
    """A refiner's mixer for blocks of so many slots: those that are new to it mix nothing yet."""
    known = mixer[:, :slots, :slots]
    more = slots - known.shape[1]
    return jnp.pad(known, ((0, 0), (0, more), (0, more)))
