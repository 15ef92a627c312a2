"""A drafted tree holds the likeliest paths of its block, all of them and no others, each after its parent: compared
with every path there is, with and without a Markov head's say."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.drafters.tree import best_tree


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        assert parent < len(paths), "parents come first"
        paths.append((*paths[parent], token))
    return paths[1:]


@pytest.mark.parametrize("markov", [False, True])
@pytest.mark.parametrize(("depth", "vocab", "nodes"), [(4, 5, 16), (3, 6, 40), (6, 3, 9), (1, 4, 6)])
def test_the_likeliest_of_all_paths(markov: bool, depth: int, vocab: int, nodes: int):
    rng = np.random.default_rng(0)
    anchors = jnp.array([1, 2, 0])
    table = rng.dirichlet(np.full(vocab, 0.4), (3, depth, vocab)).astype(np.float32)  # [row, slot, token before]
    if not markov:
        table[:] = table[:, :, :1]
    logs = jnp.log(jnp.asarray(table))

    def following(slot, before):
        given = before if markov else before[:, :1] * 0
        return jax.lax.top_k(logs[jnp.arange(3)[:, None], slot, given], vocab)

    tokens, parents = jax.jit(lambda: best_tree(following, anchors, depth=depth, nodes=nodes))()
    for row, anchor in enumerate(anchors.tolist()):
        chances = {}
        for path in itertools.chain(*(itertools.product(range(vocab), repeat=size) for size in range(1, depth + 1))):
            before = (anchor, *path[:-1])
            chances[path] = math.prod(float(table[row, i, before[i], token]) for i, token in enumerate(path))
        expected = sorted(chances, key=lambda path: -chances[path])[:nodes]
        kept = tokens[row] >= 0
        assert kept.sum() == len(expected)
        found = paths_of(tokens[row][kept].tolist(), parents[row][kept].tolist())
        assert len(set(found)) == len(found)
        np.testing.assert_allclose([chances[path] for path in found], [chances[path] for path in expected], rtol=1e-4)


def test_ties_leave_no_node_without_its_parent():
    """Certain tokens: a path is as likely as its parts, at every length."""
    certain = jnp.log(jnp.array([1.0, 0.0, 0.0]))

    def following(slot, before):
        return certain[None, None], jnp.arange(3)[None, None]

    tokens, parents = best_tree(following, jnp.array([2]), depth=5, nodes=4)
    assert tokens.tolist() == [[0, 0, 0, 0]]
    assert parents.tolist() == [[0, 1, 2, 3]]
