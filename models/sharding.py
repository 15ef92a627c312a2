"""The one sharding table: which mesh axes the logical axes of every array lie on.

The mesh has three axes. Rows are split over `data` and `fsdp`; matrices over `fsdp` by what they read or write of the
residual stream, and over `tensor` by heads, mlp or vocabulary; a cache by rows and by heads. What has no logical axis
here (lengths, positions, head width, norms) is whole everywhere.

A network names the logical axes of its weights where it declares them (`axes=` of a variable, which an optimizer's
moments take over) and holds the mesh it lies on: None is one device, where nothing in this file does anything.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from configs import schema
from configs.errors import UserError
from configs.processes import alone

MESH = ("data", "fsdp", "tensor")
TABLE: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "replica": "data",  # rows where their width is over fsdp: only on the way out of a lookup, see `looked_up`
    "embed": "fsdp",
    "features": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",  # of the embedding
    "head_rows": ("fsdp", "tensor"),  # the vocabulary of an LM head: states come to it, which are less than it is
}
Axes = Sequence[str | None]  # logical axes of an array's first dimensions
Tree = TypeVar("Tree")


def make_mesh(sizes: schema.Mesh) -> jax.sharding.Mesh | None:
    """The mesh of the given sizes over the first devices; None where they are all 1.

    Raises:
      UserError: there are fewer devices, or several processes and more.
    """
    shape = tuple(getattr(sizes, axis) for axis in MESH)
    count = math.prod(shape)
    asked = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH, shape, strict=True))
    if jax.process_count() > 1 and count < jax.device_count():
        raise UserError(f"{asked}: expected all {jax.device_count()} devices of the {jax.process_count()} processes")
    if count > jax.device_count():
        raise UserError(f"{asked}: expected {count} devices, got {jax.device_count()}; lower one of them")
    if count == 1:
        return None
    return jax.make_mesh(shape, MESH, axis_types=(AxisType.Auto,) * len(MESH), devices=jax.devices()[:count])


def platform(mesh: jax.sharding.Mesh | None) -> str:
    """What computes: the devices of a mesh, which need not be here (`models.aot`), or the default one."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def own_mesh(sizes: schema.Mesh) -> jax.sharding.Mesh | None:
    """A mesh of this process's own devices, as like `make_mesh`'s as they are enough for; the same with one process."""
    if jax.process_count() == 1:
        return make_mesh(sizes)
    if alone():
        raise UserError(f"{jax.process_count()} processes that have not met; start each with --processes auto")
    make_mesh(sizes)  # refused before anything is loaded
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    shape = own_shape(sizes, len(devices))
    return jax.make_mesh(shape, MESH, axis_types=(AxisType.Auto,) * len(MESH), devices=devices)


