"""Replaying a greedy answer at full width takes exactly the steps that decoding it takes."""

import numpy as np
import pytest

from models.decode import make_engine
from models.drafters import Draft
from serve.cost import Cost
from serve.evaluate import Evaluator, Question
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target

COST = Cost(10.0, {1: 0.0, 6: 1.0}, {1: 10.0, 6: 11.0})


@pytest.mark.parametrize("markov_size", [None, 16])
def test_equal_runs(markov_size: int | None):
    """Seven prompts, a batch and a part of one; over seven tokens drafts are often right."""
    target = make_target(vocab_size=7, eos_ids=(2,), tied_head=True)
    engine = make_engine(target, make_artifact(vocab_size=7, mask_token_id=6, tied_head=True, markov_size=markov_size))
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, 6, 5 + 2 * number).tolist() for number in range(7)]
    evaluator = Evaluator(engine, Letters(), 40, cost=COST, prior=[0.5])
    plain = [Decoder(engine, Letters(), None).generate([ids], max_new_tokens=40)[0] for ids in prompts]
    decoded = [Decoder(engine, Letters(), Draft("drafter", 6)).generate([ids], max_new_tokens=40)[0] for ids in prompts]
    pairs = [
        (Question("task", str(number), "", ids), answer, answer)
        for number, (ids, answer) in enumerate(zip(prompts, plain, strict=True))
    ]
    replayed = evaluator.at_full_width(pairs)
    assert [answer.full_width_runs for answer in replayed] == [answer.runs for answer in decoded]
    lengths = {run for answer in decoded for run in answer.runs}
    assert len(lengths) >= 3, "steps that accepted nothing, something and more"
