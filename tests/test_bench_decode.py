"""What `python -m serve.bench` times: parts carry the names its text promises, and the bare matmuls are all there."""

import jax
import pytest

from models.decode import make_engine
from serve import bench, bench_parts
from tests.tiny import make_artifact, make_target


def test_parts_have_the_promised_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_parts, "REPEATS", 1)
    monkeypatch.setattr(bench_parts, "STEPS", 2)
    monkeypatch.setattr(bench_parts, "CAPACITIES", (32, 64))
    engine = make_engine(make_target(), make_artifact(width=3))
    parts = bench_parts.time_parts(engine, capacity=64, context=20)
    parts |= bench_parts.time_over_matmuls(engine, capacity=64)
    promised = {line.split()[0] for line in bench.__doc__.split("\n") if line.startswith("    ") and line[4] != " "}
    assert promised - set(parts) == {"widths", "tasks", "llama_cpp"}
    assert parts["plain_over_matmuls"].keys() == {32, 64}
    assert parts["verify_over_matmuls"].keys() == parts["matmuls_ms"].keys() == {1, 2, 3}
    assert parts["verify_cost"].keys() == {1, 2, 3}


def test_bare_matmuls_are_the_targets():
    """Five a layer and the LM head."""
    target, given = make_target(), jax.numpy.ones((1, 2, 32))
    leaves, tree = jax.tree.flatten(target)
    jaxpr = jax.make_jaxpr(lambda leaves: bench_parts._matmuls(jax.tree.unflatten(tree, leaves), given))(leaves)
    assert str(jaxpr).count("dot_general[") == 5 * target.config.num_layers + 1
