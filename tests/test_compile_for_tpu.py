"""Compiling for a TPU that is not here: a user's mistakes are one line each, and what would
fit is named. What needs the TPU's own compiler is skipped where there is none."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs.errors import UserError
from configs.schema import Mesh, load_recipe
from models import aot
from models.sharding import abstract
from models.sources import SHAPES, abstract_target
from serve.__main__ import main as serve
from serve.compile import Asked, engine_of
from serve.compile import remedy as decoding_remedy
from train.__main__ import main as train
from train.compile import remedy, response_remedy
from train.compile_recipes import TOPOLOGIES
from train.compile_recipes import main as compile_recipes

RECIPES = sorted(file.stem for file in (SHAPES.parents[2] / "configs" / "tpu").glob("*.yaml"))
COMPILER = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra aot)")


@pytest.fixture
def chips(monkeypatch: pytest.MonkeyPatch) -> aot.Topology:
    """One device that is here, in place of a chip, for all topologies."""
    here = aot.Topology("v5p:1x1x1", aot.CHIPS["v5p"], jax.devices()[:1])
    monkeypatch.setattr(aot, "topology", lambda name: here)
    return here


@pytest.fixture
def uncached():
    """Programs for chips that are not here cannot be read back from the tests' cache of programs."""
    directory = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()


def refused(command, arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert command(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", ["v9:2x2", "v5p:2x2", "v5e:2x2x1", "v6e", "v5e:0x4", "v5e:2x²"])
def test_an_unknown_topology(name: str, capsys: pytest.CaptureFixture[str]):
    line = refused(train, f"compile --config tpu/qwen3_8b_w16_v5p8 --topology {name}", capsys)
    assert line.startswith(f"error: topology '{name}': expected one of v5p, v5e, v6e")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    line = refused(serve, "compile --target qwen3-8b --topology v5p:2x2x1", capsys)
    assert "found no package libtpu; pip install 'libtpu==" in line


def test_a_mesh_unlike_the_topology(chips: aot.Topology, capsys: pytest.CaptureFixture[str]):
    line = refused(train, "compile --config tpu/qwen3_8b_w16_v5p8 --topology v5p:2x2x1", capsys)
    assert "mesh.data=1 x mesh.fsdp=4 x mesh.tensor=1: expected the 1 chips of v5p:1x1x1 in all, got 4" in line


def test_a_batch_that_does_not_divide(capsys: pytest.CaptureFixture[str]):
    line = refused(train, "compile --config tpu/qwen3_8b_w16_v5p8 --topology v5p:2x2x1 batches.rows=6", capsys)
    assert "batches.rows=6: expected a multiple of mesh.data=1 x mesh.fsdp=4" in line


def test_a_family_that_is_not_computed(tmp_path: Path, chips: aot.Topology, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    line = refused(serve, f"compile --target {tmp_path} --topology v5p:2x2x1", capsys)
    assert "model_type 'mamba'; expected one of llama, qwen2, qwen3" in line


@pytest.mark.parametrize(
    "drafter",
    [
        "dflash",
        "dflash/1",
        "dflash/16/tree=5",
        "dflash/16/wide",
        "nothing/16",
        "dflash/16/vocab=0",
        "dflash/2/vocab=999999",
    ],
)
def test_an_unknown_drafter(drafter: str, chips: aot.Topology):
    mesh = aot.mesh_over(chips, Mesh(data=1, fsdp=1, tensor=1))
    with pytest.raises(UserError, match="expected an artifact's directory, or dflash/WIDTH"):
        engine_of(drafter, abstract_target("qwen3-8b", "bfloat16", mesh), mesh)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--rows 0", "--rows: expected at least 1, got 0"),
        ("--page 0", "--page: expected at least 1, got 0"),
        ("--context 100000000", "--context 100000000: expected at most the target's 40960 positions"),
    ],
)
def test_sizes_that_cannot_be(option: str, words: str, chips: aot.Topology, capsys: pytest.CaptureFixture[str]):
    assert words in refused(serve, f"compile --target qwen3-8b --topology v5p:2x2x1 {option}", capsys)


def test_an_unknown_target(chips: aot.Topology, capsys: pytest.CaptureFixture[str]):
    line = refused(serve, "compile --target qwen9 --topology v5p:2x2x1", capsys)
    assert "expected a directory with a config.json or one of llama-3.1-8b-instruct, qwen3-4b, qwen3-8b" in line


def test_a_recipe_whose_name_says_no_topology(capsys: pytest.CaptureFixture[str]):
    assert "ends in one of v5p8, v5e16, v6e8" in refused(compile_recipes, "wide_block", capsys)


def test_recipes_make_the_same_update_on_every_topology():
    for name in RECIPES:
        recipe = load_recipe(f"tpu/{name}")
        assert recipe.batches.rows * recipe.optimizer.accumulation == 32
        assert recipe.train.steps * 32 == 6 * recipe.prompts.limit
        assert recipe.prompts.sources == ("prompts.jsonl",), "the shipped prompts are 3,000, and go unnoticed"
        assert sum(width * count for width, count in recipe.batches.blocks.items()) == 512 * 16
        sizes = TOPOLOGIES[name.rpartition("_")[2]].partition(":")[2].split("x")
        assert recipe.mesh.data * recipe.mesh.fsdp * recipe.mesh.tensor == np.prod([int(size) for size in sizes])
    assert len(RECIPES) == 12


def refusal(needed: float, **held: float) -> aot.Refusal:
    """Of a v5p chip, in GiB."""
    return aot.Refusal(
        "v5p:2x2x1", {kind: size * aot.GiB for kind, size in held.items()}, 95 * aot.GiB, needed * aot.GiB, []
    )


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (100.0, "batches.rows=16 (optimizer.accumulation=2 for the same update)"),  # six of eight rows a chip: four
        (180.0, "batches.rows=8 (optimizer.accumulation=4 for the same update)"),
        (800.0, "fewer anchors (batches.blocks), a smaller loss.head_chunk, or mesh.tensor in place of fsdp"),
    ],
)
def test_what_would_fit_is_named_by_proportion(needed: float, words: str):
    """8 rows a chip, beside 20 GiB that they do not change, into nine tenths of 95 GiB: always 32 an update."""
    recipe = load_recipe("tpu/qwen3_8b_w16_v5p8", ["batches.rows=32", "optimizer.accumulation=1"])
    assert remedy(recipe, refusal(needed, parameters=14.0, outputs=6.0, batch=0.0)) == f"would fit: {words}"


