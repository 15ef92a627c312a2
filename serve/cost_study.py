"""What a step costs over width, batch and context, measured on the device at hand or estimated for a TPU.

    T_verify(B, W, S)  the target's forward pass over W tokens of each of B rows, each row after S positions of its
                       cache, with the LM head and the choice of a token after every slot
    T_draft(B, W, S)   the drafter's proposal of a block, and its reading of the features of such a step

Both are programs of their own, not loops; a timing waits for the tokens that the last of a few calls chose, each of
which needs the cache that the one before left. Estimates are `models.aot`'s of the same programs. A target's layers
are alike, so for an estimate it is compiled with FEWER and with MORE of them, and the difference is what a layer
takes; the drafter is compiled whole. Estimates are kept in the cache directory under estimates/<digest>.json.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from configs.console import say
from configs.device import cache_directory, drop_programs
from configs.files import write_json
from models import aot
from models.attention import CHUNK, FEW, Chain
from models.cache import Cache
from models.decode import Engine, abstract_state, empty_state
from models.drafters import Nothing
from models.roofline import Machine, context_bytes, num_matmul_weights, ridge_width, verify_work
from models.rows import Rows, make_rows
from models.sampling import keys
from models.sharding import abstract
from models.target import Target, TargetConfig
from models.verify import GREEDILY, all_finite
from serve.cost import surroundings

REPEATS = 7
CALLS = 3  # per repeat
FEWER, MORE = 2, 4  # layers that are compiled
FREE = 1.10  # times one token's step: what takes no longer is called free


@dataclasses.dataclass(frozen=True)
class Curve:
    """Milliseconds of steps over the width, at one batch and context; None where they do not fit the memory."""

    batch: int
    context: int
    verify_ms: dict[int, float]
    draft_ms: dict[int, float]  # empty without a drafter
    floor_ms: dict[int, float]  # of verifying (`models.roofline`)
    ridge: float  # the floor's own knee
    spread_ms: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)  # quartiles of verify_ms

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"free_to": free_to(self.verify_ms), "knee": knee(self.verify_ms)}


def free_to(ms: Mapping[int, float]) -> int:
    """The largest width up to which every step takes at most FREE times the narrowest one's; 0 without any."""
    widths, free = sorted(ms), 0
    for width in widths:
        if ms[width] > FREE * ms[widths[0]]:
            break
        free = width
    return free


def knee(ms: Mapping[int, float]) -> float | None:
    """Where the line through the two widest steps meets the narrowest one's time: the corner of a hinge.

    None where there is no such line: fewer than three widths, or the widest step is free or cheaper than the one
    before it.
    """
    widths = sorted(ms)
    if len(widths) < 3 or free_to(ms) == widths[-1]:
        return None
    before, last = widths[-2:]
    slope = (ms[last] - ms[before]) / (last - before)
    if slope <= 0:
        return None
    return max(float(widths[0]), last - (ms[last] - ms[widths[0]]) / slope)


@partial(jax.jit, donate_argnames="cache")
def verify_once(
    target: Target, cache: Cache, tokens: Int[Array, "B W"], positions: Int[Array, "B W"]
) -> tuple[Int[Array, "B W"], Bool[Array, " B"], Cache]:
    """The target's own token after every slot, whether its logits are finite, and the cache with the block in it."""
    hidden, _, filled = target(tokens, Chain(positions), cache=cache)
    logits = target.logits(hidden)
    assert filled is not None
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), all_finite(logits), filled


@partial(jax.jit, static_argnames="width", donate_argnames="state")
def draft_once(
    engine: Engine, state: Any, rows: Rows, features: Float[Array, "B W LE"], width: int
) -> tuple[Int[Array, "B _"], Any]:
    """A proposal after every row's anchor, and the drafter's state with the features of the block it makes."""
    key = keys(rows.seed, rows.length - 1)
    proposal = engine.drafter.propose(engine.target, state, rows, key=key, width=width, speculation=GREEDILY)
    block = jnp.concatenate([rows.anchors[:, None], proposal.tokens], axis=1)
    positions = rows.length[:, None] - 1 + jnp.arange(width)
    return proposal.tokens, engine.drafter.read(state, features, block, positions)


