"""Compiling for a TPU that is not here: chips, meshes of their devices, and what a compiled program takes of them.

The package `libtpu` (extra `aot`) brings the compiler that runs on TPUs; it needs none of them. Weights are abstract:
shapes, types and places. What it says is an estimate and is called so:

    estimate   every instruction takes the longer of its FLOPs at the chip's peak and its bytes at the bandwidth of its
               memory, one after the other, loops multiplied out (`models.hlo`): the rule of the compiler's own
               `optimal_seconds`, which counts a loop once. Copies and collectives that run beside other work are free
               as far as that work, and the memory, last; other collectives are added. An exchange's latency is not in
               it, nor the host.
    floors     all FLOPs at peak; all bytes at the bandwidth; all exchanged bytes over one axis of the chip's links

Kernels (Pallas) count what they say of themselves, and those that say nothing what the caller says; both are reported
apart.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import math
import os
import pickle
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable, topologies
from jax.sharding import AxisType

from configs import schema
from configs.errors import UserError
from configs.files import replacing
from models.hlo import Module
from models.sharding import MESH, own_shape

FITS = 0.9  # of a chip's memory: the rest is the runtime's, and what fragments
SILENT = 0.5  # of the peak, assumed of kernels that do not say what they do
FIXED = ("parameters", "optimizer", "target", "drafter", "outputs", "program")  # memory that rows do not change
LARGEST = 6  # arrays that are named where a program does not fit
COSTLIEST = 12  # operations named


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as its maker describes it (cloud.google.com/tpu/docs/v5p, v5e, v6e), bytes and FLOP/s.

    `link` is what reaches a chip from both neighbours on one axis of its torus: bandwidth of all links / axes / 2.
    """

    name: str
    dims: int  # of its topologies
    memory: float
    peak: float  # FLOP/s, bfloat16
    bandwidth: float  # bytes/s of its main memory
    link: float  # bytes/s


