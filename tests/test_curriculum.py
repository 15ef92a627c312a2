"""The widest blocks of a batch grow by its number, slots stay as many, and a restored iterator goes on as it would."""

from pathlib import Path

import pytest

from configs.schema import RecipeError, load_recipe
from pipelines.batches import RowSource, batches_of, stages
from pipelines.records import Response
from tests.tiny_run import on_disk

GROWING = ["batches.blocks={3: 5, 31: 2}", "batches.curriculum={11: 0.25, 16: 0.5}", "drafter.width=31"]


def test_stages_by_hand():
    """Two blocks of 30 slots are six of 10 and four of 15; accumulation makes two batches of a step."""
    recipe = load_recipe("smoke.yaml", [*GROWING, "train.steps=8", "optimizer.accumulation=2"])
    assert stages(recipe) == [(4, {3: 5, 11: 6}), (8, {3: 5, 16: 4})]


def test_batches_grow_wherever_they_are_gone_on_from(tmp_path: Path):
    recipe = load_recipe("smoke.yaml", [*GROWING, "train.steps=8", "batches.rows=2"])
    texts = [Response("t", str(number), (1, 2), (3,) * 40, True) for number in range(6)]
    source = RowSource(on_disk(tmp_path, texts), None, 90)
    whole, other = batches_of(recipe, source), batches_of(recipe, source)
    expected, states = [], []
    for _ in range(8):
        states.append(whole.get_state())
        expected.append(next(whole))
    shapes = [{name: batch[name].shape for name in batch if name.startswith("anchors")} for batch in expected]
    widest = ["anchors_w11"] * 2 + ["anchors_w16"] * 2 + ["anchors_w31"] * 4
    counts = {"anchors_w11": (2, 6), "anchors_w16": (2, 4), "anchors_w31": (2, 2)}
    assert shapes == [{"anchors_w3": (2, 5), name: counts[name]} for name in widest]
    for number in (1, 2, 3, 5):
        other.set_state(states[number])
        batch = next(other)
        assert batch.keys() == expected[number].keys()
        assert all((batch[name] == expected[number][name]).all() for name in batch)


@pytest.mark.parametrize(
    "curriculum", ["{3: 0.5}", "{31: 0.5}", "{11: 0.5, 16: 0.5}", "{16: 0.2, 11: 0.5}", "{11: 1.0}"]
)
def test_what_does_not_grow_is_refused(curriculum: str):
    with pytest.raises(RecipeError, match=r"batches\.curriculum: expected growing widths"):
        load_recipe("smoke.yaml", [*GROWING, f"batches.curriculum={curriculum}"])
