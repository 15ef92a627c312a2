"""What share of each task's tokens a draft vocabulary lacks is counted, in training and in reports, and shown."""

from pathlib import Path

import numpy as np
from rich.console import Console

from models.decode import make_engine
from models.drafters import Draft
from pipelines.prepare import describe_vocabulary
from pipelines.records import Response
from serve.cost import Cost
from serve.evaluate import Evaluator, evaluate
from serve.rendering import lacking_of, markdown, page, print_table
from tests.test_evaluation import Chat, prompt
from tests.test_nothing_whole import on_disk
from tests.test_report import made_up_report
from tests.tiny import make_artifact, make_target


def test_in_training_by_hand(tmp_path: Path):
    """Of prompts nothing counts; task a lacks the 9 of five tokens, task b none."""
    texts = [Response("a", "0", (8, 9), (5, 9, 4), True), Response("b", "1", (9,), (5, 5), True)]
    texts.append(Response("a", "2", (8,), (4, 4), True))
    said = describe_vocabulary(on_disk(tmp_path / "a" / "b" / "c", texts, size=1), np.array([4, 5]))
    assert said == "2 tokens; of held-out responses it lacks: a 20.0%, b 0.0%"


def test_in_reports(capsys):
    engine = make_engine(make_target(), make_artifact(draft_vocab_size=30))
    cost = Cost(10.0, {1: 0.0, 2: 1.0}, {1: 10.0, 2: 10.0})
    evaluator = Evaluator(engine, Chat(), 6, cost=cost, prior=[0.5], draft=Draft("drafter", 2))
    measured = evaluate(evaluator, {"t": [prompt("123"), prompt("45")]})
    said = [
        evaluator.plain.generate([[3 + int(digit) for digit in text]], max_new_tokens=6)[0] for text in ("123", "45")
    ]
    tokens = [token for answer in said for token in answer.ids]
    vocab = np.asarray(engine.drafter.draft_vocab).tolist()
    lacking = sum(token not in vocab for token in tokens) / len(tokens)
    assert measured["tasks"]["t"]["outside_draft_vocabulary"] == lacking > 0

    report = made_up_report()
    assert lacking_of(report) == "", "a report of the whole vocabulary"
    name = next(iter(report["tasks"]))
    report["tasks"][name]["outside_draft_vocabulary"] = 0.0163
    line = f"Tokens outside the draft vocabulary: {name} 1.6%."
    print_table(report, Console(width=120))
    assert all(line in text for text in (markdown(report), page(report), capsys.readouterr().out))
