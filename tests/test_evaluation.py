"""What a report says of its answers: times as totals, turns that alternate, text in whole pieces, and parts kept."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console
from test_report import made_up_report

from models.decode import make_engine
from models.tokenizer import load_tokenizer
from pipelines.prompt_files import Message, Prompt
from serve.cost import Cost
from serve.evaluate import Evaluator, Question, evaluate, logit_gap
from serve.rendering import markdown, page, print_comparison, print_table
from serve.report import check_out, write_report
from serve.session import Answer
from serve.summary import Decoded, mismatch, pieces, speedup_of
from tests.tiny import Letters, make_artifact, make_target
from tests.tiny_run import write_target


def answer(ids: list[int], ms: float = 1.0, runs: list[int] | None = None) -> Answer:
    runs = runs or [1] * len(ids)
    return Answer(ids, "", "length", runs, [1] * len(runs), ["drafter"] * len(runs), 1.0, ms)


def decoded(plain: Answer, fast: Answer, gap: float | None = None) -> Decoded:
    return Decoded("t", "1", "p", plain, fast, fast.runs, gap)


class Chat(Letters):
    """Prompts as the digits of their text."""

    def encode_chat(self, messages):
        return [3 + int(digit) for message in messages for digit in message["content"]]


def prompt(text: str) -> Prompt:
    return Prompt("t", text, (Message("user", text),))


def make_evaluator(**options) -> Evaluator:
    engine = make_engine(make_target(), make_artifact())
    widths = (1, 2, 6)
    cost = Cost(10.0, {w: float(w > 1) for w in widths}, dict.fromkeys(widths, 10.0))
    from models.drafters import Draft

    return Evaluator(engine, Chat(), 6, cost=cost, prior=[0.5], draft=Draft("drafter", 2), **options)


def test_speedup_is_all_time_over_all_tokens():
    """10 tokens in 100 ms and 40 in 100 ms against 50 ms each: 200 ms over 100, not the rates' 12.5 over 6.25."""
    pairs = [(10, 100.0, 20.0), (40, 100.0, 80.0)]
    answers = [decoded(answer([5] * n, plain), answer([5] * n, fast)) for n, plain, fast in pairs]
    assert speedup_of(answers) == pytest.approx(200 / 100)
    pairs = [(10, 100.0, 100.0), (40, 100.0, 50.0)]
    answers = [decoded(answer([5] * n, plain), answer([5] * n, fast)) for n, plain, fast in pairs]
    assert speedup_of(answers) == pytest.approx(200 / 150)  # a sum of rates says 12.5 / 11.25 = 1.11
    longer = [decoded(answer([5] * 10, 100.0), answer([5] * 30, 150.0))]  # a sampled answer, three times as long
    assert speedup_of(longer) == pytest.approx(2.0)


def test_plain_and_speculative_take_turns(monkeypatch: pytest.MonkeyPatch):
    """Whatever the prompts' lengths: here all odd."""
    evaluator, order = make_evaluator(), []

    def asked(question, decoder):
        order.append("plain" if decoder is None else "fast")
        return answer([5])

    monkeypatch.setattr(evaluator, "answer", asked)
    monkeypatch.setattr(evaluator, "warm", lambda *_: None)
    evaluator.task("t", [prompt("123"), prompt("12345"), prompt("1"), prompt("135")], lambda *_: None)
    assert order == ["plain", "fast", "fast", "plain"] * 2


@pytest.mark.parametrize("runs", [[1] * 12, [2, 3, 7], [5, 1, 6], [12]])
def test_pieces_join_to_the_whole_text(tmp_path_factory: pytest.TempPathFactory, runs: list[int]):
    """One token a byte: characters of two and four bytes fall between steps."""
    tokenizer = load_tokenizer(str(write_target(tmp_path_factory.mktemp("bytes") / "target")))
    text = "aé😀b漢c"
    ids = tokenizer.encode(text)
    assert len(ids) == 12
    found = pieces(tokenizer, answer(ids, runs=runs))
    assert len(found) == len(runs)
    assert "".join(found) == text
    if runs == [5, 1, 6]:
        assert found == ["aé", "", "😀b漢c"]  # the emoji's last byte is the seventh


