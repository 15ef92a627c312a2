"""Rows in pages that are read from slots: what is written is in both, what others wrote into pages is brought over."""

import jax
import jax.numpy as jnp
import numpy as np

from models.cache import Mirrored, Slots, empty_pages, empty_slots

ABOUT = 2, (3, 2, 8, 4), jnp.dtype("float32")  # layers; rows, heads, positions, width
PLACES = jnp.broadcast_to(jnp.arange(8), (3, 8))


def drawn(seed: int, size: int) -> Slots:
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(3, 2, 4, size)] * 2 + [(3, 2, size, 4)] * 2
    one, other, *values = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return Slots([one, other], values)


def equal(one: Slots, other: Slots) -> None:
    for part, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_what_is_written_is_in_both():
    cache = Mirrored(empty_pages(*ABOUT, page=4), empty_slots(*ABOUT))
    for seed, at in enumerate(([0, 0, 0], [3, 2, 4])):
        cache = cache.write(drawn(seed, 3), jnp.array(at))
    equal(cache.slots(PLACES), cache.pages.slots(PLACES))
    equal(cache.of([cache.layer(0), cache.layer(1)]).slots(PLACES), cache.near)


def test_a_row_is_brought_over_from_its_pages():
    """Whatever lay in its slots; the others' stay, and where a row owns no page there are zeros."""
    pages = empty_pages(*ABOUT, page=4).write(drawn(0, 6), jnp.array([0, 1, 2]))
    pages = Mirrored(pages, empty_slots(*ABOUT)).pages
    table = jnp.array([[0, 1], [2, 6], [4, 5]])  # the second row has one page, page 6 is nobody's
    pools = [jnp.concatenate([pool, 0 * pool[:1]]) for pool in (*pages.keys, *pages.values)]
    pages = type(pages)(pools[:2], pools[2:], table)
    junk = jax.tree.map(lambda buffer: buffer + jnp.nan, empty_slots(*ABOUT))
    found = Mirrored(pages, junk).bring(jnp.array(1))
    expected = pages.slots(PLACES)
    assert not np.asarray(expected.values[0])[1, :, 4:].any()
    for part, wanted in zip(jax.tree.leaves(found.near), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(part[1], wanted[1])
        assert np.isnan(part[0]).all()
        assert np.isnan(part[2]).all()
    equal(found.pages.slots(PLACES), expected)
