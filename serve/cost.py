"""What a step costs on this device: T_plain, T_draft(W') and T_verify(W'), measured once and kept on disk.

Steps are timed inside the loops that decode, where caches are updated in place; drafting is timed in a loop of its own,
and verification is what is left of the step, so that the two add up to a step and the call's overhead, the same in both
loops, is in one of them alone. Owned here: costs/<digest>.json in the cache directory, named by everything that decides
a step's cost: device, usable cores, JAX and this code, target, drafter shape, type, context capacity, rows, sampling.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from configs.console import say
from configs.device import cache_directory, drop_programs, return_unused_heap
from configs.files import write_json
from models.decode import DecodeState, Engine, prefill, propose, segment
from models.drafters import SINGLE, TREES, Draft
from models.sampling import keys
from models.verify import GREEDILY, Speculation

REPEATS = 7
STEPS = 8  # per repeat, of one row; fewer of several, whose steps take longer
TOGETHER = 4  # widths timed in turn: all at once would be as many large programs in memory
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128)
FLAT = 2.0  # plain steps; a tree spends most of its nodes on what is not said, so verifying them has to be cheap


@dataclasses.dataclass(frozen=True)
class Cost:
    """Median milliseconds of a step of the rows it was measured with."""

    plain_ms: float
    draft_ms: dict[int, float]  # by width; 0 at width 1
    verify_ms: dict[int, float]
    tree_ms: dict[int, float] = dataclasses.field(default_factory=dict)  # of whole steps, by nodes (`tree_drafts`)

    def step_ms(self, kind: Literal["drafter", "ngram"], width: int) -> float:
        """One speculative step; n-gram drafts cost nothing worth counting."""
        return self.verify_ms[width] + (self.draft_ms[width] if kind == "drafter" else 0.0)

    def drafting_ms(self, draft: Draft) -> float:
        """One step of `draft` in which no row copies."""
        return self.tree_ms[draft.tree] if draft.tree else self.step_ms(draft.kind, draft.width)

    def covers(self, draft: Draft) -> bool:
        """Whether steps of `draft` were timed."""
        sizes = {draft.width, draft.copy or draft.width, *draft.cuts}
        return sizes <= self.verify_ms.keys() and (not draft.tree or draft.tree in self.tree_ms)

    def expected_speedup(self, width: int, survival: Sequence[float]) -> float:
        """Speedup at `width` if slots survive as they did; `survival[j - 1]` is the share of steps accepting slot j."""
        return expected_tau(width, survival) * self.plain_ms / self.step_ms("drafter", width)


def expected_tau(width: int, survival: Sequence[float]) -> float:
    """Tokens per step at `width`: the bonus token and every surviving slot."""
    return 1 + float(sum(survival[: width - 1]))


def candidate_widths(width: int) -> list[int]:
    """Widths worth measuring for a drafter trained at `width`; 1 is a plain step that keeps the drafter's context."""
    return sorted({w for w in WIDTHS if w < width} | {width})


def tree_drafts(drafter: Any) -> list[Draft]:
    """The trees worth measuring, of a drafter that can draft any."""
    fitting = {nodes: min(width, drafter.width) for nodes, width in TREES.items() if hasattr(drafter, "propose_tree")}
    return [Draft("drafter", width, tree=nodes) for nodes, width in fitting.items() if width > 1]


