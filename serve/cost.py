"""What a step costs on this device, and the width that pays best.

speedup(W') = tau(W') * T_plain / T_step(W'), with tau(W') = 1 + sum over slots j < W' of the share of steps that
accepted slots 1..j, measured while decoding. Steps are timed inside the loops that decode, where caches are updated
in place; drafting is timed alone, and verification is what is left of the step.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.generate import PlainState, plain_segment
from serve.decoder import DecodeState, Engine, draft, speculative_segment

REPEATS = 5
STEPS = 8  # per repeat
WIDTHS = (2, 3, 4, 5, 6, 8, 12, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Median milliseconds at batch 1."""

    plain_ms: float
    draft_ms: dict[int, float]  # by width
    verify_ms: dict[int, float]

    def expected_speedup(self, width: int, survival: Sequence[float]) -> float:
        """Speedup at `width` if slots survive as they did; `survival[j - 1]` is the share of steps accepting slot j."""
        tau = expected_tau(width, survival)
        return tau * self.plain_ms / (self.draft_ms[width] + self.verify_ms[width])


def expected_tau(width: int, survival: Sequence[float]) -> float:
    """Tokens per step at `width`: the bonus token and every surviving slot."""
    return 1 + float(sum(survival[: width - 1]))


def measure_cost(engine: Engine, state: DecodeState, plain: PlainState, widths: Sequence[int]) -> Cost:
    """Times every width on the given states, which stay as they are. Both must have room for STEPS full blocks."""
    drafts, verifies = {}, {}
    position = state.length - 1
    anchor = jnp.take_along_axis(state.tokens, position[:, None], axis=1)[:, 0]
    for width in widths:
        drafts[width] = _draft_ms(partial(_draft, engine, anchor, position, state.context, width=width))
        step = partial(speculative_segment, engine, num_steps=STEPS, width=width)
        verifies[width] = _loop_ms(step, state, lambda end: end.num_steps[0]) - drafts[width]
    plain_step = partial(plain_segment, engine.target, num_steps=STEPS)
    return Cost(_loop_ms(plain_step, plain, lambda end: end.length[0] - plain.length[0]), drafts, verifies)


def best_width(cost: Cost, survival: Sequence[float]) -> int:
    """The measured width with the highest expected speedup."""
    return max(cost.verify_ms, key=lambda width: cost.expected_speedup(width, survival))


def candidate_widths(width: int) -> list[int]:
    """Widths worth measuring for a drafter trained at `width`."""
    return sorted({w for w in WIDTHS if w < width} | {width})


def _draft_ms(function: Callable[[], Any]) -> float:
    """Median wall time of a compiled call, its result awaited."""
    jax.block_until_ready(function())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(STEPS):
            jax.block_until_ready(function())
        times.append((time.perf_counter() - began) / STEPS)
    return float(np.median(times)) * 1e3


def _loop_ms(segment: Callable[[Any], Any], state: Any, num_steps: Callable[[Any], jax.Array]) -> float:
    """Median wall time of one step of a segment that consumes its state."""
    jax.block_until_ready(segment(jax.tree.map(jnp.copy, state)))
    times = []
    for _ in range(REPEATS):
        fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        began = time.perf_counter()
        end = jax.block_until_ready(segment(fresh))
        times.append((time.perf_counter() - began) / max(int(num_steps(end)), 1))
    return float(np.median(times)) * 1e3


_draft = jax.jit(draft, static_argnames="width")
