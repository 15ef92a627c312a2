"""The widest blocks grow when enough of theirs are accepted whole, slots stay as many, and a run that is killed and
gone on with is the run; what it hands on is as wide as it was trained."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.schema import RecipeError, load_recipe
from models.drafters.artifact import read_artifact
from models.drafters.dflash import Drafter
from pipelines.batches import RowSource, TrainBatches, draw_anchors, widest_in_turn
from pipelines.records import Response
from tests.tiny import make_artifact
from tests.tiny_run import Tiny, assert_same_arrays, checkpoint_arrays, make_tiny, on_disk
from train.acceptance import Acceptance, Walk
from train.checkpoint import read_metadata
from train.curriculum import Curriculum
from train.export import export, trained_width

GROWING = ["batches.blocks={3: 5, 31: 2}", "batches.curriculum={11: 0.25, 16: 0.5}", "drafter.width=31"]


def test_widths_by_hand():
    """Two blocks of 30 slots are six of 10 and four of 15."""
    assert widest_in_turn(load_recipe("smoke.yaml", GROWING).batches) == {11: 6, 16: 4, 31: 2}


def test_accepted_whole_by_hand():
    """Width 3. Of 3 3 1 the first two have room for a whole block and fill it; of 1 2 3 2 all but the last have."""
    acceptance = Acceptance(3, [Walk("t", [3, 3, 1]), Walk("t", [1, 2, 3, 2]), Walk("u", [2])])
    assert acceptance.whole == 3 / 5
    assert Acceptance(4, [Walk("t", [3])]).whole == 0


def test_grows_one_width_at_a_time():
    recipe = load_recipe("smoke.yaml", GROWING)
    curriculum, seen = Curriculum(recipe.batches), []
    quarter, all_of = [1, 1, 1, 11, 10], [16, 16, 1]
    for step, runs in enumerate(([1, 5, 2, 9, 10], quarter, quarter, all_of, all_of), start=1):
        curriculum.consider(step, Acceptance(curriculum.width, [Walk("t", [*runs])]))
        seen.append(curriculum.width)
    assert (seen, curriculum.grown) == ([11, 16, 16, 31, 31], [2, 4])


def test_anchors_in_turn_take_each_others_places():
    """Those of other blocks are the same as without a curriculum, and so are those of the widest."""
    row = {"startable": np.arange(40) > 8}
    alone = draw_anchors(row, {3: 5, 31: 2}, np.random.default_rng(0))
    both = draw_anchors(row, {3: 5, 31: 2}, np.random.default_rng(0), {11: 6, 31: 2})
    assert all((both[name] == alone[name]).all() for name in alone)
    assert set(both["anchors_w31"]) < set(both["anchors_w11"])
    assert not set(both["anchors_w3"]) & set(both["anchors_w11"])


def test_batches_at_a_width_wherever_they_are_gone_on_from(tmp_path: Path):
    recipe = load_recipe("smoke.yaml", [*GROWING, "batches.rows=2"])
    texts = [Response("t", str(number), (1, 2), (3,) * 40, True) for number in range(6)]
    source = RowSource(on_disk(tmp_path, texts), None, 90)
    whole, other = TrainBatches(recipe, source), TrainBatches(recipe, source)
    counts = {11: (2, 6), 16: (2, 4), 31: (2, 2)}
    expected, states = [], []
    widths = (11, 11, 16, 31)
    for width in widths:
        states.append(whole.get_state())
        whole.widest = width
        expected.append(batch := next(whole))
        shapes = {name: batch[name].shape for name in batch if name.startswith("anchors")}
        assert shapes == {"anchors_w3": (2, 5), f"anchors_w{width}": counts[width]}
    for number in (1, 2, 3):
        other.set_state(states[number])
        other.widest = widths[number]
        batch = next(other)
        assert batch.keys() == expected[number].keys()
        assert all((batch[name] == expected[number][name]).all() for name in batch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("growing"))


def test_a_run_grows_and_hands_on_what_it_trained(tiny: Tiny, tmp_path: Path):
    """Blocks grow at step 4, and are then asked for more than they reach; killed after step 8 it goes on alike."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    asked = ["batches.blocks={2: 4, 6: 2}", "drafter.width=6", "batches.curriculum={3: 0.0, 4: 1.0}"]
    asked += ["train.steps=12", "train.eval_every=4", "train.checkpoint_every=4", "train.keep=5"]
    done = tiny.called(straight, *asked)
    assert done.returncode == 0, done.stderr
    assert "step 4: the widest blocks grow to 4" in done.stdout
    about = {step: read_metadata(straight / "checkpoints" / str(step)) for step in (4, 8, 12)}
    assert [(about[step]["width"], about[step]["grown"]) for step in about] == [(3, [4]), (4, [4]), (4, [4])]
    assert [about[step]["acceptance"]["width"] for step in about] == [3, 4, 4]
    for step, width in ((4, 3), (12, 4)):
        export(straight, tmp_path / str(step), step)
        assert read_artifact(tmp_path / str(step)).config.width == width
    shutil.copytree(straight, killed)
    shutil.rmtree(killed / "checkpoints" / "12")
    done = tiny.called(killed, *asked, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on from step 8" in done.stdout
    assert_same_arrays(checkpoint_arrays(killed, 12), checkpoint_arrays(straight, 12))


def test_a_curriculum_by_the_step_is_not_gone_on_with(tmp_path: Path):
    """What an earlier revision wrote; without a curriculum it goes on."""
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "metadata").write_text('{"step": 8}')
    with pytest.raises(UserError, match=r"its batches\.curriculum went by the step"):
        Curriculum(load_recipe("smoke.yaml", GROWING).batches).go_on(tmp_path)
    plain = Curriculum(load_recipe("smoke.yaml").batches)
    plain.go_on(tmp_path)
    assert (plain.grown, len(plain.widths)) == ([], 1)


def test_a_refiner_is_cut_to_its_trained_width():
    """It drafts what the wider one drafts in blocks so narrow."""
    wide = make_artifact(markov_rank=3, markov_head_type="xpress", width=6)
    mixer = wide.weights["mixing"]["mix_l"]
    config, weights = trained_width(wide.config, wide.weights, 4)
    assert (config.width, weights["mixing"]["mix_l"].shape) == (4, (3, 4, 4))
    assert (weights["mixing"]["mix_l"] == mixer[:, :4, :4]).all()
    Drafter(config, weights, "float32", None)


@pytest.mark.parametrize("curriculum", ["{3: 0.5}", "{31: 0.5}", "{16: 0.2, 11: 0.5}", "{11: 1.5}", "{11: -0.1}"])
def test_what_does_not_grow_is_refused(curriculum: str):
    with pytest.raises(RecipeError, match=r"batches\.curriculum: expected growing widths"):
        load_recipe("smoke.yaml", [*GROWING, f"batches.curriculum={curriculum}"])


def test_growing_needs_evaluations():
    with pytest.raises(RecipeError, match=r"batches\.curriculum: expected a train\.eval_every above 0"):
        load_recipe("smoke.yaml", [*GROWING, "train.eval_every=0"])