def test_what_would_fit_of_weights_alone():
    recipe = load_recipe("tpu/qwen3_8b_w16_v5p8")
    line = "would fit: mesh.fsdp=12, on a topology of 3 times the chips"
    assert remedy(recipe, refusal(130.0, parameters=100.0)) == line


def test_what_would_fit_of_responses_and_decoding():
    """64 responses of 2 GiB each beside 20, into 85.5."""
    recipe = load_recipe("tpu/qwen3_8b_w16_v5p8")
    assert response_remedy(recipe, refusal(148.0, target=20.0)) == "would fit: responses.batch=32"
    assert "responses.max_new_tokens" in response_remedy(recipe, refusal(9000.0, target=20.0))
    asked, mesh = Asked(rows=8, context=4096, page=None, dtype="bfloat16"), Mesh(data=1, fsdp=1, tensor=2)
    assert decoding_remedy(asked, mesh, refusal(100.0, target=20.0)) == "would fit: --rows 6"
    assert decoding_remedy(asked, mesh, refusal(1330.0, target=20.0)) == "would fit: --rows 1 --context 1638"
    line = "would fit: --mesh tensor=6, on a topology of 3 times the chips"
    assert decoding_remedy(asked, mesh, refusal(130.0, target=80.0, drafter=20.0)) == line


@COMPILER
def test_every_host_writes_its_own_responses():
    """16 chips are four hosts of four, eight of a v6e two; four of a v5p are one."""
    for name, of in {
        "v5e:4x4": "v5e:2x2",
        "v6e:2x4": "v6e:2x2",
        "v5p:2x4x4": "v5p:2x2x1",
        "v5p:2x2x1": "v5p:2x2x1",
    }.items():
        assert aot.host_of(aot.topology(name)).name == of
    host = aot.topology("v5e:2x2")
    assert aot.host_mesh(host, Mesh(data=1, fsdp=16, tensor=1)).devices.shape == (1, 4, 1)
    assert aot.host_mesh(host, Mesh(data=1, fsdp=8, tensor=2)).devices.shape == (1, 2, 2)
    assert aot.host_mesh(host, Mesh(data=16, fsdp=1, tensor=1)).devices.shape == (4, 1, 1)


@COMPILER
def test_what_does_not_fit_is_refused(uncached: None):
    chips = aot.topology("v6e:2x2")
    mesh = aot.mesh_over(chips, Mesh(data=1, fsdp=1, tensor=1))
    matrix = abstract(jax.ShapeDtypeStruct((80_000, 80_000), jnp.float32), (), mesh)
    found, _, program = aot.examine(jax.jit(jnp.matmul).lower(matrix, matrix), chips, {"target": matrix})
    assert isinstance(found, aot.Refusal)
    assert program is None
    assert not found.fits
    assert any("does not fit" in line for line in aot.describe(found))


def test_what_is_no_program(tmp_path: Path):
    (tmp_path / "other").write_bytes(b"not a program")
    with pytest.raises(UserError, match="expected a program compiled for"):
        aot.load_program(tmp_path / "other", jax.jit(lambda x: x).lower(1.0))


@COMPILER
def test_a_chip_is_compiled_for(uncached: None):
    """A product of 8192 x 8192 matrices takes its FLOPs at the chip's peak; the compiler's own sum is no less."""
    found = aot.topology("v6e:2x4")
    mesh = aot.mesh_over(found, Mesh(data=1, fsdp=1, tensor=1))
    matrix = abstract(jnp.zeros((8192, 8192), jnp.bfloat16), (), mesh)
    report, _, _ = aot.examine(jax.jit(jnp.matmul).lower(matrix, matrix), found, {"matrix": matrix})
    assert isinstance(report, aot.Report)
    assert report.flops == 2 * 8192**3
    assert report.estimate == pytest.approx(2 * 8192**3 / 918e12, rel=1e-3)
    assert report.compiler >= 0.99 * report.estimate
