"""A node of a tree sees what it would see at the end of its own branch, written as a text: hidden states agree, and a
chain of nodes is what consecutive tokens are, to the bit; so is a branch whose nodes lie apart, on a CPU."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Chain, Tree, attend, whole
from models.cache import Slots
from tests.tiny import make_target

PARENTS = {
    "chain": [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
    "two branches": [[0, 0, 1, 2, 3, 4], [0, 1, 2, 0, 4, 5]],
    "a comb and a star": [[0, 1, 1, 3, 3, 5], [0, 0, 0, 0, 0, 0]],
}
ROOTS, CAPACITY = [9, 4], 24


def branch(parents: list[int], node: int) -> list[int]:
    """The nodes from the anchor to `node`."""
    return [0] if node == 0 else [*branch(parents, parents[node - 1]), node]


@jax.jit
def read(target, tokens, where, cache=None):
    return target(tokens, where, cache=cache)


def prefilled(target, page: int | None, rows: np.ndarray):
    cache = target.empty_cache(len(rows), CAPACITY, page)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    return read(target, jnp.asarray(rows), Chain(positions), cache)[2]


@pytest.mark.parametrize("page", [None, 5])
@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_nodes_are_the_ends_of_their_branches(parents: list[list[int]], page: int | None):
    target, rng = make_target(), np.random.default_rng(0)
    rows, nodes = (rng.integers(3, 60, (2, size)).astype(np.int32) for size in (12, 7))
    where = Tree(jnp.array(ROOTS), jnp.array(parents))
    hidden, _, _ = read(target, jnp.asarray(nodes), where, prefilled(target, page, rows))
    for row, root in enumerate(ROOTS):
        for node in range(7):
            path = branch(parents[row], node)
            text = np.zeros((1, CAPACITY), np.int32)  # what comes after the branch is not seen
            text[0, : root + len(path)] = [*rows[row, :root], *nodes[row, path]]
            alone, _, _ = read(target, jnp.asarray(text), whole(jnp.asarray(text)))
            np.testing.assert_allclose(hidden[row, node], alone[0, root + len(path) - 1], atol=2e-5)
            assert int(where.positions[row, node]) == root + len(path) - 1


@pytest.mark.parametrize("page", [None, 5])
def test_a_chain_is_a_tree_of_one_branch(page: int | None):
    target, rng = make_target(), np.random.default_rng(1)
    rows, nodes = (rng.integers(3, 60, (2, size)).astype(np.int32) for size in (12, 7))
    cache, roots = prefilled(target, page, rows), jnp.array(ROOTS)
    tree = target(jnp.asarray(nodes), Tree(roots, jnp.array(PARENTS["chain"])), cache=cache)
    chain = target(jnp.asarray(nodes), Chain(roots[:, None] + jnp.arange(7)), cache=cache)
    np.testing.assert_array_equal(tree[0], chain[0])
    for one, other in zip(tree[2].values, chain[2].values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_by_hand():
    """Root 7, parents 0 0 1: node 3 sees 0..6, the anchor at 7, node 1 at 8 and itself at 10."""
    where = Tree(jnp.array([7]), jnp.array([[0, 0, 1]]))
    seen = [np.flatnonzero(row).tolist() for row in np.asarray(where.mask(jnp.arange(12)))[0]]
    before = list(range(7))
    assert seen == [[*before, 7], [*before, 7, 8], [*before, 7, 9], [*before, 7, 8, 10]]
    assert where.positions.tolist() == [[7, 8, 8, 9]]


@pytest.mark.slow  # of the machine's own kernels
@pytest.mark.parametrize(
    ("path", "nodes"), [((0, 2, 3, 6), 7), ((0, 3, 6, 10, 16), 16), ((0, 9, 30, 44, 64), 64)], ids=str
)
def test_attention_has_the_same_bits_wherever_a_branch_lies(path: tuple[int, ...], nodes: int):
    """A token's own keys, values and query, as the next of a text and as a node among others: with near-ties, what
    keeps trees at what the plain loop writes."""
    rng = np.random.default_rng(0)
    values, queries = rng.standard_normal((1, 3, 256, 64)), rng.standard_normal((1, nodes + 1, 9, 64))
    keys = rng.standard_normal((1, 3, 64, 256))
    parents = np.zeros((1, nodes), int)
    for above, node in pairwise(path):
        parents[0, node - 1] = above

    @jax.jit
    def found(where: Chain | Tree, keys: jax.Array, values: jax.Array, queries: jax.Array) -> jax.Array:
        return attend(queries, Slots([keys], [values]), where)

    for root in range(20, 180, 5):
        after, places = root + np.arange(len(path)), root + np.array(path)
        own = keys.copy(), values.copy(), queries.copy()
        own[0][..., places], own[1][:, :, places] = keys[..., after], values[:, :, after]
        own[2][:, list(path)] = queries[:, : len(path)]
        chain = found(Chain(root + jnp.arange(nodes + 1)[None]), *map(jnp.float32, (keys, values, queries)))
        tree = found(Tree(jnp.array([root]), jnp.asarray(parents)), *map(jnp.float32, own))
        np.testing.assert_array_equal(tree[0, np.array(path)], chain[0, : len(path)], err_msg=f"root {root}")
