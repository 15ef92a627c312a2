"""`serve compile` and `train compile` from end to end on a mesh of eight devices: every step of decoding, of training
and of writing responses; and a program that was saved decodes again. The compiler is the CPU's, and the chips are the
devices that are here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from models import aot
from models.decode import DecodeState, make_engine, prefill, segment
from models.drafters import Draft
from serve.__main__ import main as serve
from tests.tiny import make_artifact, make_target
from tests.tiny_run import EIGHT, make_tiny
from train.__main__ import main as train

ROOT = Path(__file__).parent.parent
DRAFTERS = ["dflash/4", "dflash/8/tree=16", "dflash/4/vocab=64"]


def commands(folder: str) -> None:
    """Run in a process of eight devices: the last line of each command."""
    aot.topology = lambda name: aot.Topology(name, aot.CHIPS["v5p"], jax.devices())
    tiny = make_tiny(Path(folder))
    decoding = f"compile --target {tiny.root}/target --topology v5p:2x2x2 --rows 4 --context 64 --page 16 --json"
    training = f"compile --config {tiny.config} --topology v5p:2x2x2 --json mesh.data=2 mesh.fsdp=4 batches.rows=8"
    drafters = "".join(f" --drafter {name}" for name in DRAFTERS)
    assert serve(f"{decoding} --mesh data=4,tensor=2{drafters}".split()) == 0
    sampled = "--drafter dflash/4 --temperature 1 --block-verification"
    assert serve(f"{decoding} --mesh data=4,tensor=2 {sampled}".split()) == 0
    for mode in ("cached", "online"):
        assert train(f"{training} features.mode={mode}".split()) == 0
    assert serve(f"{decoding} --mesh data=8 --rows 8 --save {folder}/program".split()) == 2
    saved(Path(folder) / "program")


def saved(file: Path) -> None:
    """Decodes as it is, and by a program that was saved and loaded; prints both rows of tokens."""
    engine, draft = make_engine(make_target(), make_artifact(width=4)), Draft("drafter", 4)
    ids, one, steps = jnp.asarray([[5, 6, 7, 8]]), jnp.asarray([4]), jnp.int32(40)

    def state() -> DecodeState:
        return prefill(engine, ids, one, one + 24, jnp.asarray([0]), capacity=64)

    lowered = segment.lower(engine, state(), steps, draft)
    jax.config.update("jax_compilation_cache_dir", None)  # what is read back from there cannot be written again
    compilation_cache.reset_cache()
    aot.save_program(lowered.compile(), file)
    ends = aot.load_program(file, lowered)(engine, state(), steps), segment(engine, state(), steps, draft)
    print(json.dumps({"tiny": [end.rows.tokens[0, : int(end.rows.length[0])].tolist() for end in ends]}))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    """The JSON objects of the commands, and what the last one was refused with."""
    folder = tmp_path_factory.mktemp("commands")
    call = [sys.executable, "-c", f"from tests.test_compile_commands import commands; commands({str(folder)!r})"]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | EIGHT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    greedy, sampled, *recipes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [greedy, sampled, *(found["tiny"] for found in recipes)], done.stderr


def test_every_step_of_decoding(said: tuple[list[Any], str]):
    """Plain, chains, trees, a draft vocabulary, over pages; greedy, and sampling with blocks verified whole."""
    greedy, sampled = said[0][:2]
    assert list(greedy["steps"]) == ["plain", *DRAFTERS]
    for found in (greedy, sampled):
        assert found["fits"]
        for step in found["steps"].values():
            assert step["flops"] > 0
            assert step["collectives"], "two devices share every weight"
            assert {"target", "drafter", "cache"} <= step["memory"].keys()
        assert found["steps"]["dflash/4"]["over_plain"] > 1
    assert greedy["steps"]["dflash/8/tree=16"]["width"] == 17
    drawn, likeliest = (found["steps"]["dflash/4"]["bytes"] for found in (sampled, greedy))
    assert drawn > likeliest, "distributions are compared, not tokens"


def test_every_step_of_a_recipe(said: tuple[list[Any], str]):
    """The train step with cached and with online features, and the step that writes responses."""
    for found in said[0][2:4]:
        assert found["fits"]
        assert found["advice"] == []
        assert 0 < found["estimated_mfu"] < 1
        assert found["collective_bytes"] > 0
        assert {"parameters", "optimizer", "target", "batch"} <= found["train_step"]["memory"].keys()
        assert found["response_step"]["flops"] > 0
    cached, online = said[0][2:4]
    assert online["step_flops"] > cached["step_flops"], "the target's forward"


def test_a_saved_program_decodes_as_before(said: tuple[list[Any], str]):
    again, before = said[0][-1]
    assert len(before) > 10
    assert again == before


def test_a_program_of_several_chips_is_not_saved(said: tuple[list[Any], str]):
    assert "expected a program of one chip, got a mesh of 8" in said[1]