def measure_cost(
    engine: Engine,
    state: DecodeState,
    plain: DecodeState,
    widths: Sequence[int],
    speculation: Speculation = GREEDILY,
    *,
    trees: Sequence[Draft] = (),
) -> Cost:
    """Times every width and tree on the given states, which stay as they are: of `engine` and of `engine.plain`, both
    with room for as many positions after their stops as a step may verify.

    They alternate, one segment each in turn, so that a machine that slows down slows all of them.
    """
    num_steps = max(STEPS // len(state.rows.length), 2)
    options: dict[str, Any] = {"num_steps": num_steps, "speculation": speculation}
    loops: dict[Any, Callable[[Any], Any]] = {
        ("step", w): partial(segment, engine, draft=Draft("drafter", w), **options) for w in widths
    }
    loops |= {draft: partial(segment, engine, draft=draft, **options) for draft in trees}
    loops |= {("draft", w): partial(draft_segment, engine, width=w, **options) for w in widths if w > 1}
    loops["plain"] = partial(segment, engine.plain, draft=SINGLE, **options)
    times: dict[Any, list[float]] = {name: [] for name in loops}
    for repeat in range(REPEATS + 1):  # the first compiles
        for name, loop in loops.items():
            taken = _step_ms(loop, plain if name == "plain" else state, num_steps)
            times[name] += [taken] if repeat else []
            if not repeat:
                return_unused_heap()
    median = {name: float(np.median(values)) for name, values in times.items()}
    drafts = {w: median.get(("draft", w), 0.0) for w in widths}
    verifying = {w: median["step", w] - drafts[w] for w in widths}
    return Cost(median["plain"], drafts, verifying, {draft.tree: median[draft] for draft in trees})


@partial(jax.jit, static_argnames=("width", "speculation"), donate_argnames="state")
def draft_segment(
    engine: Engine, state: DecodeState, num_steps: int | jax.Array, width: int, speculation: Speculation = GREEDILY
) -> DecodeState:
    """`state` after `num_steps` drafts, each from an anchor that the one before it drafted; nothing is committed."""

    def again(_: jax.Array, state: DecodeState) -> DecodeState:
        rows = state.rows
        key = keys(rows.seed, rows.length - 1)
        proposal, _copied = propose(engine, state, Draft("drafter", width), speculation, key, "none")
        tokens = rows.tokens.at[jnp.arange(len(key)), rows.length - 1].set(proposal.tokens[:, -1])
        return dataclasses.replace(state, rows=dataclasses.replace(rows, tokens=tokens))

    return jax.lax.fori_loop(0, num_steps, again, state)


def time_steps(
    engine: Engine,
    capacity: int,
    widths: Sequence[int],
    speculation: Speculation = GREEDILY,
    *,
    rows: int = 1,
    page: int | None = None,
) -> Cost:
    """What steps of `rows` rows cost with `capacity` positions of context, a quarter of them filled, in slots or pages.

    Widths are timed TOGETHER at a time, each few with the plain loop among them, which they are measured by; then, of
    one row, the trees, until steps take more than FLAT plain ones.
    """
    vocab_size = engine.target.config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab_size, (rows, capacity // 4)).astype(np.int32)
    length, zero = np.full(rows, ids.shape[1], np.int32), np.zeros(rows, np.int32)
    trees = tree_drafts(engine.drafter) if rows == 1 else []
    stop = np.full(rows, timed_stop(capacity, [*widths, *(draft.widest for draft in trees)]), np.int32)
    state = prefill(engine, ids, length, stop, zero, capacity=capacity, page=page)
    plain = prefill(engine.plain, ids, length, stop, zero, capacity=capacity, page=page)
    parts = []
    for first in range(0, len(widths), TOGETHER):
        drop_programs()
        parts.append(measure_cost(engine, state, plain, widths[first : first + TOGETHER], speculation))
    cost = joined(parts)
    taken = cost.verify_ms[max(width for width in widths if width <= min(TREES))] / cost.plain_ms
    for draft in trees:
        if taken > FLAT:
            break
        drop_programs()
        parts.append(part := measure_cost(engine, state, plain, [], speculation, trees=[draft]))
        taken = part.tree_ms[draft.tree] / part.plain_ms
    return joined(parts)


def timed_stop(capacity: int, widths: Sequence[int]) -> int:
    """Where the rows that are timed end: three quarters on, or as far as the widest block has room."""
    return min(3 * capacity // 4, capacity + 1 - max(widths))


def joined(parts: Sequence[Cost]) -> Cost:
    """One cost of several measured apart, on the scale of the first one's plain loop."""
    draft_ms, verify_ms, tree_ms = {}, {}, {}
    for part in parts:
        scale = parts[0].plain_ms / part.plain_ms
        draft_ms |= {width: ms * scale for width, ms in part.draft_ms.items()}
        verify_ms |= {width: ms * scale for width, ms in part.verify_ms.items()}
        tree_ms |= {nodes: ms * scale for nodes, ms in part.tree_ms.items()}
    return Cost(parts[0].plain_ms, draft_ms, verify_ms, tree_ms)


def kept_cost(identity: Mapping[str, Any], measure: Callable[[], Cost]) -> Cost:
    """The cost on disk under `identity`, measured and written where it is not there or damaged."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_directory() / "costs" / f"{digest}.json"
    if file.is_file():
        try:
            return _parse(json.loads(file.read_bytes())["cost"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            say(f"cost: {file}: damaged ({type(error).__name__}: {error}); measuring anew")
    cost = measure()
    try:
        write_json(file, {"identity": identity, "cost": dataclasses.asdict(cost)})
    except OSError as error:
        say(f"cost: not kept, and measured again next time ({file}: {error.strerror})")
    return cost


def _parse(raw: Any) -> Cost:
    """The cost in a file's JSON.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    names = ("draft_ms", "verify_ms", "tree_ms")
    draft_ms, verify_ms, tree_ms = ({int(size): float(ms) for size, ms in raw[name].items()} for name in names)
    plain_ms = float(raw["plain_ms"])
    positive = [plain_ms, *verify_ms.values(), *tree_ms.values()]
    if draft_ms.keys() != verify_ms.keys() or not all(math.isfinite(ms) and ms > 0 for ms in positive):
        raise ValueError("not the cost of steps")  # ours: caught above
    return Cost(plain_ms, draft_ms, verify_ms, tree_ms)


def surroundings(speculation: Speculation) -> dict[str, Any]:
    """What decides a step's cost beside target, drafter and device: code, JAX, cores, rows, and how steps sample."""
    root = Path(__file__).parent.parent
    files = [*sorted((root / "models").rglob("*.py")), root / "serve" / "cost.py"]
    sampling = speculation.sampling
    drawn = {
        "top_k": sampling.top_k,
        "top_p": sampling.top_p < 1.0,
        "min_p": sampling.min_p > 0.0,
        "deterministic": speculation.deterministic,
        "block": speculation.block,
    }
    return {
        "code": hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16],
        "jax": [importlib.metadata.version(name) for name in ("jax", "jaxlib")],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "rows": 1,
        "sampling": "greedy" if sampling.greedy else drawn,
    }


def _step_ms(loop: Callable[[Any], Any], state: Any, num_steps: int) -> float:
    """Wall time of one of the up to `num_steps` steps of a loop that consumes its state."""
    fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    began = time.perf_counter()
    end = jax.block_until_ready(loop(fresh))
    return (time.perf_counter() - began) * 1e3 / (_steps(state, end) or num_steps)


def _steps(before: DecodeState, after: DecodeState) -> int:
    """How many steps lie between two states that committed any; drafting, which commits nothing, goes on to its end."""
    return int((after.rows.num_steps - before.rows.num_steps).max())
