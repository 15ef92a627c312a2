"""A user's mistake is one line and exit code 2; nothing already written is lost."""

import shutil
from pathlib import Path

import pytest

from models.drafters.artifact import read_artifact
from tests.tiny_run import Tiny, called, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny world with a trained run and its artifact."""
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    done = tiny.called(tiny.root / "run")
    assert done.returncode == 0, done.stderr
    done = called(["train", "export", "--run", str(tiny.root / "run"), "--out", str(tiny.root / "artifact")])
    assert done.returncode == 0, done.stderr
    return tiny


def refused(done, *words: str) -> None:
    lines = done.stderr.strip().split("\n")
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def evaluate(
    tiny: Tiny,
    *arguments: str,
    drafter: str = "artifact",
    target: str = "target",
    tasks: str | None = None,
):
    tasks = tasks or str(tiny.root / "prompts.jsonl")
    call = ["serve", "eval", "--target", str(tiny.root / target), "--drafter", str(tiny.root / drafter)]
    call += ["--tasks", tasks, "--out", str(tiny.root / "report"), "--prompts", "2", "--max-new-tokens", "12"]
    return called([*call, *arguments])


def test_chain_and_its_report(tiny: Tiny):
    import json

    done = evaluate(tiny, "--width", "3")
    assert done.returncode == 0, done.stderr
    report = json.loads((tiny.root / "report" / "report.json").read_text())
    assert report["drafter_info"]["digest"] == read_artifact(tiny.root / "artifact").digest()
    task = report["tasks"]["prompts"]
    assert task["exact"] == task["prompts"] == 2
    assert 1 <= task["tokens_per_step"] <= 3
    assert (report["width"], report["asked_width"]) == (4, 3)
    assert {way["width"] for way in task["ways"]} == {3}
    assert "<html" in (tiny.root / "report" / "report.html").read_text()


def test_trees(tiny: Tiny):
    """Forced, they write the plain answers; what cannot be drafted as one is refused before anything is loaded."""
    import json

    done = evaluate(tiny, "--tree", "16", "--width", "4")
    assert done.returncode == 0, done.stderr
    task = json.loads((tiny.root / "report" / "report.json").read_text())["tasks"]["prompts"]
    assert task["exact"] == task["prompts"] == 2
    assert {(way["drafts"], way["width"]) for way in task["ways"]} == {("tree of 16", 4)}
    assert "tree of 16" in (tiny.root / "report" / "report.html").read_text()
    refused(evaluate(tiny, "--tree", "16"), "width: expected 1 to 4", "got 8; name one with --width")
    refused(
        evaluate(tiny, "--tree", "32", "--drafts", "ngram", drafter="nowhere"),
        "--tree 32",
        "--drafts ngram",
    )
    refused(evaluate(tiny, "--tree", "32", "--width", "1", drafter="nowhere"), "--width 2 or more")


def test_widths_chosen_while_decoding_and_reports_compared(tiny: Tiny):
    out = tiny.root / "report"
    done = evaluate(tiny, "--temperature", "0")
    assert done.returncode == 0, done.stderr
    shown = called(["serve", "compare", str(out), str(out / "report.json")])
    assert shown.returncode == 0, shown.stderr
    (average,) = [line.split() for line in shown.stdout.splitlines() if line.strip().startswith("average")]
    assert average[1:4] == average[4:7], "the same report twice"
    refused(called(["serve", "compare", str(tiny.root)]), "no report.json")


@pytest.mark.parametrize("flags", [[], ["--block-verification"], ["--deterministic", "--width", "4"]])
def test_sampled_report(tiny: Tiny, flags: list[str]):
    """Sampled outputs are other draws than the plain loop's: the report does not count equal ones."""
    import json

    done = evaluate(tiny, "--temperature", "0.8", "--seed", "3", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tiny.root / "report" / "report.json").read_text())
    assert report["average"]["exact"] is None
    assert report["tasks"]["prompts"]["mismatches"] == []
    assert "other draws from the same distribution" in (tiny.root / "report" / "report.html").read_text()


def test_chat_answers_as_the_plain_loop(tiny: Tiny):
    engine = ["--target", str(tiny.root / "target"), "--drafter", str(tiny.root / "artifact")]
    call = ["serve", "chat", *engine, "--message", "what is it", "--max-new-tokens", "12"]
    answers = []
    for width in ("1", "4"):
        done = called([*call, "--width", width])
        assert done.returncode == 0, done.stderr
        *answer, summary = done.stdout.splitlines()[1:]
        assert "tokens/s" in summary
        answers.append(answer)
    assert answers[0] == answers[1]


def test_recipe_mistakes(tiny: Tiny):
    refused(tiny.called(tiny.root / "x", "train.stpes=3"), "train.stpes", "did you mean steps?")
    refused(called(["train", "--config", "nowhere.yaml"]), "nowhere.yaml", "wide_block.yaml")
    refused(called(["pipelines", "prepare", "--config", str(tiny.config), "batches.rows=two"]), "batches.rows", "int")


