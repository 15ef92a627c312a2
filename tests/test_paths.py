"""`~` is the user's home wherever a path may be given, as a shell would have it at the start of a word."""

from pathlib import Path

import pytest

from configs.paths import at_home, path
from configs.schema import load_recipe
from models.sources import parse
from pipelines.prompt_files import load_tasks
from pipelines.prompts import read_source
from tests.tiny_run import write_prompts, write_target


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "HOME"),
        ("~/x", "HOME/x"),
        ("~/a.yml load_parameters_path=~/c", "HOME/a.yml load_parameters_path=HOME/c"),
        ("tfds:gsm8k:train@~/tfds", "tfds:gsm8k:train@HOME/tfds"),
        ("hf:~/folder", "hf:HOME/folder"),
        ("a~/b", "a~/b"),
        ("./~/b", "./~/b"),
        ("backup~", "backup~"),
        ("own", "own"),
    ],
)  # fmt: skip
def test_where_a_path_may_begin(home: Path, given: str, meant: str):
    assert at_home(given) == meant.replace("HOME", str(home))


def test_every_path_of_a_recipe(home: Path):
    overrides = ["run.dir=~/r", "run.data_dir=~/d", "target.source=~/t", "drafter.init_from=~/a"]
    found = load_recipe("smoke.yaml", [*overrides, "prompts.sources=[own, ~/p.jsonl]"])
    assert found.run_dir == home / "r"
    assert (found.run.data_dir, found.target.source) == (f"{home}/d", f"{home}/t")
    assert (found.drafter.init_from, found.prompts.sources) == (f"{home}/a", ("own", f"{home}/p.jsonl"))


def test_everything_that_is_read(home: Path):
    write_target(home / "target")
    write_prompts(home / "tasks" / "sums.jsonl")
    assert parse("~/target load_parameters_path=~/c").path == home / "target"
    assert parse("~/target load_parameters_path=~/c").settings == {"load_parameters_path": str(home / "c")}
    assert len(read_source("~/tasks/sums.jsonl")) == 24
    assert list(load_tasks("code,~/tasks/sums.jsonl", None, 3)) == ["code", "sums"]
    assert list(load_tasks("sums", path("~/tasks"), 3)) == ["sums"]


def test_every_path_of_the_commands(home: Path):
    import argparse

    from serve.__main__ import add_compare, add_eval, add_inspect

    parser = argparse.ArgumentParser()
    add_eval(parser)
    given = "--target ~/t --drafter ~/d --tasks code --task-dir ~/k --out ~/o"
    options = parser.parse_args(given.split())
    assert (options.target, options.drafter) == (f"{home}/t", home / "d")
    assert (options.task_dir, options.out) == (home / "k", home / "o")
    for add, name, expected in ((add_compare, "reports", home / "x"), (add_inspect, "paths", f"{home}/x")):
        parser = argparse.ArgumentParser()
        add(parser)
        assert getattr(parser.parse_args(["~/x"]), name) == [expected]
