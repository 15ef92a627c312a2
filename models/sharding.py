"""The mesh, and how a weight lies on it: matrices split over fsdp on their largest dimension that divides."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs.errors import UserError


def make_mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
    """A ("data", "fsdp") mesh over the first data * fsdp devices.

    Raises:
      UserError: there are fewer devices.
    """
    count = data * fsdp
    if count > jax.device_count():
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp}: expected {count} devices, got {jax.device_count()}; "
            "lower one of them"
        )
    devices = np.array(jax.devices()[:count]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def weight_sharding(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of a weight of this shape on a mesh with an axis "fsdp"."""
    ways = mesh.shape["fsdp"]
    fitting = [dim for dim in range(len(shape)) if shape[dim] % ways == 0 and len(shape) > 1]
    spec: list[str | None] = [None] * len(shape)
    if ways > 1 and fitting:
        spec[max(fitting, key=lambda dim: shape[dim])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))
