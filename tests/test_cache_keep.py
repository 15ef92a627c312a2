"""After a tree was verified, `keep` leaves the accepted nodes where their text has them: decoding goes on as if only
they had been written."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Chain, Tree
from models.cache import Slots, empty_pages, empty_slots
from tests.tiny import make_target

KINDS = {"slots": empty_slots, "pages": lambda *about: empty_pages(*about, page=3)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_by_hand(kind):
    """Starts 7 and 2, path 2 3 and 1 3: what lies at 9 and 10 moves to 8 and 9; at 3 and 5 to 3 and 4."""
    cache = kind(2, (2, 2, 12, 4), jnp.dtype("float32"))
    numbers = jnp.broadcast_to(jnp.arange(12.0), (2, 2, 4, 12))  # every position holds its own number
    whole = Slots([numbers, -numbers], [10 * numbers.swapaxes(2, 3), -10 * numbers.swapaxes(2, 3)])
    cache = cache.write(whole, jnp.zeros(2, jnp.int32))
    kept = cache.keep(jnp.array([7, 2]), jnp.array([[2, 3], [1, 3]]))
    found = kept.slots(jnp.broadcast_to(jnp.arange(12), (2, 12)))
    expected = [[*range(8), 9, 10, 10, 11], [0, 1, 2, 3, 5, 5, *range(6, 12)]]
    for row in range(2):
        for part, times in zip((*found.keys, *found.values), (1, -1, 10, -10), strict=True):
            lines = part[row] if abs(times) == 1 else part[row].swapaxes(1, 2)
            assert (np.asarray(lines) == times * np.asarray(expected[row])).all()


def test_a_chain_moves_nothing():
    cache = empty_slots(1, (1, 2, 8, 4), jnp.dtype("float32"))
    assert cache.keep(jnp.array([3]), None) is cache


@pytest.mark.parametrize("page", [None, 5])
def test_decoding_goes_on(page: int | None):
    """Nodes 2 4 of one tree and 1 2 3 of the other; the next tokens' hidden states, either way."""
    target, rng = make_target(), np.random.default_rng(0)
    rows, nodes, after = (jnp.asarray(rng.integers(3, 60, (2, size))) for size in (9, 6, 3))
    start, accepted = jnp.array([9, 6]), [[2, 4], [1, 2, 3]]
    prompt = Chain(jnp.broadcast_to(jnp.arange(9), (2, 9)))
    _, _, cache = target(rows, prompt, cache=target.empty_cache(2, 32, page))
    tree = Tree(start, jnp.array([[0, 0, 1, 2, 4], [0, 1, 2, 3, 4]]))
    _, _, grown = target(nodes, tree, cache=cache)
    grown = grown.keep(start, jnp.array([[2, 4, 5], [1, 2, 3]]))
    for row, path in enumerate(accepted):
        text = nodes[row, jnp.array([0, *path])]
        line = jnp.broadcast_to(text, (2, len(text)))
        _, _, straight = target(line, Chain(start[:, None] + jnp.arange(len(text))), cache=cache)
        then = Chain((start + len(text))[:, None] + jnp.arange(3))
        got, expected = (target(after, then, cache=past)[0][row] for past in (grown, straight))
        np.testing.assert_allclose(got, expected, atol=2e-5)
