"""A study trains its variants for equally many slots, keeps what it finished, and measures what decoding would."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.schema import Recipe
from configs.study import load_study
from models.decode import make_engine
from models.drafters import Draft
from models.drafters.artifact import read_artifact
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines.records import Responses
from serve import bench_study
from serve.cost import Cost
from serve.session import Decoder
from tests.tiny_run import Tiny, make_tiny, write_prompts
from train import __main__ as commands
from train import study
from train.metrics import read_metrics
from train.run import run
from train.trainer import Diverged


@pytest.fixture(scope="module")
def tiny(session_dir: Path) -> Tiny:
    return make_tiny(session_dir / "study")


def write_grid(tiny: Tiny, **changes: object) -> Path:
    tasks = [str(write_prompts(tiny.root / f"{name}.jsonl", 3)) for name in ("one", "other")]
    grid = {
        "base": str(tiny.config),
        "overrides": ["train.log_every=1", "train.eval_every=0"],
        "seeds": [0],
        "positions": 400,
        "variants": {
            "wide": ["batches.blocks={2: 4, 4: 4}", "batches.curriculum={3: 0.0}", "train.eval_every=3"],
            "narrow": ["drafter.width=3", "batches.blocks={3: 4}"],
            "lost": [],
        },
        "tasks": tasks,
        "task_dir": None,
        "task_prompts": 2,
        "max_prompt_tokens": 40,
        "max_new_tokens": 24,
    }
    path = tiny.root / "grid.yaml"
    path.write_text(yaml.safe_dump(grid | changes, sort_keys=False))
    return path


def trained_or_lost(recipe: Recipe, **given: Any) -> Any:
    if recipe.run.name.startswith("lost"):
        raise Diverged("step 3: loss is nan")
    return run(recipe, **given)


def results(out: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in out.glob("*/result.json")}


def test_from_grid_to_table(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    grid, out = write_grid(tiny), tmp_path / "out"
    monkeypatch.setattr(study, "run", trained_or_lost)
    assert commands.main(["study", "--grid", str(grid), "--out", str(out)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = results(out)
    assert [entry["variant"] for entry in last["results"]] == ["wide", "narrow", "lost"]
    assert found.pop("lost.0")["failed"] == "step 3: loss is nan"
    for result in found.values():
        assert result["positions"] == pytest.approx(400, rel=0.05)
    assert len({(result["responses"], result["answers"]) for result in found.values()}) == 1
    assert found["narrow.0"]["steps"] > 1.5 * found["wide.0"]["steps"], "a step of it has fewer slots"
    trained = [line for line in read_metrics(out / "wide.0" / "run") if line["kind"] == "train"]
    widths = [int(next(name for name in line["values"] if "tau" in name and name >= "w3")[1]) for line in trained]
    assert widths == sorted(widths)
    assert set(widths) == {3, 4}
    lines = (out / "table.md").read_text().splitlines()
    assert "step 3: loss is nan" in lines[-1]
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| wide", "| narrow"]
    assert sum("its own chances" in line for line in lines) == 2

    target, tokenizer = load_target(str(tiny.root / "target"), "float32"), load_tokenizer(str(tiny.root / "target"))
    answers = Responses(tiny.root / "data" / "responses" / found["wide.0"]["answers"] / "tasks")
    engine = make_engine(target, read_artifact(out / "wide.0" / "artifact"))
    decoder = Decoder(engine, tokenizer, Draft("drafter", engine.drafter.width))
    texts = [answers[number] for number in range(len(answers))]
    decoded = [decoder.generate([text.prompt_ids], max_new_tokens=24)[0] for text in texts]
    assert [answer.ids for answer in decoded] == [list(text.response_ids) for text in texts]
    assert [len(answer.runs) for answer in decoded] == found["wide.0"]["decoding_steps"]

    drafters = [word for name in found for word in ("--drafter", str(out / name / "artifact"))]
    asked = ["--tasks", ",".join(load_study(str(grid)).tasks), "--prompts", "2", "--max-prompt-tokens", "40"]
    walk = ["walk", "--config", str(tiny.config), *drafters, *asked, "--max-new-tokens", "24"]
    assert commands.main(walk) == 0
    walked = json.loads(capsys.readouterr().out.splitlines()[-1])["drafters"]
    assert [drafter["tasks"] for drafter in walked] == [result["tasks"]["tasks"] for result in found.values()]
    assert commands.main([*walk, "--prompts", "0"]) == 2
    assert "--prompts: expected at least 1, got 0" in capsys.readouterr().err

    assert commands.main(["study", "--grid", str(grid), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    (out / "narrow.0" / "result.json").unlink()
    monkeypatch.setattr(study, "run", lambda *_, **__: signal.SIGTERM)
    assert commands.main(["study", "--grid", str(grid), "--out", str(out), "--resume"]) == 128 + signal.SIGTERM
    assert f"next: python -m train study --grid {grid}" in capsys.readouterr().out
    monkeypatch.setattr(study, "run", lambda *_, **__: None)  # its training is whole: nothing is trained again
    assert commands.main(["study", "--grid", str(grid), "--out", str(out), "--resume"]) == 0
    again = results(out)
    assert again["wide.0"] == found["wide.0"]
    assert again["narrow.0"]["decoding_steps"] == found["narrow.0"]["decoding_steps"]

    assert bench_study.main([str(out)]) == 0
    assert (out / "survival.svg").read_text().startswith("<svg")
    priced = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert priced.keys() == found.keys()
    for name, row in priced.items():
        assert row["tau"] == found[name]["tasks"]["tau"]
        assert min(row["plain_ms"], row["verify_ms"]) > 0


@pytest.mark.parametrize("name", sorted(file.stem for file in Path("configs/studies").glob("*.yaml")))
def test_shipped_grids_load(name: str):
    recipes = load_study(name).recipes(Path("out"), [])
    assert len({str(recipe.to_dict() | {"run": None}) for recipe in recipes.values()}) == len(recipes) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "unknown key seed; did you mean seeds?"),
        ({"positions": 0}, "positions: expected at least 1, got 0"),
        ({"variants": {"a b": []}}, "variants: expected names of letters"),
        ({"variants": {"a": ["drafter.widht=3"]}}, "drafter.widht"),
        ({"variants": {"a": [], "b": ["target.dtype=bfloat16"]}}, "variant b: target, mesh and run.data_dir"),
    ],
)
def test_a_mistaken_grid_is_refused(tiny: Tiny, changes: dict, words: str, capsys: pytest.CaptureFixture[str]):
    assert commands.main(["study", "--grid", str(write_grid(tiny, **changes)), "--out", str(tiny.root / "none")]) == 2
    assert words in capsys.readouterr().err
    assert not (tiny.root / "none").exists()


def test_what_a_study_prices():
    """Slots that survive .5, then .25: 1.5 tokens at width 2, 1.75 at 3, where a fourth slot was never reached."""
    cost = Cost(10.0, {1: 0.0, 2: 1.0, 4: 2.0}, {1: 11.0, 2: 11.5, 4: 14.0})
    tasks = {"tau": 1.6, "slots": [{"acceptance": 0.5}, {"acceptance": 0.5}, {"acceptance": None}]}
    best = {"tau": 1.6, "width": 2, "plain_ms": 10.0, "draft_ms": 1.0, "verify_ms": 11.5, "speedup": 1.2}
    full = {"width": 4, "draft_ms": 2.0, "verify_ms": 14.0, "speedup": pytest.approx(17.5 / 16)}
    assert bench_study.best_chain(cost, tasks) == best | {"full": full}


def test_a_directory_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert bench_study.main([str(tmp_path)]) == 2
    assert "expected what python -m train study writes" in capsys.readouterr().err
