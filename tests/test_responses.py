"""Responses are the target's own greedy text, row by row; an interrupted run redoes no finished shard; features of
record i are those of response i."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import load_recipe
from models.attention import whole
from models.sources import load_target
from models.target import Target, packed_features
from models.tokenizer import load_tokenizer
from pipelines import responses, shards
from pipelines.feature_store import FeatureSource
from pipelines.features import prepare_features
from pipelines.prompts import load_prompts
from pipelines.records import Responses
from pipelines.responses import prepare_responses
from tests.tiny_run import make_tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """(recipe, target, tokenizer, prompts)"""
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    recipe = load_recipe(str(tiny.config))
    source = recipe.target.source
    prompts = load_prompts(recipe.prompts.sources, limit=20, seed=0)
    return recipe, load_target(source, "float32"), load_tokenizer(source), prompts


def in_directory(recipe, path: Path, **changes):
    run = dataclasses.replace(recipe.run, data_dir=str(path))
    return dataclasses.replace(recipe, run=run, responses=dataclasses.replace(recipe.responses, **changes))


def greedy(target: Target, prompt: tuple[int, ...], new: int) -> list[int]:
    """One token at a time, the whole text again for each."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new:
        row = np.zeros((1, 64), np.int32)
        row[0, : len(ids)] = ids
        hidden, _, _ = target(jnp.asarray(row), whole(jnp.asarray(row)))
        ids.append(int(np.argmax(np.asarray(target.logits(hidden))[0, len(ids) - 1])))
        if ids[-1] in target.config.eos_ids:
            break
    return ids[len(prompt) :]


def test_equal_to_a_loop_over_whole_forwards(world, tmp_path: Path):
    recipe, target, tokenizer, prompts = world
    written = prepare_responses(in_directory(recipe, tmp_path), target, tokenizer, {"train": prompts})
    found = list(Responses(written / "train"))
    assert [(r.task, r.id) for r in found] == [(p.task, p.id) for p in prompts]
    for prompt, response in list(zip(prompts, found, strict=True))[:6]:
        assert list(response.prompt_ids) == tokenizer.encode_chat(prompt.chat())
        assert list(response.response_ids) == greedy(target, response.prompt_ids, 20)
        assert response.finished == (response.response_ids[-1] == 256)


