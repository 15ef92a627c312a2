"""A study trains its variants for equally many slots, keeps what it finished, and measures what decoding would."""

import json
from pathlib import Path

import pytest
import yaml

from models.decode import make_engine
from models.drafters import Draft
from models.drafters.artifact import read_artifact
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines.records import Responses
from serve.session import Decoder
from tests.tiny_run import Tiny, make_tiny, write_prompts
from train import __main__ as commands
from train import study


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
        "variants": {"wide": [], "narrow": ["drafter.width=3", "batches.blocks={3: 4}"]},
        "tasks": tasks,
        "task_dir": None,
        "task_prompts": 2,
        "max_prompt_tokens": 40,
        "max_new_tokens": 24,
    }
    path = tiny.root / "grid.yaml"
    path.write_text(yaml.safe_dump(grid | changes, sort_keys=False))
    return path


def results(out: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in out.glob("*/result.json")}


def test_from_grid_to_table(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    grid, out = write_grid(tiny), tmp_path / "out"
    assert commands.main(["study", "--grid", str(grid), "--out", str(out)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = results(out)
    assert {entry["variant"] for entry in last["results"]} == {"wide", "narrow"}
    for result in found.values():
        assert result["positions"] == pytest.approx(400, rel=0.05)
    assert len({(result["responses"], result["answers"]) for result in found.values()}) == 1
    assert found["narrow.0"]["steps"] > 2 * found["wide.0"]["steps"], "a step of it has less than half of the slots"
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| wide", "| narrow"]

    target, tokenizer = load_target(str(tiny.root / "target"), "float32"), load_tokenizer(str(tiny.root / "target"))
    answers = Responses(tiny.root / "data" / "responses" / found["wide.0"]["answers"] / "tasks")
    engine = make_engine(target, read_artifact(out / "wide.0" / "artifact"))
    decoder = Decoder(engine, tokenizer, Draft("drafter", engine.drafter.width))
    texts = [answers[number] for number in range(len(answers))]
    decoded = [decoder.generate([text.prompt_ids], max_new_tokens=24)[0] for text in texts]
    assert [answer.ids for answer in decoded] == [list(text.response_ids) for text in texts]
    assert [len(answer.runs) for answer in decoded] == found["wide.0"]["decoding_steps"]

    assert commands.main(["study", "--grid", str(grid), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    (out / "narrow.0" / "result.json").unlink()
    monkeypatch.setattr(study, "run", lambda recipe, **_: None)  # its training is whole: nothing is trained again
    assert commands.main(["study", "--grid", str(grid), "--out", str(out), "--resume"]) == 0
    again = results(out)
    assert again["wide.0"] == found["wide.0"]
    assert again["narrow.0"]["decoding_steps"] == found["narrow.0"]["decoding_steps"]
