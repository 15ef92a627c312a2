"""A train step, features, held-out acceptance, the writing of responses and decoding, from slots, from pages and by a
server, give on meshes of eight devices what they give on one, and a size that a mesh does not divide is refused by
name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.errors import UserError
from configs.schema import Mesh, Responses, load_recipe
from models.attention import Packed
from models.decode import make_engine, prefill, segment
from models.drafters import Draft
from models.recorder import Tapped
from models.sharding import global_rows, make_mesh, shard, sharding_of
from models.sources import load_target
from models.target import Target, packed_features
from pipelines.batches import RowSource
from pipelines.prompt_files import Prompt
from pipelines.records import Response
from pipelines.responses import Job, generate_many
from serve.options import mesh_of
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target
from tests.tiny_run import EIGHT, on_disk, write_target
from tests.tiny_scheduler import Asked, prompt, scheduler
from train.acceptance import heldout_acceptance
from train.objectives import objective_of
from train.objectives.dflash import block_loss
from train.objectives.slots import LossSettings
from train.objectives.trainee import Trainee

MESHES = ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8))
SHAPE: dict[str, Any] = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 4, "vocab_size": 64}
DRAFTER: dict[str, Any] = {"num_layers": 1, "num_target_layers": 2, "target_layer_ids": (0,), "mask_token_id": 60}
ROOT = Path(__file__).parent.parent


def make_trainee(target: Target) -> Trainee:
    artifact = make_artifact(**SHAPE, **DRAFTER, width=4)
    return Trainee(artifact.drafter("float32", target.mesh), target, None, online=True)


def train_step(target: Target) -> list[np.ndarray]:
    """The loss and every gradient of a step with online features."""
    rng, trainee = np.random.default_rng(1), make_trainee(target)
    batch = {
        "tokens": rng.integers(3, 60, (8, 16)),
        "positions": np.tile(np.arange(16), (8, 1)),
        "segments": np.ones((8, 16)),
        "anchors_w4": rng.integers(0, 12, (8, 3)),
    }
    batch = global_rows({name: value.astype(np.int32) for name, value in batch.items()}, target.mesh)
    settings = LossSettings("dpace", gamma=4.0, ce=0.1, kl=0.0, tv=0.9, head_chunk=64, remat=False)

    @nnx.jit
    def step(trainee: Trainee, batch: dict[str, jax.Array]) -> Any:
        (loss, _), gradients = nnx.value_and_grad(lambda m: block_loss(m, batch, settings), has_aux=True)(trainee)
        return loss, gradients

    return [np.asarray(leaf) for leaf in jax.tree.leaves(step(trainee, batch))]


def responses(target: Target) -> dict[int, list[int]]:
    """Eleven responses by eight rows, with features kept."""
    limits = {"max_prompt_tokens": 16, "max_new_tokens": 12, "temperatures": (0.0,)}
    section = Responses(regenerate=True, server=None, **limits, batch=8, shard_size=8)
    rng, prompt = np.random.default_rng(2), Prompt("task", "id", (), "")
    jobs = [Job(prompt, rng.integers(3, 60, 3 + n).tolist(), 0.0, 0, None) for n in range(11)]
    recipe: Any = SimpleNamespace(responses=section)
    written = generate_many(recipe, target, jobs, Tapped((0,), False, "float32"))
    return {number: ids for number, ids, _ in written}


def answers(target: Target) -> list[list[int]]:
    """Eight answers decoded together."""
    engine = make_engine(target, make_artifact(**SHAPE, **DRAFTER, width=4))
    prompts = np.random.default_rng(3).integers(3, 60, (8, 5)).tolist()
    return [a.ids for a in Decoder(engine, Letters(), Draft("drafter", 4)).generate(prompts, max_new_tokens=12)]


def features(target: Target) -> np.ndarray:
    """Of packed rows, with the final state."""
    rng = np.random.default_rng(4)
    tokens = rng.integers(3, 60, (8, 16)).astype(np.int32)
    where = Packed(jnp.tile(jnp.arange(16), (8, 1)), jnp.ones((8, 16), jnp.int32))
    return np.asarray(packed_features(target, jnp.asarray(tokens), where, taps=(0, 1), final=True))


def accepted(target: Target) -> list[list[int]]:
    """The walk over held-out responses that say one token again and again, which some drafts do too."""
    texts = [(token,) * 8 for token in range(3, 60)]
    with TemporaryDirectory() as folder:
        responses = on_disk(
            Path(folder), [Response("task", str(n), ids[:2], ids[2:], True) for n, ids in enumerate(texts)]
        )
        rows = RowSource(responses, None, 16)
        trainee = make_trainee(target)
        acceptance = heldout_acceptance(objective_of("dflash"), trainee, rows, trainee.width, 64)
    return [walk.runs for walk in acceptance.walks]


def from_pages(target: Target) -> list[list[int]]:
    """What eight rows hold after drafts of width 4, the target's cache in pages of eight positions."""
    engine = make_engine(target, make_artifact(**SHAPE, **DRAFTER, width=4))
    prompts = np.random.default_rng(6).integers(3, 60, (8, 5)).astype(np.int32)
    lengths, stops, seeds = np.full(8, 5, np.int32), np.full(8, 17, np.int32), np.zeros(8, np.int32)
    state = prefill(engine, prompts, lengths, stops, seeds, capacity=32, page=8)
    return np.asarray(segment(engine, state, 12, Draft("drafter", 4)).rows.tokens)[:, :17].tolist()


