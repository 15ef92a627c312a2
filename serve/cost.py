"""What a step costs on this device, and the width that pays best.

speedup(W') = tau(W') * T_plain / (T_draft(W') + T_verify(W')), with tau(W') = 1 + sum over slots j < W' of the share
of steps that accepted slots 1..j, measured while decoding.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.generate import PlainState, plain_step
from models.target import Target
from serve.decoder import DecodeState, Engine, draft, verify

REPEATS = 9
WIDTHS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Median milliseconds of one forward each, batch 1, dispatch included."""

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
    """Times single steps on the given states, which stay as they are."""
    drafts, verifies = {}, {}
    position = state.length - 1
    anchor = jnp.take_along_axis(state.tokens, position[:, None], axis=1)[:, 0]
    for width in widths:
        drafts[width] = median_ms(partial(_draft, width=width), engine, anchor, position, state.context)
        block = jnp.broadcast_to(anchor[:, None], (anchor.shape[0], width))
        verifies[width] = median_ms(_verify, engine, block, state)
    return Cost(median_ms(_plain, engine.target, plain), drafts, verifies)


def best_width(cost: Cost, survival: Sequence[float]) -> int:
    """The measured width with the highest expected speedup."""
    return max(cost.verify_ms, key=lambda width: cost.expected_speedup(width, survival))


def candidate_widths(width: int) -> list[int]:
    """Widths worth measuring for a drafter trained at `width`."""
    return sorted({w for w in WIDTHS if w < width} | {width})


def median_ms(function: Callable[..., Any], *arguments: Any) -> float:
    """Median wall time of a compiled call, its result awaited."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


_draft = jax.jit(draft, static_argnames="width")


@jax.jit
def _verify(engine: Engine, block: jax.Array, state: DecodeState) -> Any:
    return verify(engine, block, state)[0]


@jax.jit
def _plain(target: Target, state: PlainState) -> Any:
    return plain_step(target, state, 0.0).tokens