def test_interruption_redoes_no_finished_shard(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, target, tokenizer, prompts = world
    whole = prepare_responses(in_directory(recipe, tmp_path / "a"), target, tokenizer, {"train": prompts})
    write, count = shards.write_shard, 0

    def dies_at_the_second(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(responses.shards, "write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare_responses(in_directory(recipe, tmp_path / "b"), target, tokenizer, {"train": prompts})
    monkeypatch.undo()
    (mark,) = (tmp_path / "b").rglob("train/*.json")
    before = mark.stat().st_mtime_ns, mark.with_suffix(".array_record").stat().st_mtime_ns
    resumed = prepare_responses(in_directory(recipe, tmp_path / "b"), target, tokenizer, {"train": prompts})
    assert (mark.stat().st_mtime_ns, mark.with_suffix(".array_record").stat().st_mtime_ns) == before
    assert list(Responses(resumed / "train")) == list(Responses(whole / "train"))


def test_sampled_text_does_not_depend_on_the_batch(world, tmp_path: Path):
    recipe, target, tokenizer, prompts = world
    found = []
    for batch in (2, 8):
        sampled = in_directory(recipe, tmp_path / str(batch), temperatures=(1.0,), batch=batch)
        found.append(list(Responses(prepare_responses(sampled, target, tokenizer, {"train": prompts[:8]}) / "train")))
    assert found[0] == found[1]
    assert len({response.response_ids for response in found[0]}) == 8


def test_every_prompt_is_answered_at_every_temperature(world, tmp_path: Path):
    """Greedily as it would be alone; drawn, each prompt on its own."""
    recipe, target, tokenizer, prompts = world

    def written(name: str, temperatures: tuple[float, ...]):
        asked = in_directory(recipe, tmp_path / name, temperatures=temperatures)
        return list(Responses(prepare_responses(asked, target, tokenizer, {"train": prompts[:6]}) / "train"))

    both = written("both", (0.0, 1.0))
    assert both[:6] == written("greedy", (0.0,))
    assert [r.prompt_ids for r in both[6:]] == [r.prompt_ids for r in both[:6]]
    assert len({r.response_ids for r in both}) == 12


def test_prompts_too_long_are_left_out_aloud_or_refused(world, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe, target, tokenizer, prompts = world
    lengths = sorted(len(tokenizer.encode_chat(prompt.chat())) for prompt in prompts)
    some = in_directory(recipe, tmp_path, max_prompt_tokens=lengths[-1] - 1)
    prepare_responses(some, target, tokenizer, {"train": prompts})
    assert "left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="every prompt of train is longer"):
        prepare_responses(in_directory(recipe, tmp_path, max_prompt_tokens=3), target, tokenizer, {"train": prompts})
    with pytest.raises(ValueError, match=r"exceeds the context of target \(256\)"):
        prepare_responses(in_directory(recipe, tmp_path, max_new_tokens=240), target, tokenizer, {"train": prompts})


def test_given_responses_only_when_asked_and_present(world, tmp_path: Path):
    recipe, target, tokenizer, prompts = world
    given = in_directory(recipe, tmp_path, regenerate=False)
    with pytest.raises(ValueError, match="has no response in its file"):
        prepare_responses(given, target, tokenizer, {"train": prompts})
    answered = [dataclasses.replace(prompt, response="so be it") for prompt in prompts]
    found = list(Responses(prepare_responses(given, target, tokenizer, {"train": answered}) / "train"))
    assert tokenizer.decode(found[0].response_ids[:-1]) == "so be it"


@pytest.mark.parametrize("kept", [True, False], ids=["kept by generation", "computed after it"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 1e-2)])
def test_features_belong_to_their_response(world, tmp_path: Path, dtype: str, tolerance: float, kept: bool):
    recipe, target, tokenizer, prompts = world
    recipe = in_directory(recipe, tmp_path)
    recipe = dataclasses.replace(recipe, features=dataclasses.replace(recipe.features, dtype=dtype))
    written = prepare_responses(recipe, target, tokenizer, {"train": prompts[:10]}, (0, 1) if kept else None)
    assert any(tmp_path.rglob("features/*/train/*.json")) == kept
    source = FeatureSource(prepare_features(recipe, target, (0, 1), written), "train", 32)
    for number, response in enumerate(Responses(written / "train")):
        ids = jnp.asarray([response.prompt_ids + response.response_ids])
        alone = packed_features(target, ids, whole(ids), taps=(0, 1), final=True)
        expected = np.asarray(alone)[0, :-1]
        assert source[number].shape == (response.length, expected.shape[1])
        difference = np.abs(source[number].astype(np.float32)[:-1] - expected).max()
        assert difference <= tolerance * np.abs(expected).max()


def test_a_broken_target_is_named(world, tmp_path: Path):
    recipe, _, tokenizer, prompts = world
    broken = load_target(recipe.target.source, "float32")
    down = broken.layers[0].down
    down[...] = down[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="logits are not finite while it writes responses"):
        prepare_responses(in_directory(recipe, tmp_path), broken, tokenizer, {"train": prompts})


def test_full_disk_leaves_no_mark(tmp_path: Path):
    """The real thing: a file size limit makes the write fail, as a full disk would."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from configs.console import command\n"
        "from pipelines import shards\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "@command\n"
        "def main():\n"
        "    shards.write_shard(Path(sys.argv[1]), 0, [b'a' * 1000], {})\n"
        "    shards.write_shard(Path(sys.argv[1]), 1, [b'a' * 1_000_000], {})\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s")], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("error: ")
    assert [path.name for path in sorted((tmp_path / "s").glob("*.json"))] == ["00000.json"]
    assert [bytes(record) for record in shards.Records(tmp_path / "s")] == [b"a" * 1000]


def test_unwritable_directory_is_one_os_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        shards.write_shard(tmp_path / "file" / "s", 0, [b"a"], {})
