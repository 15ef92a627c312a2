"""Caches are read as far as rows reach, where they lie: the same attention as written out in NumPy, nothing beyond the
reach looked at, no buffer copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention
from models.attention import Block, Blocks, Chain, Tree, attend
from models.cache import Slots
from models.decode import make_engine, prefill, segment
from models.drafters import SINGLE, Draft
from tests.tiny import make_artifact, make_target

HEADS, KV_HEADS, SIZE = 6, 2, 4


def arrays(*shapes: tuple[int, ...]) -> list[jnp.ndarray]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def by_hand(q, keys, values, visible) -> np.ndarray:
    """Softmax attention of one row in float64: q [T N H], keys and values [K S H], visible [T S]."""
    q, keys, values = (np.asarray(value, np.float64) for value in (q, keys, values))
    out = np.zeros(q.shape)
    for token, head in np.ndindex(*q.shape[:2]):
        kv = head // (q.shape[1] // keys.shape[0])
        seen = np.flatnonzero(visible[token])
        scores = keys[kv, seen] @ q[token, head] / q.shape[2] ** 0.5
        weights = np.exp(scores - scores.max())
        out[token, head] = weights @ values[kv, seen] / weights.sum()
    return out


@pytest.mark.parametrize("capacity", [5, 8, 21, 24])
@pytest.mark.parametrize("tokens", [1, 3])
def test_cached_attention(monkeypatch: pytest.MonkeyPatch, capacity: int, tokens: int):
    """Rows of different lengths, in pieces of 8 that do or do not divide the capacity."""
    monkeypatch.setattr(attention, "CHUNK", 8)
    q, keys, values = arrays((3, tokens, HEADS, SIZE), (3, KV_HEADS, SIZE, capacity), (3, KV_HEADS, capacity, SIZE))
    begins = np.array([0, capacity // 2, capacity - tokens])
    positions = begins[:, None] + np.arange(tokens)
    got = attend(q, Slots([keys], [values]), Chain(jnp.asarray(positions, jnp.int32)))
    for row in range(3):
        visible = np.arange(capacity) <= positions[row][:, None]
        expected = by_hand(q[row], keys[row].transpose(0, 2, 1), values[row], visible)
        np.testing.assert_allclose(got[row], expected, atol=2e-6)


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_cached_block_attention(monkeypatch: pytest.MonkeyPatch, window: int | None, causal: bool):
    """A block over its context in a cache is the block of the training mask over the same context."""
    monkeypatch.setattr(attention, "CHUNK", 8)
    width, capacity = 4, 21
    q, k, v, keys, values = arrays(
        (3, width, HEADS, SIZE),
        *[(3, width, KV_HEADS, SIZE)] * 2,
        (3, KV_HEADS, SIZE, capacity),
        (3, KV_HEADS, capacity, SIZE),
    )
    anchors = np.array([0, 7, 17])
    at, context = jnp.asarray(anchors, jnp.int32)[:, None], Slots([keys], [values])
    got = attend(q, context, Block(at, causal, window), (k, v))
    places = jnp.broadcast_to(jnp.arange(capacity), (3, capacity))
    packed = Blocks(at, jnp.zeros_like(at), places, jnp.zeros_like(places), causal, window)
    np.testing.assert_allclose(got, attend(q, context, packed, (k, v)), atol=2e-6)
    slots, far = np.arange(width), window or capacity + width
    for row in range(3):
        apart = anchors[row] + slots[:, None] - np.arange(capacity)
        before = (np.arange(capacity) < anchors[row]) & (apart < far)
        between = slots[:, None] - slots
        inside = (np.abs(between) < far) & ((between >= 0) | (not causal))
        whole = np.concatenate([before, inside], axis=1)
        both = [np.concatenate(pair, axis=1) for pair in ((keys[row].transpose(0, 2, 1), k[row].transpose(1, 0, 2)),)]
        mixed = np.concatenate([values[row], v[row].transpose(1, 0, 2)], axis=1)
        np.testing.assert_allclose(got[row], by_hand(q[row], both[0], mixed, whole), atol=2e-6)


def test_nothing_beyond_the_reach_is_read():
    """NaN in the pieces that no row reaches: read, even to weigh nothing, they would show."""
    capacity = 3 * attention.CHUNK
    q, keys, values = arrays((2, 1, HEADS, SIZE), (2, KV_HEADS, SIZE, capacity), (2, KV_HEADS, capacity, SIZE))
    beyond = jnp.arange(capacity) >= 2 * attention.CHUNK
    keys, values = jnp.where(beyond, jnp.nan, keys), jnp.where(beyond[:, None], jnp.nan, values)
    positions = jnp.array([[3], [attention.CHUNK + 5]], jnp.int32)
    assert np.isfinite(attend(q, Slots([keys], [values]), Chain(positions))).all()


@pytest.mark.parametrize(
    "draft", [None, SINGLE, Draft("drafter", 4), Draft("drafter", 4, copy=3), Draft("drafter", 4, tree=9)]
)
def test_caches_stay_in_place(draft: Draft | None):
    """The compiled loops of one row hold no copy of a cache: one a step would cost what its capacity costs."""
    capacity, length = 768, np.array([4], np.int32)
    engine = make_engine(make_target(), make_artifact())
    engine = engine if draft else engine.plain
    state = prefill(engine, np.ones((1, 8), np.int32), length, length + 20, length * 0, capacity=capacity)
    text = compiled(lambda engine, state: segment(engine, state, 8, draft or SINGLE), engine, state)
    assert_no_copy(text, capacity)


def test_caches_stay_in_place_under_a_tree():
    """The same of steps that read a tree."""
    capacity, target = 768, make_target()

    def loop(target, state):
        def step(_, state):
            root, cache = state
            nodes = jnp.ones((1, 6), jnp.int32) + root
            hidden, _, cache = target(nodes, Tree(root, jnp.array([[0, 0, 1, 2, 4]])), cache=cache)
            return root + 1 + jnp.argmax(target.logits(hidden)[:, 5], axis=-1) % 3, cache

        return jax.lax.fori_loop(0, 8, step, state)

    state = jnp.array([4]), target.empty_cache(1, capacity)
    assert_no_copy(compiled(loop, target, state), capacity)


def assert_no_copy(text: str, capacity: int):
    assert re.search(rf"f32\[(1,)?2,{capacity},8\]", text), "the caches are in the program under this shape"
    assert not re.findall(rf"= f32\[(?:1,)?2,(?:{capacity},8|8,{capacity})\]\S* copy\(.*", text)


def compiled(segment, constants, state) -> str:
    """The program of a segment that consumes `state`, its arguments given leaf by leaf, which the checker can bear."""
    fixed, fixed_tree = jax.tree.flatten(constants)
    leaves, tree = jax.tree.flatten(state)

    def flat(fixed, leaves):
        return jax.tree.leaves(segment(jax.tree.unflatten(fixed_tree, fixed), jax.tree.unflatten(tree, leaves)))

    return jax.jit(flat, donate_argnums=1).lower(fixed, leaves).compile().as_text()