def test_pieces_of_text_that_is_no_text(tmp_path: Path):
    """A byte that begins a character and is followed by none stays a replacement character."""
    tokenizer = load_tokenizer(str(write_target(tmp_path / "target")))
    ids = [tokenizer.encode("é")[0], *tokenizer.encode("ab")]
    assert tokenizer.decode(ids) == "\ufffdab"
    for runs in ([1, 1, 1], [1, 2], [3]):
        assert "".join(pieces(tokenizer, answer(ids, runs=runs))) == "\ufffdab"


def test_an_answer_that_goes_on_is_in_the_report(tmp_path: Path):
    """No near-tie explains it: the run that proves a fault must not lose its report."""
    target = make_target()
    assert logit_gap(target, [5, 6], [7, 8], [7, 8, 9]) == float("inf")
    evaluator = make_evaluator()
    question = Question("t", "1", "p", [5, 6])
    gap = evaluator._gap(question, answer([7, 8]), answer([7, 8, 9]))
    found = mismatch(decoded(answer([7, 8]), answer([7, 8, 9]), gap))
    assert found == {"id": "1", "position": 2, "logit_gap": None}
    report = made_up_report()
    report["tasks"]["code"].update(mismatches=[found, {"id": "2", "position": 4, "logit_gap": 0.5}], exact=22)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["tasks"]["code"]["mismatches"][0] == found
    assert 'one goes on where the other ends</td>\n<td class="warn">no</td>' in page(report)
    assert "- code, prompt 1: from token 2, one goes on where the other ends: no near-tie" in markdown(report)
    assert "- code, prompt 2: from token 4, logit gap 0.5: no near-tie" in markdown(report)
    assert "- chat, prompt chat-17: from token 41, logit gap 0.00031: a near-tie" in markdown(report)


def test_where_a_report_cannot_be_written_is_known_at_once(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match=r"expected a directory to write the report into, got: .*--out"):
            check_out(place)
    check_out(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_what_was_decoded_is_kept_when_the_rest_fails(monkeypatch: pytest.MonkeyPatch, failure: BaseException):
    evaluator = make_evaluator()
    tasks = {"first": [prompt("123"), prompt("45")], "second": [prompt("678")], "third": [prompt("9")]}
    whole = evaluate(make_evaluator(), {"first": tasks["first"]})
    task = evaluator.task

    def failing(name: str, prompts: Any, advance: Any):
        if name == "second":
            monkeypatch.setattr(evaluator, "answer", lambda *_: (_ for _ in ()).throw(failure))
        return task(name, prompts, advance)

    monkeypatch.setattr(evaluator, "task", failing)
    kept: list[dict] = []
    with pytest.raises(type(failure)):
        evaluate(evaluator, tasks, keep=kept.append)
    (part,) = kept
    assert part["unfinished"] == ["second", "third"]
    assert list(part["tasks"]) == ["first"]
    for name in ("tau", "tokens", "exact", "accepted_lengths", "survival"):
        assert part["tasks"]["first"][name] == whole["tasks"]["first"][name]
    assert whole["unfinished"] == []


def test_an_unfinished_report_says_so_everywhere(tmp_path: Path):
    report = made_up_report()
    report["unfinished"] = ["maths", "law"]
    words = "Unfinished: decoding ended before the tasks maths, law."
    write_report(report, tmp_path)
    assert words in page(report)
    assert words in markdown(report)
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    with console.file:
        print_table(report, console)
        print_comparison({"a": report}, console)
    assert console.export_text().count(words) == 2
    assert words not in page(made_up_report()) + markdown(made_up_report())


def test_a_replayed_drafter_that_is_not_finite_is_named():
    artifact = make_artifact()
    artifact.weights["layers"][0]["down"] = artifact.weights["layers"][0]["down"].at[0, 0].set(jnp.nan)
    evaluator = make_evaluator()
    evaluator.engine = make_engine(make_target(), artifact)
    question = Question("t", "1", "p", [5, 6, 7])
    with pytest.raises(ValueError, match="the drafter's states are not finite"):
        evaluator._replayed([(question, answer([8, 9, 10]), answer([8, 9, 10]))])