def measure(engine: Engine, batch: int, context: int, widths: Sequence[int], machine: Machine) -> Curve:
    """The steps of one batch and context on the device at hand, the widths in turn."""
    config, drafts = engine.target.config, not isinstance(engine.drafter, Nothing)
    drop_programs()
    capacity = context + max(widths)
    state = empty_state(engine, batch, capacity)
    length = jnp.full(batch, context + 1)
    rows = make_rows(jnp.ones((batch, capacity), jnp.int32), length, length, jnp.zeros_like(length))
    rng, carried = np.random.default_rng(0), {"verify": state.cache, "draft": state.drafter}
    runs: dict[tuple[str, int], Callable[[], Any]] = {}

    def verifying(width: int) -> Callable[[], Any]:
        tokens = jnp.asarray(rng.integers(0, config.vocab_size, (batch, width)), jnp.int32)
        positions = jnp.broadcast_to(context + jnp.arange(width), (batch, width))

        def run() -> Any:
            chosen, _, carried["verify"] = verify_once(engine.target, carried["verify"], tokens, positions)
            return chosen

        return run

    def drafting(width: int) -> Callable[[], Any]:
        size = (batch, width, feature_size(engine))
        features = jnp.asarray(rng.standard_normal(size), engine.target.dtype)

        def run() -> Any:
            tokens, carried["draft"] = draft_once(engine, carried["draft"], rows, features, width)
            return tokens

        return run

    for width in widths:
        runs["verify", width] = verifying(width)
        if drafts and width > 1:
            runs["draft", width] = drafting(width)
    times: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    for repeat in range(REPEATS + 1):  # the first compiles
        for name, run in runs.items():
            taken = call_ms(run)
            times[name] += [taken] if repeat else []
    low, median, high = np.percentile(list(times.values()), [25, 50, 75], axis=1)
    found = dict(zip(times, zip(low, median, high, strict=True), strict=True))
    verify = {width: float(found["verify", width][1]) for width in widths}
    spread = {width: (float(found["verify", width][0]), float(found["verify", width][2])) for width in widths}
    draft = {width: float(found["draft", width][1]) for width in widths if ("draft", width) in found}
    return curve(config, engine.target.dtype.itemsize, machine, batch, context, verify, draft, spread)


def call_ms(run: Callable[[], Any]) -> float:
    """Wall time of one of CALLS calls, each of which needs what the one before left."""
    began, last = time.perf_counter(), None
    for _ in range(CALLS):
        last = run()
    jax.block_until_ready(last)
    return (time.perf_counter() - began) * 1e3 / CALLS


def curve(
    config: TargetConfig,
    itemsize: int,
    machine: Machine,
    batch: int,
    context: int,
    verify: dict[int, float],
    draft: dict[int, float],
    spread: dict[int, tuple[float, float]],
) -> Curve:
    """The curve of these times beside its roofline."""
    given = {"batch": batch, "context": context}
    floors = {width: verify_work(config, itemsize, width=width, **given).ms(machine) for width in verify}
    ridge = ridge_width(config, itemsize, machine, **given)
    if draft:
        draft = {1: 0.0} | draft
    return Curve(batch, context, verify, draft, floors, ridge, spread)


def type_of(target: Target) -> jnp.dtype:
    """What it computes in, weights or not."""
    return target.embedding.get_value().dtype


def feature_size(engine: Engine) -> int:
    drafter = engine.drafter
    return (len(drafter.taps) + bool(drafter.final)) * engine.target.config.hidden_size


