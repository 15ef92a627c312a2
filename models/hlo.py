"""What a program compiled by XLA does, read off its text: products, traffic of the device's memory, collectives.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trips, and on some chips adds up to less than
nothing. Here a loop's body counts as often as it runs. A loop of dynamic length (a `while_loop` that ends when rows are
done, attention over as much of a cache as is filled) runs as often as the caller says.

FLOPs are those of matrix products, a multiply-add being two: XLA writes them as `dot` or, for a TPU, as `convolution`.
Bytes are what an instruction reads and writes of the device's main memory: fast memory (`S(1)` in a layout) is free,
and of an array that is only sliced, gathered from or updated in place what is touched counts, as in XLA's
HloCostAnalysis. Kernels (custom calls) count what they say of themselves.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"}
_FREE |= {"optimization-barrier", "add-dependency", "iota"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # in place, by which operand
_LINE = re.compile(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")


class UnknownTrips(ValueError):
    """A loop whose trips neither its text nor the caller tells."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: its type, its size and whether it lies in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    main: bool

    @property
    def bytes(self) -> float:
        digits = re.search(r"\d+", self.dtype)
        each = _BYTES.get(self.dtype, int(digits[0]) / 8 if digits else 0)  # a token is nothing
        return each * math.prod(self.dims)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = shapes opcode(operands), attributes`."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    given: str  # what stands between the parentheses
    attributes: str

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.attributes)
        return None if found is None else found[1] if found[1] is not None else found[2]

    @property
    def called(self) -> list[str]:
        """Computations that run as this instruction does."""
        names = [self.attribute(key) for key in ("calls", "to_apply", "true_computation", "false_computation")]
        branches = self.attribute("branch_computations")
        return [name.strip().lstrip("%") for name in [*names, *(branches or "").split(",")] if name]

    @property
    def origin(self) -> str:
        """The operation of the program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.name


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]
    root: Instruction

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.given))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads what, with free renamings looked through."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in reversed(self.instructions.values()):
            for name in instruction.operands:
                if name in users:
                    users[name] += users[instruction.name] if instruction.opcode == "bitcast" else [instruction]
        return users

    def behind(self, name: str) -> Instruction:
        """The instruction a bitcast renames."""
        while self.instructions[name].opcode == "bitcast":
            name = self.instructions[name].operands[0]
        return self.instructions[name]


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction that runs, how often, and what one run costs."""

    instruction: Instruction
    times: float
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices: how often, the bytes a device receives each time, and whether work goes on."""

    kind: str
    times: float
    bytes: float
    hidden: bool


class Module:
    """A compiled program. `trips` are those of loops of dynamic length, by how many such loops they lie within."""

    def __init__(self, text: str, trips: Sequence[float] = ()):
        self.trips = tuple(trips)
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        name, lines = "", {}
        for line in text.splitlines():
            begin = re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line)
            if begin and not line.startswith(" "):
                name, lines, root = begin[2], {}, None
                self.entry = name if begin[1] else self.entry
            elif re.match(r"\}(, execution_thread|$)", line) and lines:  # instructions of several lines end otherwise
                last = list(lines.values())[-1]
                self.computations[name] = Computation(lines, root or last)
                lines = {}
            elif found := _LINE.match(line):
                given, _, attributes = found[5].partition(")")
                operands = tuple(re.findall(r"%([^\s,)]+)", given))
                made = Instruction(found[2], _shapes(found[3]), found[4], operands, given, attributes)
                lines[made.name] = made
                root = made if found[1] else root

    def running(
        self, name: str | None = None, times: float = 1, depth: int = 0
    ) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction outside of fusions, with its computation and how often it runs.

        Of a conditional every branch counts.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                trips, deeper = self.loop_trips(computation, instruction, depth)
                body = (instruction.attribute("body") or "").lstrip("%")
                yield from self.running(body, times * trips, deeper)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self.running(called, times, depth)
            else:
                yield computation, instruction, times

    def loop_trips(self, outside: Computation, loop: Instruction, depth: int) -> tuple[float, int]:
        """How often a loop runs, and in how many loops of dynamic length its body lies.

        Raises:
          UnknownTrips: its length is dynamic and the caller gave none for its depth.
        """
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        trips = float(said[1]) if said else self._counted(outside, loop)
        if trips is not None:
            return trips, depth
        if depth >= len(self.trips):
            raise UnknownTrips(f"{loop.origin}: a loop of dynamic length; give its trips (depth {depth})")
        return self.trips[depth], depth + 1

    def _counted(self, outside: Computation, loop: Instruction) -> float | None:
        """The trips of a loop that counts a number of its state up to a constant; None if it does not."""
        condition, body = (self.computations[(loop.attribute(key) or "").lstrip("%")] for key in ("condition", "body"))
        compare = condition.root
        if compare.opcode != "compare" or compare.attribute("direction") != "LT":
            return None
        counter, limit = (condition.behind(name) for name in compare.operands)
        if counter.opcode != "get-tuple-element":
            return None
        index = int(counter.attribute("index") or 0)

        def at_first(place: int) -> float | None:
            state = outside.behind(loop.operands[0])
            return _constant(outside, state.operands[place]) if state.opcode == "tuple" else None

        if limit.opcode == "get-tuple-element":
            end = at_first(int(limit.attribute("index") or 0))
        else:
            end = _constant(condition, limit.name)
        begin, step = at_first(index), 1.0
        grown = body.behind(body.root.operands[index]) if body.root.opcode == "tuple" else None
        if grown is not None and grown.opcode == "add":
            steps = [value for name in grown.operands if (value := _constant(body, name)) is not None]
            step = steps[0] if steps else step
        return None if end is None else math.ceil((end - (begin or 0.0)) / step)

    @cached_property
    def work(self) -> list[Work]:
        """What every instruction costs that is not free."""
        found = []
        for computation, instruction, times in self.running():
            flops, moved = self._flops(computation, instruction), self._bytes(computation, instruction)
            if flops or moved:
                found.append(Work(instruction, times, flops, moved))
        return found

    @property
    def flops(self) -> float:
        return sum(each.times * each.flops for each in self.work)

    @property
    def bytes(self) -> float:
        return sum(each.times * each.bytes for each in self.work)

    @cached_property
    def kernels(self) -> list[Work]:
        """The kernels a compiler does not look into, with what they say of themselves: nothing, some of them."""
        return [
            Work(each, times, _said(each, "flops"), _said(each, "bytes_accessed"))
            for _, each, times in self.running()
            if _is_kernel(each)
        ]

    @cached_property
    def collectives(self) -> list[Collective]:
        """Those of the program; one that is spread over several instructions, to run beside others, counts once."""
        seen: dict[tuple[str, str], Collective] = {}
        for _, instruction, times in self.running():
            inside = self._inside(instruction) if instruction.opcode == "fusion" else [instruction]
            for each in inside:
                kind = each.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    hidden = each is not instruction or each.opcode.endswith("-start")
                    key = kind, each.attribute("channel_id") or each.name
                    seen.setdefault(key, Collective(kind, times, _received(kind, each), hidden))
        return list(seen.values())

    def costliest(self, seconds: Callable[[Work], float]) -> dict[str, float]:
        """Seconds by the operations of the program they go to, most first; `seconds` says what a work takes."""
        found: dict[str, float] = {}
        for each in self.work:
            known = each.instruction.origin != each.instruction.name
            operation = each.instruction.origin if known else each.instruction.opcode
            operation = re.sub(r"(jit\([^)]*\)|while|body|cond|branch_\d+_fun)/", "", operation)
            found[operation] = found.get(operation, 0.0) + seconds(each)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def largest(self, count: int) -> list[tuple[Shape, str]]:
        """The largest arrays the program makes in main memory, with where they come from, each shape once."""
        found: dict[str, tuple[Shape, str]] = {}
        for _, instruction, _ in self.running():
            if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                for shape in instruction.shapes:
                    if shape.main:
                        found.setdefault(str(shape), (shape, instruction.origin))
        return sorted(found.values(), key=lambda each: -each[0].bytes)[:count]

    def _inside(self, instruction: Instruction) -> Iterator[Instruction]:
        for called in instruction.called:
            for each in self.computations[called].instructions.values():
                yield each
                if each.opcode == "fusion":
                    yield from self._inside(each)

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.opcode in ("dot", "convolution"):
            left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
            return (_dot_flops if instruction.opcode == "dot" else _convolution_flops)(instruction, left, right)
        if instruction.opcode == "fusion":
            inside = [self.computations[name] for name in instruction.called]
            return sum(self._flops(each, part) for each in inside for part in each.instructions.values())
        return _said(instruction, "flops") if _is_kernel(instruction) else 0.0

    def _bytes(self, computation: Computation, instruction: Instruction) -> float:
        opcode, shapes = instruction.opcode, instruction.shapes
        if opcode in _FREE or opcode.endswith("-done") or opcode.removesuffix("-start") in COLLECTIVES:
            return 0.0
        if opcode == "custom-call":
            return _said(instruction, "bytes_accessed")
        operands = [computation.instructions[name].shapes for name in instruction.operands]
        if opcode in ("copy-start", "slice-start"):  # (to, from, context) or ((from), to, context)
            to = shapes[0 if opcode == "copy-start" else 1]
            return to.bytes * (operands[0][0].main + to.main)
        if opcode == "fusion":
            return self._fusion_bytes(instruction, operands)
        read = [sum(shape.bytes for shape in each if shape.main) for each in operands]
        written = sum(shape.bytes for shape in shapes if shape.main)
        if opcode in _SLICES and read:
            read[0] = min(read[0], written)
        if opcode in _UPDATES:
            update = operands[_UPDATES[opcode]][0].bytes
            return 2 * update if shapes[0].main else 0.0
        return sum(read) + written

    def _fusion_bytes(self, fusion: Instruction, operands: list[tuple[Shape, ...]]) -> float:
        inside = self.computations[fusion.called[0]]
        total = 0.0
        for parameter, shapes in zip(inside.parameters, operands, strict=True):
            whole = sum(shape.bytes for shape in shapes if shape.main)
            total += min(whole, self._read_of(inside, parameter)) if whole else 0.0
        made = inside.behind(inside.root.name)
        outputs = [inside.behind(name) for name in made.operands] if made.opcode == "tuple" else [made]
        for output, shape in zip(outputs, fusion.shapes, strict=False):
            if not shape.main or output.opcode.removesuffix("-start") in (*COLLECTIVES, "custom-call", "parameter"):
                continue
            update = output.operands[_UPDATES[output.opcode]] if output.opcode in _UPDATES else None
            total += shape.bytes if update is None else inside.instructions[update].shapes[0].bytes
        return total

    def _read_of(self, inside: Computation, parameter: Instruction) -> float:
        """What a fusion reads of a parameter: slices of it, or all; nothing where it is handed to a collective or to
        the output, or updated in place."""
        total = 0.0
        for user in inside.users[parameter.name]:
            places = [place for place, name in enumerate(user.operands) if inside.behind(name) is parameter]
            if user.opcode == "fusion":
                deeper = self.computations[user.called[0]]
                read = sum(self._read_of(deeper, deeper.parameters[place]) for place in places)
                total += read or math.inf  # one that only renames it gives all of it to others
            elif user.opcode in _SLICES and places == [0]:
                total += user.shapes[0].bytes
            elif user.opcode in _UPDATES and places == [0]:
                continue
            elif user.opcode.removesuffix("-start") not in (*COLLECTIVES, "custom-call", "tuple"):
                return math.inf
        return total


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.strip().removeprefix("<=")) for size in dims.split(",") if size.strip())
        found.append(Shape(dtype, sizes, space is None or space[1] == "0"))
    return tuple(found)


def _constant(computation: Computation, name: str) -> float | None:
    found = computation.behind(name)
    while found.opcode in ("copy", "convert"):
        found = computation.behind(found.operands[0])
    number = re.fullmatch(r"-?\d+", found.given) if found.opcode == "constant" else None
    return None if number is None else float(number[0])


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and instruction.attribute("custom_call_target") == '"tpu_custom_call"'


def _said(instruction: Instruction, what: str) -> float:
    """What a kernel's cost estimate says; 0 without one."""
    found = re.search(rf'"{what}":"?(\d+)', instruction.attributes)
    return float(found[1]) if found else 0.0


def _dot_flops(dot: Instruction, left: Shape, right: Shape) -> float:
    contracted = [int(dim) for dim in (dot.attribute("lhs_contracting_dims") or "").split(",") if dim]
    return 2.0 * math.prod(dot.shapes[0].dims) * math.prod(left.dims[dim] for dim in contracted)


def _convolution_flops(convolution: Instruction, left: Shape, right: Shape) -> float:
    """Two for every pair of an output and a kernel element that meet within the input.

    Batches of a product are a spatial dimension there, whose outputs meet one kernel element each: `size=8 stride=7
    lhs_dilate=8` is a batch of 8.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels is not None, convolution.name
    ins, kernel, outs = labels[1], labels[2], labels[3]
    window = convolution.attribute("window") or ""
    fields = {key: value.split("x") for key, value in re.findall(r"(\w+)=(\S+)", window)}
    output = convolution.shapes[0].dims
    per_output = float(right.dims[kernel.index("i")])
    for dim in range(len(ins) - 2):
        size = right.dims[kernel.index(str(dim))]
        stride, base, spread = (int(fields.get(key, ["1"] * 9)[dim]) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        low = int(fields["pad"][dim].split("_")[0]) if "pad" in fields else 0
        extent = (left.dims[ins.index(str(dim))] - 1) * base + 1
        at = np.arange(output[outs.index(str(dim))])[:, None] * stride + np.arange(size) * spread - low
        meeting = int(((at >= 0) & (at < extent) & (at % base == 0)).sum())
        per_output *= meeting / output[outs.index(str(dim))]
    groups = int(convolution.attribute("batch_group_count") or 1)
    return 2.0 * math.prod(output) * per_output / groups


def _received(kind: str, collective: Instruction) -> float:
    """Bytes that reach a device over its links, in the ring that moves the fewest."""
    shapes = collective.shapes
    if collective.opcode.endswith("-start"):
        shapes = shapes[len(shapes) // 2 :] if kind != "collective-permute" else shapes[1:2]
    size, group = sum(shape.bytes for shape in shapes if shape.dims), _group(collective)
    if kind == "collective-permute":
        return size
    share = (group - 1) / group
    return size * {"all-reduce": 2 * share, "reduce-scatter": group - 1.0}.get(kind, share)


def _group(collective: Instruction) -> int:
    """How many devices take part together."""
    text = collective.attributes
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", named[2]))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(tiled[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    return 1
