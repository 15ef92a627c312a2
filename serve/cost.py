"""What a step costs on this device: T_plain, T_draft(W') and T_verify(W'), measured once and kept on disk.

Steps are timed inside the loops that decode, where caches are updated in place; drafting is timed alone, and
verification is what is left of the step. Owned here: costs/<digest>.json in the cache directory, one per device,
target, drafter shape, type and context capacity.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.device import cache_directory, drop_programs, return_unused_heap
from configs.files import write_json
from models.generate import PlainState, empty_rows, insert, plain_segment
from models.sampling import keys
from serve.decoder import DecodeState, Engine, Speculation, draft, speculative_segment, start

REPEATS = 7
STEPS = 8  # per repeat
TOGETHER = 4  # widths timed in turn: all at once would be as many large programs in memory
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Median milliseconds of a step of all rows."""

    plain_ms: float
    draft_ms: dict[int, float]  # by width; 0 at width 1
    verify_ms: dict[int, float]

    def step_ms(self, drafts: str, width: int) -> float:
        """One speculative step; n-gram drafts cost nothing worth counting."""
        return self.verify_ms[width] + (self.draft_ms[width] if drafts == "drafter" else 0.0)

    def expected_speedup(self, width: int, survival: Sequence[float]) -> float:
        """Speedup at `width` if slots survive as they did; `survival[j - 1]` is the share of steps accepting slot j."""
        return expected_tau(width, survival) * self.plain_ms / self.step_ms("drafter", width)


def expected_tau(width: int, survival: Sequence[float]) -> float:
    """Tokens per step at `width`: the bonus token and every surviving slot."""
    return 1 + float(sum(survival[: width - 1]))


def candidate_widths(width: int) -> list[int]:
    """Widths worth measuring for a drafter trained at `width`; 1 is the plain loop."""
    return sorted({w for w in WIDTHS if w < width} | {width})


def measure_cost(engine: Engine, state: DecodeState, plain: PlainState, widths: Sequence[int]) -> Cost:
    """Times every width on the given states, which stay as they are. Both must have room for STEPS full blocks.

    The ways alternate, one segment each in turn, so that a machine that slows down slows all of them.
    """
    drafting = {w: partial(_draft, engine, state, Speculation(w)) for w in widths if w > 1}
    segments: dict[Any, Callable[[Any], Any]] = {
        w: partial(speculative_segment, engine, num_steps=STEPS, how=Speculation(w)) for w in widths
    }
    segments["plain"] = partial(plain_segment, engine.target, num_steps=STEPS)
    times: dict[Any, list[float]] = {name: [] for name in [*segments, *((w, "draft") for w in drafting)]}
    for repeat in range(REPEATS + 1):  # the first compiles
        for name, segment in segments.items():
            taken = _plain_ms(segment, plain) if name == "plain" else _step_ms(segment, state)
            times[name] += [taken] if repeat else []
            if not repeat:
                return_unused_heap()
        for w, function in drafting.items():
            taken = _call_ms(function)
            times[(w, "draft")] += [taken] if repeat else []
    median = {name: float(np.median(values)) for name, values in times.items()}
    drafts = {w: median.get((w, "draft"), 0.0) for w in widths}
    return Cost(median["plain"], drafts, {w: median[w] - drafts[w] for w in widths})


def time_steps(engine: Engine, capacity: int, widths: Sequence[int]) -> Cost:
    """What steps cost at batch 1 with `capacity` positions of context, a quarter of them filled.

    Widths are timed TOGETHER at a time, each few with the plain loop among them, which they are measured by.
    """
    target = engine.target
    ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (1, capacity // 4)).astype(np.int32)
    length, zero = np.array([ids.shape[1]], np.int32), np.zeros(1, np.int32)
    stop = length + capacity // 2
    state = start(engine, ids, length, stop, zero, capacity=capacity)
    plain = insert(target, empty_rows(target, 1, capacity), zero, ids, length, stop, zero)
    parts = []
    for first in range(0, len(widths), TOGETHER):
        drop_programs()
        parts.append(measure_cost(engine, state, plain, widths[first : first + TOGETHER]))
    return joined(parts)


def joined(parts: Sequence[Cost]) -> Cost:
    """One cost of several measured apart, on the scale of the first one's plain loop."""
    draft_ms, verify_ms = {}, {}
    for part in parts:
        scale = parts[0].plain_ms / part.plain_ms
        draft_ms |= {width: ms * scale for width, ms in part.draft_ms.items()}
        verify_ms |= {width: ms * scale for width, ms in part.verify_ms.items()}
    return Cost(parts[0].plain_ms, draft_ms, verify_ms)


def kept_cost(identity: Mapping[str, Any], measure: Callable[[], Cost]) -> Cost:
    """The cost on disk under `identity`, measured and written where it is not there."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_directory() / "costs" / f"{digest}.json"
    if file.is_file():
        raw = json.loads(file.read_text())["cost"]
        by_width = {name: {int(width): ms for width, ms in raw[name].items()} for name in ("draft_ms", "verify_ms")}
        return Cost(raw["plain_ms"], **by_width)
    cost = measure()
    write_json(file, {"identity": identity, "cost": dataclasses.asdict(cost)})
    return cost


def _call_ms(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        jax.block_until_ready(function())
    return (time.perf_counter() - began) / STEPS * 1e3


def _step_ms(segment: Callable[[Any], Any], state: DecodeState) -> float:
    """Wall time of one step of a segment that consumes its state."""
    end, taken = _timed(segment, state)
    return taken / max(int((end.num_steps - state.num_steps).max()), 1)


def _plain_ms(segment: Callable[[Any], Any], state: PlainState) -> float:
    end, taken = _timed(segment, state)
    return taken / max(int((end.length - state.length).max()), 1)


def _timed(segment: Callable[[Any], Any], state: Any) -> tuple[Any, float]:
    """The segment's end and its milliseconds."""
    fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    began = time.perf_counter()
    end = jax.block_until_ready(segment(fresh))
    return end, (time.perf_counter() - began) * 1e3


@partial(jax.jit, static_argnames="how")
def _draft(engine: Engine, state: DecodeState, how: Speculation) -> jax.Array:
    return draft(engine, state, how, keys(state.seed, state.length))[0]