def estimate(engine: Engine, batch: int, context: int, widths: Sequence[int], chips: aot.Topology) -> Curve:
    """The steps of one batch and context on one chip of a topology, for a target and a drafter without weights."""
    config, itemsize = engine.target.config, type_of(engine.target).itemsize
    chip = chips.chip
    machine = Machine(chip.name, chip.peak, chip.bandwidth)
    verify, draft = {}, {}
    for width in widths:
        weights = num_matmul_weights(config) + (0 if config.tied_head else config.vocab_size * config.hidden_size)
        held = weights * itemsize + batch * (context + width) * context_bytes(config, itemsize)
        if held > aot.FITS * chip.memory:
            break
        fewer, more = (estimated_verify(shallow(engine.target, n), batch, context, width, chips) for n in (FEWER, MORE))
        drafts = width > 1 and not isinstance(engine.drafter, Nothing)
        drafting = estimated_draft(engine, batch, context, width, chips) if drafts else 0.0
        if fewer is None or more is None or drafting is None:
            break
        verify[width] = fewer + (config.num_layers - FEWER) * (more - fewer) / (MORE - FEWER)
        if drafts:
            draft[width] = drafting
    return curve(config, itemsize, machine, batch, context, verify, draft, {})


def shallow(target: Target, num_layers: int) -> Target:
    """The target with its first layers alone."""
    made = copy.copy(target)
    made.layers = nnx.List(list(target.layers)[:num_layers])
    made.config = dataclasses.replace(target.config, num_layers=num_layers)
    return made


def estimated_verify(target: Target, batch: int, context: int, width: int, chips: aot.Topology) -> float | None:
    """Milliseconds of `verify_once`; None where it needs more memory than a chip has."""
    assert target.mesh is not None
    tokens = abstract(jax.ShapeDtypeStruct((batch, width), jnp.int32), ("batch",), target.mesh)
    engine = Engine(target, Nothing())

    def lowered() -> Any:
        cache = abstract_state(engine, batch, context + width).cache
        return verify_once.lower(target, cache, tokens, tokens)

    return kept_estimate(
        lowered,
        chips,
        [target.config, str(type_of(target))],
        ["verify", batch, context, width],
        pieces(batch, context + width),
    )


def estimated_draft(engine: Engine, batch: int, context: int, width: int, chips: aot.Topology) -> float | None:
    """The same of `draft_once`."""
    mesh = engine.target.mesh
    assert mesh is not None
    shape = (batch, width, feature_size(engine))
    features = abstract(jax.ShapeDtypeStruct(shape, type_of(engine.target)), ("batch",), mesh)

    def lowered() -> Any:
        state = abstract_state(engine, batch, context + width)
        return draft_once.lower(engine, state.drafter, state.rows, features, width)

    arrays = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(engine.drafter)]
    described = [engine.target.config, type(engine.drafter).__name__, engine.drafter.taps, arrays]
    return kept_estimate(lowered, chips, described, ["draft", batch, context, width], pieces(batch, context))


def pieces(batch: int, reach: int) -> int:
    """In how many pieces attention reads that many positions of a cache (`models.attention`)."""
    return math.ceil(reach / CHUNK) if batch <= FEW else 1


def kept_estimate(
    lowered: Callable[[], Any], chips: aot.Topology, shape: Any, step: Sequence[Any], trips: int
) -> float | None:
    """The milliseconds estimated for a program whose loop over the cache runs `trips` times, compiled once: kept under
    everything that decides them; None where it needs more memory than a chip has."""
    identity = {"chip": chips.name, "shape": repr(shape), "step": [*step, trips], **surroundings(GREEDILY)}
    identity |= {"study": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], "compiler": aot.compiler()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_directory() / "estimates" / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none is kept, or half of one
        return json.loads(file.read_bytes())["ms"]
    found, seconds, _ = aot.examine(lowered(), chips, {}, trips=[trips])
    ms = 1e3 * found.estimate if isinstance(found, aot.Report) else None
    shown = "does not fit" if ms is None else f"{ms:.3f} ms"
    say(f"cost: {' '.join(map(str, step))} on {chips.name}: {shown} (compiled in {seconds:.0f} s)")
    write_json(file, {"identity": identity, "ms": ms})
    drop_programs()
    return ms
