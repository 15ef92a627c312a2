"""The train step, prefill, the speculative segment and the plain loop lower for TPU without a TPU: in bfloat16 at the
device's own speed, in float32 with matmuls of float32, which a TPU has to be asked for."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models.decode import empty_state, insert, make_engine, prefill, segment
from models.drafters import SINGLE, Draft
from models.sampling import Sampling
from models.verify import GREEDILY, Speculation
from tests.tiny import make_artifact, make_eagle3, make_target
from train.objectives.dflash import block_loss
from train.objectives.eagle3 import chain_loss
from train.objectives.slots import LossSettings
from train.objectives.trainee import Trainee

DTYPES = ("bfloat16", "float32")


def lower_for_tpu(dtype: str, function, *arguments) -> str:
    """The module's text, lowered for TPU; arguments are any pytrees, modules among them."""
    leaves, structure = jax.tree.flatten(arguments)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves))))
    exported = jax.export.export(flat, platforms=["tpu"])(*leaves)
    assert exported.platforms == ("tpu",)
    text = exported.mlir_module()
    products = [line for line in text.split("\n") if "stablehlo.dot_general" in line]
    assert products
    if dtype == "bfloat16":
        assert "bf16" in text
        assert "HIGHEST" not in text
    else:
        assert "bf16" not in text
        assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []
    assert not [line for line in text.split("\n") if "custom_call" in line and ("cpu" in line or "lapack" in line)]
    return text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("online", [False, True])
def test_train_step(online: bool, dtype: str):
    target, artifact = make_target(dtype=dtype), make_artifact(markov_rank=8)
    trainee = Trainee(artifact.drafter(dtype), target, None, online=online)
    optimizer = nnx.Optimizer(trainee, optax.adamw(1e-3), wrt=nnx.Param)
    settings = LossSettings("dpace", gamma=4.0, ce=0.1, kl=0.4, tv=0.5, head_chunk=64, remat=True)
    rows = {name: jnp.ones((2, 32), jnp.int32) for name in ("tokens", "positions", "segments")}
    batch = rows | {"anchors_w6": jnp.full((2, 3), 4, jnp.int32), "anchors_w3": jnp.full((2, 5), 7, jnp.int32)}
    if not online:
        batch["features"] = jnp.ones((2, 32, 3 * 32), dtype)

    def step(trainee, optimizer, batch):
        (loss, _), gradients = nnx.value_and_grad(lambda m: block_loss(m, batch, settings), has_aux=True)(trainee)
        optimizer.update(trainee, gradients)
        return loss, nnx.state(trainee, nnx.Param)

    lower_for_tpu(dtype, nnx.jit(step), trainee, optimizer, batch)


SAMPLED = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05)
CASES = {
    "greedy": (Draft("drafter", 6), GREEDILY),
    "undrafted": (SINGLE, Speculation(SAMPLED)),
    "sampled": (Draft("drafter", 6), Speculation(SAMPLED)),
    "block": (Draft("drafter", 6), Speculation(SAMPLED, block=True)),
    "deterministic": (Draft("drafter", 6), Speculation(SAMPLED, deterministic=True)),
    "n-gram": (Draft("ngram", 6), Speculation(SAMPLED)),
    "copying": (Draft("drafter", 6, copy=3), Speculation(SAMPLED)),
    "tree": (Draft("drafter", 6, copy=3, tree=8), Speculation(SAMPLED)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("draft", "speculation"), CASES.values(), ids=CASES)
def test_speculative_segment(draft: Draft, speculation: Speculation, dtype: str):
    engine, state = started(dtype)
    lower_for_tpu(dtype, lambda engine, state: segment(engine, state, 16, draft, speculation), engine, state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_plain_loop(sampling: Sampling, dtype: str):
    engine = started(dtype)[0].plain
    state = empty_state(engine, 4, 64)
    lower_for_tpu(dtype, lambda engine, state: segment(engine, state, 16, SINGLE, Speculation(sampling)), engine, state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill(dtype: str):
    """Of the speculative loop (target and drafter read the prompt) and of the plain one."""
    engine, _ = started(dtype)
    prompt, length = jnp.ones((2, 8), jnp.int32), jnp.array([8, 5], jnp.int32)
    lower_for_tpu(
        dtype, lambda engine, *row: prefill(engine, *row, capacity=64), engine, prompt, length, length, length
    )
    rows, state = jnp.array([0, 3], jnp.int32), empty_state(engine.plain, 4, 64)
    lower_for_tpu(dtype, insert, engine.plain, state, rows, prompt, length, length + 20, length)


def started(dtype: str):
    """An engine and a state of two rows in it."""
    engine = make_engine(make_target(dtype=dtype), make_artifact(draft_vocab_size=30, markov_rank=8))
    prompt, length = np.ones((2, 8), np.int32), np.array([8, 5], np.int32)
    return engine, prefill(engine, prompt, length, length + 20, length, capacity=64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eagle3(dtype: str):
    """Its train step, and a segment of its chains."""
    target, artifact = make_target(dtype=dtype), make_eagle3(draft_vocab_size=40)
    trainee = Trainee(artifact.drafter(dtype), target, artifact.draft_vocab, online=True)
    settings = LossSettings("decay", gamma=4.0, ce=0.1, kl=0.4, tv=0.5, head_chunk=64, remat=True)
    batch = {name: jnp.ones((2, 32), jnp.int32) for name in ("tokens", "positions", "segments")}
    batch["anchors_w4"] = jnp.full((2, 5), 7, jnp.int32)
    lower_for_tpu(dtype, nnx.grad(lambda trainee, batch: chain_loss(trainee, batch, settings)[0]), trainee, batch)

    engine = make_engine(target, artifact)
    one = jnp.full(2, 8)
    state = prefill(engine, jnp.ones((2, 8), jnp.int32), one, one + 20, one, capacity=64)
    lower_for_tpu(dtype, lambda engine, state: segment(engine, state, 5, Draft("drafter", 6)), engine, state)