def own_shape(sizes: schema.Mesh, count: int) -> tuple[int, int, int]:
    """The shape of `own_mesh` over `count` devices of a process."""
    tensor = math.gcd(sizes.tensor, count)
    fsdp = math.gcd(sizes.fsdp, count // tensor)
    return count // tensor // fsdp, fsdp, tensor


def part_of_rows(mesh: jax.sharding.Mesh | None) -> tuple[int, int]:
    """(which, of how many) part of every batch this process gives: the rows that its devices hold.

    Raises:
      UserError: the processes' rows overlap without being the same.
    """
    if mesh is None:
        return 0, 1
    places = NamedSharding(mesh, PartitionSpec(TABLE["batch"])).devices_indices_map((ways("batch", mesh),))
    held: dict[int, set[int]] = {}
    for device, (rows,) in places.items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != ways("batch", mesh):
        raise UserError(
            f"mesh: rows of {len(held)} processes overlap; choose a mesh.tensor that divides a host's devices"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def ways(axis: str, mesh: jax.sharding.Mesh | None) -> int:
    """Into how many parts a logical axis is split."""
    return 1 if mesh is None else math.prod(mesh.shape[part] for part in _parts(axis))


def whole_rows(count: int, mesh: jax.sharding.Mesh | None) -> int:
    """`count` or the next number of rows above it that the mesh divides."""
    return -(-count // ways("batch", mesh)) * ways("batch", mesh)


def sharding_of(shape: Sequence[int], axes: Axes, mesh: jax.sharding.Mesh) -> NamedSharding:
    """Where an array of this shape lies.

    Raises:
      UserError: a logical axis is no multiple of the mesh axes it is split over.
    """
    for size, axis in zip(shape, axes, strict=False):
        if axis is not None:
            check_divides(axis, size, mesh)
    return NamedSharding(mesh, PartitionSpec(*(axis and TABLE[axis] for axis in axes)))


def check_divides(axis: str, size: int, mesh: jax.sharding.Mesh | None) -> None:
    """Raises UserError where so much of a logical axis is no multiple of the mesh axes it is split over."""
    if mesh is not None and size % ways(axis, mesh):
        over = " x ".join(f"mesh.{part}={mesh.shape[part]}" for part in _parts(axis))
        raise UserError(f"{axis}={size}: expected a multiple of {over}; choose a mesh or a size that divides")


def constrain(tree: Tree, mesh: jax.sharding.Mesh | None, *axes: str | None) -> Tree:
    """The arrays of `tree`, held to where arrays with these logical axes lie; raises UserError as `sharding_of`."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding_of(x.shape, axes, mesh)), tree)


def looked_up(
    table: Float[Array, "V D"], tokens: Int[Array, "*b"], mesh: jax.sharding.Mesh | None
) -> Float[Array, "*b D"]:
    """Rows of an embedding: every device looks up its part of D, which costs less than bringing the table together."""
    if table.dtype == jnp.bfloat16 and platform(mesh) == "cpu":
        return _rows_by_their_bits(table, tokens)
    rest = (None,) * (tokens.ndim - 1)
    parts = constrain(table[constrain(tokens, mesh, "replica")], mesh, "replica", *rest, "embed")
    return constrain(parts, mesh, "batch")


@jax.custom_vjp
def _rows_by_their_bits(table: Float[Array, "V D"], tokens: Int[Array, "*b"]) -> Float[Array, "*b D"]:
    """`table[tokens]`; of a bfloat16 table XLA's CPU backend turns all of it into float32 before it takes a row."""
    table, tokens = jax.lax.optimization_barrier((table, tokens))  # or the table's bits are copied, outside of a loop
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens], table.dtype)


def _rows_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rows_by_their_bits(table, tokens), (table, tokens)


def _rows_backward(seen: tuple[Array, Array], given: Array) -> tuple[Array, None]:
    table, tokens = seen
    return jnp.zeros_like(table).at[tokens].add(given), None


_rows_by_their_bits.defvjp(_rows_forward, _rows_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(weight: Float[Array, "..."], axes: Axes, mesh: jax.sharding.Mesh | None) -> Float[Array, "..."]:
    """A matrix whole over `fsdp`, as what many tokens are multiplied with; its gradient lies where it does.

    Left to itself XLA multiplies each device's part as it passes by, and writes the sum so far to memory as often as
    there are parts. On sixteen devices that was 1649 exchanges a training step, and is half of them.
    """
    return constrain(weight, mesh, *(None if axis and TABLE[axis] == "fsdp" else axis for axis in axes))


def _gathered(weight: Array, axes: Axes, mesh: jax.sharding.Mesh | None) -> tuple[Array, None]:
    return gathered(weight, axes, mesh), None


def _scattered(axes: Axes, mesh: jax.sharding.Mesh | None, _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, mesh, *axes),)


gathered.defvjp(_gathered, _scattered)


def shard(module: Any, mesh: jax.sharding.Mesh | None) -> None:
    """Lays `module` on `mesh`: every variable goes where its axes say; one without lies whole on every device.

    What lies on devices of this process alone, in every process alike, may go to a mesh of all processes.
    """
    if mesh is None:
        return

    def put(variable: Any) -> Any:
        value = variable.get_value()
        if not jax.tree.leaves(value):  # an optimizer's place for a parameter that another part of it updates
            return variable
        where = sharding_of(value.shape, variable.get_metadata().get("axes", ()), mesh)
        if where.is_fully_addressable or not value.is_fully_addressable:
            return variable.replace(jax.device_put(value, where))
        return variable.replace(_from_all(np.asarray(value), where))

    nnx.update(module, jax.tree.map(put, nnx.state(module), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))
    parts: list[Any] = [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]
    for part in parts:
        if hasattr(part, "mesh"):
            part.mesh = mesh


def placed(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Abstract arrays of `tree` where `shard` would put them: variables as their axes say, others whole everywhere.

    Raises:
      UserError: a size is no multiple of the mesh axes it is split over.
    """

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return abstract(leaf, (), mesh)
        if not jax.tree.leaves(leaf.get_value()):
            return leaf
        return leaf.replace(abstract(leaf.get_value(), leaf.get_metadata().get("axes", ()), mesh))

    return jax.tree.map(put, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def abstract(array: Any, axes: Axes, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """An array's shape and type where its axes say; raises UserError as `sharding_of`."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding_of(array.shape, axes, mesh))


def global_rows(batch: Tree, mesh: jax.sharding.Mesh | None) -> Tree:
    """A batch over all devices, of the rows that every process gives of it: its `part_of_rows`."""
    if mesh is None:
        return batch
    _, parts = part_of_rows(mesh)

    def put(rows: Any) -> jax.Array:
        shape = (rows.shape[0] * parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding_of(shape, ("batch",), mesh), rows, shape)

    return jax.tree.map(put, batch)


def same_rows(batch: Tree, mesh: jax.sharding.Mesh | None) -> Tree:
    """A batch over all devices, of all its rows in every process."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.tree.map(lambda rows: _from_all(rows, sharding_of(rows.shape, ("batch",), mesh)), batch)


def on_host(array: Array) -> np.ndarray:
    """The whole of an array in every process, wherever it lies."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


def _from_all(values: np.ndarray, where: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def spread(shape: Sequence[int], mesh: jax.sharding.Mesh) -> NamedSharding:
    """Where an array of a foreign layout waits to be rearranged: split on its largest dimension that divides."""
    fitting = [dim for dim, size in enumerate(shape) if size % mesh.size == 0]
    spec: list[Any] = [None] * len(shape)
    if fitting:
        spec[max(fitting, key=lambda dim: shape[dim])] = MESH
    return NamedSharding(mesh, PartitionSpec(*spec))


def _parts(axis: str) -> Iterable[str]:
    parts = TABLE[axis]
    return (parts,) if isinstance(parts, str) else parts
