"""A trained drafter exported in bfloat16 is as good a drafter: tau within 1 % of the float32 artifact's."""

from pathlib import Path

import pytest

from serve.cost import Cost
from serve.evaluate import Evaluator, Question
from serve.load import load_engine
from serve.session import Decoder
from serve.summary import tau_of
from tests.tiny_run import Tiny, command, make_tiny, write_prompts

PROMPTS, NEW = 96, 20


def tau(tiny: Tiny, artifact: Path) -> float:
    """At full width, over the target's own answers to the prompts it was trained on: a tiny one learns no others."""
    engine, tokenizer, _ = load_engine(str(tiny.root / "target"), artifact, "float32")
    ids = [tokenizer.encode_chat([{"role": "user", "content": f"say {37 * number}"}]) for number in range(PROMPTS)]
    plain = Decoder(engine, tokenizer, None).generate(ids, max_new_tokens=NEW)
    questions = [Question("task", str(number), "", prompt) for number, prompt in enumerate(ids)]
    evaluator = Evaluator(engine, tokenizer, NEW, cost=Cost(1.0, {1: 0.0, 4: 0.1}, {1: 1.0, 4: 1.1}), prior=[0.5])
    pairs = [(question, answer, answer) for question, answer in zip(questions, plain, strict=True)]
    return tau_of(evaluator.at_full_width(pairs))


@pytest.mark.slow
def test_same_tau(tmp_path: Path):
    tiny = make_tiny(tmp_path)
    write_prompts(tiny.root / "prompts.jsonl", PROMPTS + 4)
    long = ["train.steps=500", "train.eval_every=0", "train.checkpoint_every=500", f"prompts.limit={PROMPTS}"]
    done = tiny.called(
        tmp_path / "run",
        *long,
        "batches.blocks={4: 16}",
        "batches.rows=4",
        "drafter.num_layers=2",
        "drafter.target_layer_ids=[0,1]",
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for dtype in ("float32", "bfloat16"):
        export = ["train", "export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / dtype), "--dtype", dtype]
        done = command(export)
        assert done.returncode == 0, done.stderr
        found[dtype] = tau(tiny, tmp_path / dtype)
    assert found["float32"] > 1.15, "it learned something"
    assert abs(found["bfloat16"] / found["float32"] - 1) < 0.01, found
