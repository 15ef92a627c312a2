"""A write past a cache's capacity is never moved over valid positions in silence: the row it belongs to becomes NaN and
ends as a fault, no other row notices."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Chain
from models.cache import Mirrored, Slots, empty_pages, empty_slots
from models.decode import insert, make_engine, prefill, segment
from models.drafters import Draft
from tests.tiny import make_artifact, make_target

KINDS = {"slots": empty_slots, "pages": lambda *about: empty_pages(*about, page=4)}
KINDS["mirrored"] = lambda *about: Mirrored(KINDS["pages"](*about), KINDS["slots"](*about))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_only_the_row_without_room(kind, rows: int):
    """Three positions into a capacity of 8, the last row at 6, the others at 5."""
    cache = kind(1, (rows, 2, 8, 4), jnp.dtype("float32"))
    new = Slots([jnp.ones((rows, 2, 4, 3))], [jnp.ones((rows, 2, 3, 4))])
    at = jnp.array([5] * (rows - 1) + [6])
    found = cache.write(new, at).slots(jnp.broadcast_to(jnp.arange(8), (rows, 8)))
    for row in range(rows - 1):
        assert np.asarray(found.values[0])[row, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
        assert np.asarray(found.keys[0])[row, 0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert np.isnan(found.values[0][-1]).any()
    assert np.isnan(found.keys[0][-1]).any()


@pytest.mark.parametrize("page", [None, 4])
def test_decoding_ends_as_a_fault(page: int | None):
    """Room for the prompt and three steps of four, not for what is asked; the other row has enough."""
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    prompt, length = jnp.full((2, 4), 7), jnp.array([4, 4])
    state = prefill(engine, prompt, length, jnp.array([16, 8]), length, capacity=16, page=page)
    state = segment(engine, state, 40, Draft("drafter", 4))
    assert (state.rows.fault > 0).tolist() == [True, False]


@pytest.mark.parametrize("page", [None, 4])
def test_a_prompt_longer_than_the_cache_is_our_mistake(page: int | None):
    target = make_target()
    tokens = jnp.ones((1, 9), jnp.int32)
    with pytest.raises(AssertionError, match="9 positions into a cache of 8"):
        target(tokens, Chain(jnp.arange(9)[None]), cache=target.empty_cache(1, 8, page))


@pytest.mark.parametrize("page", [None, 4])
def test_who_comes_after_a_fault_notices_nothing(page: int | None):
    """A row that ended in no numbers is given to another prompt: what it writes is what it writes in a fresh row."""
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    prompt, length = jnp.full((2, 4), 7), jnp.array([4, 4])
    state = prefill(engine, prompt, length, jnp.array([16, 8]), length, capacity=16, page=page)
    state = segment(engine, state, 40, Draft("drafter", 4))
    one, other = jnp.array([3]), jnp.array([[9, 8, 5]])
    state = insert(engine, state, jnp.array([0]), other, one, one + 6, one)
    state = segment(engine, state, 40, Draft("drafter", 4)).rows
    fresh = prefill(engine, other, one, one + 6, one, capacity=16, page=page)
    fresh = segment(engine, fresh, 40, Draft("drafter", 4)).rows
    assert int(state.fault[0]) == 0
    assert state.tokens[0, :9].tolist() == fresh.tokens[0, :9].tolist()
    assert state.runs[0, : int(state.num_steps[0])].tolist() == fresh.runs[0, : int(fresh.num_steps[0])].tolist()