def test_prompt_mistakes(tiny: Tiny, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    refused(tiny.called(tiny.root / "x", f"prompts.sources=[{tmp_path}/empty.jsonl]"), "empty.jsonl")
    refused(tiny.called(tiny.root / "x", f"prompts.sources=[{tmp_path}/none.jsonl]"), "none.jsonl")
    refused(tiny.called(tiny.root / "x", "responses.max_new_tokens=250"), "context", "256")
    refused(tiny.called(tiny.root / "x", "batches.row_length=30"), "batches.row_length=30")
    refused(tiny.called(tiny.root / "x", "batches.rows=100"), "batches.rows=100")


def test_drafter_mistakes(tiny: Tiny):
    refused(tiny.called(tiny.root / "x", "drafter.target_layer_ids=[5]"), "drafter.target_layer_ids", "0 to 1")
    refused(tiny.called(tiny.root / "x", "drafter.mask_token_id=9999"), "drafter.mask_token_id", "9999")


def test_unwritable_places(tiny: Tiny):
    (tiny.root / "file").write_text("")
    refused(tiny.called(tiny.root / "file" / "run"), "file")
    refused(tiny.called(tiny.root / "y", f"run.data_dir={tiny.root}/file/data"), "file")


def test_too_high_a_rate_names_what_to_lower(tiny: Tiny):
    """What is kept of such a run: tests/test_only_finite_is_kept.py."""
    refused(
        tiny.called(tiny.root / "nan", "optimizer.learning_rate=1.0e+30", "optimizer.clip=1.0e+30"), "learning_rate"
    )


def test_export_mistakes(tiny: Tiny, tmp_path: Path):
    refused(called(["train", "export", "--run", str(tmp_path), "--out", str(tmp_path / "a")]), "no drafter.json")
    run = str(tiny.root / "run")
    refused(called(["train", "export", "--run", run, "--out", str(tmp_path / "a"), "--checkpoint", "7"]), "step 7")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    refused(called(["train", "export", "--run", run, "--out", str(tmp_path / "mine")]), "not a drafter artifact")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    shutil.copytree(tiny.root / "target", tmp_path / "target")
    refused(called(["train", "export", "--run", run, "--out", str(tmp_path / "target")]), "not a drafter artifact")
    assert (tmp_path / "target" / "config.json").read_bytes() == (tiny.root / "target" / "config.json").read_bytes()
    assert called(["train", "export", "--run", run, "--out", str(tmp_path / "o"), "--format", "orbax"]).returncode == 0
    refused(called(["train", "export", "--run", run, "--out", str(tmp_path / "o")]), "in another form (params)")


def test_card_and_plain_export(tiny: Tiny):
    card = (tiny.root / "artifact" / "README.md").read_text()
    assert 'num_speculative_tokens": 3' in card
    assert "--speculative-num-draft-tokens 4" in card
    assert "| task | tau |" in card
    own = tiny.called(tiny.root / "own", "drafter.markov_rank=8", "drafter.draft_vocab_size=20")
    assert own.returncode == 0, own.stderr
    export = ["train", "export", "--run", str(tiny.root / "own"), "--out"]
    refused(called([*export, str(tiny.root / "p"), "--plain"]), "--plain", "markov_rank", "train without")
    assert called([*export, str(tiny.root / "own_artifact")]).returncode == 0
    assert "a draft vocabulary and a Markov head" in (tiny.root / "own_artifact" / "README.md").read_text()


def test_training_goes_on_from_an_artifact(tiny: Tiny):
    start = f"drafter.init_from={tiny.root}/artifact"
    done = tiny.called(tiny.root / "further", start, "drafter.markov_rank=8")
    assert done.returncode == 0, done.stderr
    refused(tiny.called(tiny.root / "x", start, "drafter.causal=true"), "init_from", "causal: artifact (False")


def test_inspect_says_what_fits(tiny: Tiny):
    from tests.tiny_run import write_target

    done = called(["serve", "inspect", str(tiny.root / "artifact"), str(tiny.root / "target")])
    assert done.returncode == 0, done.stderr
    assert "artifact: a drafter" in done.stdout
    assert "num_speculative_tokens=3" in done.stdout
    assert "artifact fits" in done.stdout
    shutil.copytree(tiny.root / "target", tiny.root / "moved")
    done = called(["serve", "inspect", str(tiny.root / "artifact"), str(tiny.root / "moved")])
    assert done.returncode == 0, "the same weights under another name"
    write_target(tiny.root / "stranger" / "target", seed=8)
    done = called(["serve", "inspect", str(tiny.root / "artifact"), str(tiny.root / "stranger" / "target")])
    assert done.returncode == 1
    assert "made for another target" in done.stdout
    refused(called(["serve", "inspect", str(tiny.root)]), "directory with a config.json", "found none of them")


def test_eval_mistakes(tiny: Tiny):
    refused(evaluate(tiny, tasks="gsm9k"), "gsm9k")
    refused(evaluate(tiny, "--width", "9"), "width", "1 to 4")
    refused(evaluate(tiny, "--drafts", "both", "--width", "3"), "--width 3", "drafter or ngram")
    refused(evaluate(tiny, "--temperature", "-1"), "temperature", "at least 0")
    refused(evaluate(tiny, "--max-new-tokens", "250"), "--max-new-tokens", "256")
    refused(evaluate(tiny, drafter="run"), "no config.json")
    refused(evaluate(tiny, target="nowhere"), "nowhere")
    from tests.tiny_run import write_target

    write_target(tiny.root / "other" / "target", seed=7)  # of the same name: its weights alone are others
    refused(evaluate(tiny, target="other/target"), "made for another target", "weights")
    shutil.copytree(tiny.root / "artifact", tiny.root / "cut")
    file = tiny.root / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(evaluate(tiny, drafter="cut"), "not a whole safetensors file")