def served(target: Target) -> list[list[int]]:
    """Six requests to a server of up to four rows, one with a prompt of several chunks, some behind known pages."""
    engine = make_engine(target, make_artifact(**SHAPE, **DRAFTER, width=4))
    asked = Asked(scheduler(engine, rows=4, draft=Draft("drafter", 4)))
    first = prompt(7, 200)
    for number in range(6):
        asked.ask(str(number), first[: 20 * number] + prompt(number, 6) if number else first, 12)
    asked.finish()
    return [list(asked.ids(str(number))) for number in range(6)]


def on_mesh(data: int, fsdp: int, tensor: int) -> Target:
    target = make_target(num_layers=2, **SHAPE)
    shard(target, make_mesh(Mesh(data=data, fsdp=fsdp, tensor=tensor)))
    return target


def differences() -> dict[str, Any]:
    """What differs on each mesh; run in a process of eight devices."""
    found, one = {}, on_mesh(1, 1, 1)
    values, texts, decoded = train_step(one), responses(one), answers(one)
    read, walked, paged, asked = features(one), accepted(one), from_pages(one), served(one)
    assert max(map(max, walked)) > 1
    for sizes in MESHES:
        target = on_mesh(*sizes)
        parts = [a.size // a.addressable_shards[0].data.size for a in jax.tree.leaves(nnx.state(target.layers[0]))]
        apart = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(train_step(target), values, strict=True)]
        found["x".join(map(str, sizes))] = {
            "train": float(max(apart)),
            "responses": responses(target) == texts,
            "answers": answers(target) == decoded,
            "features": float(np.abs(features(target) - read).max() / np.abs(read).max()),
            "accepted": accepted(target) == walked,
            "pages": from_pages(target) == paged,
            "served": sizes[:2] != (1, 1) or served(target) == asked,  # a server's rows are not split
            "parts": max(parts),
        }
    return found | {"tokens": sum(map(len, texts.values())) + sum(map(len, decoded))}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    program = "import json; from tests.test_meshes import differences; print(json.dumps(differences()))"
    call = [sys.executable, "-c", program]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | EIGHT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("sizes", MESHES)
def test_equal_to_one_device(found: dict[str, Any], sizes: tuple[int, int, int]):
    here = found["x".join(map(str, sizes))]
    assert here["train"] <= 1e-5
    assert here["responses"]
    assert here["answers"]
    assert here["features"] <= 1e-5
    assert here["accepted"]
    assert here["pages"]
    assert here["served"]
    assert here["parts"] == sizes[1] * sizes[2]  # matrices are split over both, by as much
    assert found["tokens"] > 100


def test_what_a_mesh_does_not_divide():
    """No devices are needed to be told so."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1] * 6).reshape(2, 1, 3), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError, match=r"batch=5: expected a multiple of mesh\.data=2 x mesh\.fsdp=1"):
        sharding_of((5, 7), ("batch",), mesh)
    with pytest.raises(UserError, match=r"kv_heads=2: expected a multiple of mesh\.tensor=3"):
        sharding_of((32, 2, 4, 8), ("embed", "kv_heads"), mesh)
    with pytest.raises(UserError, match=r"head_rows=61: expected a multiple of mesh\.fsdp=1 x mesh\.tensor=3"):
        sharding_of((61, 32), ("head_rows", None), mesh)


def test_mesh_of_a_command():
    assert mesh_of("tensor=2,data=1") == Mesh(data=1, fsdp=1, tensor=2)
    assert mesh_of("") == Mesh(data=1, fsdp=1, tensor=1)
    with pytest.raises(UserError, match=r"--mesh data=2: data and fsdp split rows, .* one row at a time"):
        mesh_of("data=2")
    for wrong in ("model=2", "tensor=0", "tensor", "tensor=2,,x"):
        with pytest.raises(UserError, match=r"--mesh .*: expected data=N, fsdp=N or tensor=N"):
            mesh_of(wrong)


def test_heads_that_a_mesh_does_not_divide(tmp_path: Path):
    """Two key/value heads over four devices, though the columns of their weights do divide."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1] * 4).reshape(1, 1, 4), ("data", "fsdp", "tensor"))
    source = write_target(tmp_path / "target")
    with pytest.raises(UserError, match=r"kv_heads=2: expected a multiple of mesh\.tensor=4"):
        load_target(str(source), "float32", mesh)


def test_rows_of_a_recipe():
    with pytest.raises(UserError, match=r"batches\.rows=5: expected a multiple of mesh\.data=2 x mesh\.fsdp=1"):
        load_recipe("smoke", ["mesh.data=2", "batches.rows=5"])
    with pytest.raises(UserError, match=r"responses\.batch=6: expected a multiple of mesh\.data=2 x mesh\.fsdp=2"):
        load_recipe("smoke", ["mesh.data=2", "mesh.fsdp=2", "batches.rows=4", "responses.batch=6"])