GiB = 2.0**30
CHIPS = {
    "v5p": Chip("v5p", 3, 95 * GiB, 459e12, 2765e9, 180e9),
    "v5e": Chip("v5e", 2, 16 * GiB, 197e12, 819e9, 90e9),
    "v6e": Chip("v6e", 2, 32 * GiB, 918e12, 1640e9, 180e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are joined, such as v5p:2x2x1; its devices can be compiled for, not computed on."""

    name: str
    chip: Chip
    devices: Sequence[Any]


def topology(name: str) -> Topology:
    """The topology of this name.

    Raises:
      UserError: no such topology, or the compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    sizes = shape.split("x")
    if chip is None or len(sizes) != chip.dims or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(
            f"topology {name!r}: expected one of {', '.join(CHIPS)} and its chips along every axis, such as v5p:2x2x1, "
            "v5e:4x4 or v6e:2x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        needed = [need for need in importlib.metadata.requires("jax") or [] if need.startswith("libtpu")]
        pin = needed[0].partition(";")[0].strip() if needed else "libtpu"
        raise UserError(
            f"topology {name}: expected the TPU compiler, found no package libtpu; pip install {pin!r} (or "
            "'wideblock[aot]'): it compiles without a TPU"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU whose metadata to ask for,
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor one to be shared
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise UserError(f"topology {name}: expected one the TPU compiler knows, got: {said}") from error
    return Topology(name, chip, described.devices)


def compiler() -> str | None:
    """The version of the TPU compiler; None without one."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None


def mesh_over(chips: Topology, sizes: schema.Mesh) -> jax.sharding.Mesh:
    """The mesh of these sizes over a topology; over one chip of it where they are all 1.

    Raises:
      UserError: their product is not its number of chips.
    """
    shape = tuple(getattr(sizes, axis) for axis in MESH)
    count = math.prod(shape)
    if count not in (1, len(chips.devices)):
        asked = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH, shape, strict=True))
        raise UserError(
            f"{asked}: expected the {len(chips.devices)} chips of {chips.name} in all, got {count}; change the mesh or "
            "the topology"
        )
    kinds = (AxisType.Auto,) * len(MESH)
    return jax.make_mesh(shape, MESH, axis_types=kinds, devices=chips.devices[:count])


def host_of(chips: Topology) -> Topology:
    """The topology of one of its hosts."""
    first = sum(device.process_index == chips.devices[0].process_index for device in chips.devices)
    if first == len(chips.devices):
        return chips
    host = topology(f"{chips.chip.name}:2x2" + "x1" * (chips.chip.dims - 2))
    assert len(host.devices) == first, (chips.name, host.name, first)
    return host


def host_mesh(host: Topology, sizes: schema.Mesh) -> jax.sharding.Mesh:
    """What `models.sharding.own_mesh` is on one host of many."""
    shape = own_shape(sizes, len(host.devices))
    return mesh_over(host, schema.Mesh(**dict(zip(MESH, shape, strict=True))))


def device_bytes(tree: Any) -> float:
    """What one device holds of abstract arrays that have their places."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled program takes of every chip; bytes, FLOPs and seconds are those of one chip and one run."""

    topology: str
    memory: dict[str, float]  # bytes by kind: what the caller named of the arguments, outputs, temporaries, program
    hbm: float  # bytes of the chip
    flops: float
    bytes: float
    collectives: dict[str, dict[str, float]]  # kind -> count, bytes received
    estimate: float  # seconds
    floors: dict[str, float]  # seconds: flops, bytes, collectives
    kernels: dict[str, float]  # Pallas kernels: count, seconds by what they say of themselves; silent ones, and what
    # is assumed of those
    compiler: float  # the compiler's own optimal_seconds, loops counted once; may be nonsense
    largest: list[tuple[str, float, str]]  # the largest temporary arrays: shape, bytes, origin
    costliest: dict[str, float]  # operations of the program: seconds, most first

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    @property
    def hbm_fraction(self) -> float:
        return self.peak / self.hbm

    @property
    def fits(self) -> bool:
        return self.hbm_fraction <= FITS

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"hbm_fraction": self.hbm_fraction, "fits": self.fits}


def report(
    compiled: Any,
    chips: Topology,
    arguments: Mapping[str, Any] | None = None,
    trips: Sequence[float] = (),
    silent_flops: float = 0.0,
) -> Report:
    """What `compiled` takes of every chip.

    `arguments` names parts of its arguments (trees of `models.sharding.placed`), the rest is "other"; `trips` are those
    of its loops of dynamic length (`models.hlo.Module`); `silent_flops` those of one chip in kernels that do not say
    what they do, for which the estimate takes them at SILENT of the peak.
    Raises:
      UnknownTrips: it has such loops deeper than `trips` says.
    """
    chip, module = chips.chip, Module(compiled.as_text(), trips)
    seen = compiled.memory_analysis()
    named = {kind: device_bytes(tree) for kind, tree in (arguments or {}).items()}
    memory = named | {
        "other": max(0.0, seen.argument_size_in_bytes - sum(named.values())),
        "outputs": float(seen.output_size_in_bytes - seen.alias_size_in_bytes),
        "temporaries": float(seen.temp_size_in_bytes),
        "program": float(seen.generated_code_size_in_bytes),
    }

    def seconds(work: Any) -> float:
        return work.times * max(work.flops / chip.peak, work.bytes / chip.bandwidth)

    silent = [kernel for kernel in module.kernels if not kernel.flops]
    assumed = silent_flops / (SILENT * chip.peak) if silent else 0.0
    working = assumed + sum(seconds(work) for work in module.work if not work.instruction.opcode.endswith("-start"))
    beside = sum(each.times * each.bytes for each in module.collectives if each.hidden) / chip.link
    alone = sum(each.times * each.bytes for each in module.collectives if not each.hidden) / chip.link
    exchanged: dict[str, dict[str, float]] = {}
    for each in module.collectives:
        kind = exchanged.setdefault(each.kind, {"count": 0.0, "bytes": 0.0})
        kind["count"] += each.times
        kind["bytes"] += each.times * each.bytes
    floors = {"flops": module.flops / chip.peak, "bytes": module.bytes / chip.bandwidth, "collectives": beside + alone}
    estimate = max(working, floors["bytes"], beside) + alone
    assert estimate >= 0.999 * max(floors["flops"], floors["bytes"]), (estimate, floors)
    kernels = {
        "count": sum(kernel.times for kernel in module.kernels),
        "seconds": sum(seconds(kernel) for kernel in module.kernels),
        "silent": sum(kernel.times for kernel in silent),
        "assumed_seconds": assumed,
    }
    costs = compiled.cost_analysis() or {}
    return Report(
        topology=chips.name,
        memory=memory,
        hbm=chip.memory,
        flops=module.flops,
        bytes=module.bytes,
        collectives=exchanged,
        estimate=estimate,
        floors=floors,
        kernels=kernels,
        compiler=float(costs.get("optimal_seconds", 0.0)),
        largest=[(str(shape), shape.bytes, origin) for shape, origin in module.largest(LARGEST)],
        costliest=dict(itertools.islice(module.costliest(seconds).items(), COSTLIEST)),
    )


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A program the compiler gave up on: it needs more memory than a chip has. Bytes of one chip."""

    topology: str
    memory: dict[str, float]  # of its arguments, by kind
    hbm: float
    needed: float
    largest: list[tuple[str, float, str]]  # the largest arrays before they are split over the chips

    fits = False

    @property
    def hbm_fraction(self) -> float:
        return self.needed / self.hbm

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"hbm_fraction": self.hbm_fraction, "fits": self.fits}


def room(found: Report | Refusal) -> float:
    """How much of what rows take would fit a chip, as a share of what they take now; 0 or less where that which they do
    not change, weights above all, does not fit alone."""
    return (FITS * found.hbm - fixed(found)) / max(found.hbm_fraction * found.hbm - fixed(found), 1.0)


def fixed(found: Report | Refusal) -> float:
    """Bytes of a chip that no number of rows changes."""
    return sum(size for kind, size in found.memory.items() if kind in FIXED)


def times_the_chips(found: Report | Refusal) -> int:
    """Over how many times the chips that has to be spread to take half of what may be filled."""
    return math.ceil(fixed(found) / (FITS * found.hbm / 2))


def examine(
    lowered: Any,
    chips: Topology,
    arguments: Mapping[str, Any],
    trips: Sequence[float] = (),
    silent_flops: float = 0.0,
) -> tuple[Report | Refusal, float, Any]:
    """What a lowered program takes of every chip (see `report`), the seconds that compiling it took, and itself."""
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        held = {kind: device_bytes(tree) for kind, tree in arguments.items()}
        sizes = [float(number) * GiB for number in re.findall(r"([\d.]+)G", said)]
        needed = max(sizes, default=chips.chip.memory)
        refused = Refusal(chips.name, held, chips.chip.memory, needed, _largest_of(lowered.as_text()))
        return refused, time.monotonic() - began, None
    seconds = time.monotonic() - began
    return report(compiled, chips, arguments, trips, silent_flops), seconds, compiled


def _largest_of(text: str) -> list[tuple[str, float, str]]:
    """The largest tensors that a lowered program (StableHLO) names."""
    found = {}
    for dims, dtype in re.findall(r"tensor<((?:\d+x)+)(\w+)>", text):
        sizes, bits = [int(size) for size in dims.split("x") if size], re.search(r"\d+", dtype)
        found[f"{dtype}{sizes}"] = math.prod(sizes) * (int(bits[0]) if bits else 0) / 8
    return [(shape, found[shape], "") for shape in sorted(found, key=lambda shape: -found[shape])[:LARGEST]]


def describe(found: Report | Refusal) -> list[str]:
    """A report in lines to show."""
    kind = found.topology.partition(":")[0]
    verdict = "fits" if found.fits else "does not fit"
    lines = [f"{verdict}: {found.hbm_fraction:.0%} of the {found.hbm / GiB:.0f} GiB of a {kind} chip ({FITS:.0%} fits)"]
    lines.append("memory: " + ", ".join(f"{name} {size / GiB:.2f}" for name, size in found.memory.items()) + " GiB")
    if isinstance(found, Report):
        of = found.kernels
        kernels = f"{of['count']:.0f} Pallas kernels, {of['seconds']:.4f} s by their own word"
        if of["silent"]:
            kernels += (
                f", {of['silent']:.0f} of them silent: {of['assumed_seconds']:.4f} s assumed at {SILENT:.0%} of peak"
            )
        exchanged = [
            f"{name} {each['count']:.0f} ({each['bytes'] / 1e9:.2f} GB)" for name, each in found.collectives.items()
        ]
        floors = ", ".join(f"{name} {seconds:.4f}" for name, seconds in found.floors.items())
        most = [
            f"{name} {1e3 * took:.2f} ms" for name, took in found.costliest.items() if took > 0.005 * found.estimate
        ]
        lines += [
            f"work: {found.flops / 1e12:.2f} TFLOP, {found.bytes / 1e9:.1f} GB; {kernels}",
            "collectives: " + (", ".join(exchanged) or "none"),
            f"estimate: {found.estimate:.4f} s (compiler estimate, {kind}; floors: {floors} s; the compiler's own sum "
            f"with loops counted once: {found.compiler:.4f} s)",
            "of which: " + ", ".join(most),
        ]
    if not found.fits:
        lines += [f"largest: {shape} {size / GiB:.2f} GiB {origin}".rstrip() for shape, size, origin in found.largest]
    return lines


def save_program(compiled: Any, file: Path) -> None:
    """Writes a compiled program of one device, to be loaded where there is such a device."""
    with replacing(file) as partial:
        partial.write_bytes(serialize_executable.serialize(compiled)[0])


def load_program(file: Path, lowered: Any) -> Any:
    """The program in `file` on the default device, called as the compiled `lowered` would be, which it was made from.

    Raises:
      UserError: the file is not one, or was compiled for another device or by another version of the compiler.
    """
    trees = lowered.in_tree, lowered.out_tree
    try:
        return serialize_executable.deserialize_and_load(file.read_bytes(), *trees, execution_devices=jax.devices()[:1])
    except (pickle.UnpicklingError, jax.errors.JaxRuntimeError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"{file}: expected a program compiled for {jax.devices()[0].device_kind}, got: {said}"
        ) from error
