"""What acceptance is worth, against values worked out by hand: survival 1/2, 1/4, 1/8 at width 4."""

import dataclasses
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from configs.errors import UserError
from models.roofline import Machine
from serve.cost_report import assemble, print_study, write_study
from serve.cost_study import Curve
from serve.scaling import better, conditional, extended, geometric, mean_survival, predicted, scaling, survivals_of

HALVES = [0.5, 0.25, 0.125]
CURVE = Curve(1, 512, {1: 10.0, 2: 10.0, 4: 12.0, 32: 40.0}, {1: 0.0, 2: 1.0, 4: 3.0, 32: 6.0}, {}, 100.0)


def test_a_geometric_survival_is_fitted_exactly():
    assert geometric(HALVES) == pytest.approx(0.5)
    found = scaling(HALVES)
    assert found["ceiling"] == pytest.approx(2.0)
    assert found["ceiling_better"] == pytest.approx(1 / 0.46)
    last = found["widths"][-1]
    assert last["width"] == 4
    assert last["tau"] == last["geometric_tau"] == pytest.approx(1.875)
    assert last["tau_better"] == pytest.approx(1 + 0.54 + 0.54**2 + 0.54**3)
    assert last["tau_twice_as_wide"] == pytest.approx(2 - 2**-7)


def test_other_survivals_are_fitted_by_all_slots():
    """Of 10 blocks 8 pass slot 1, 2 slot 2, none slot 3: 10 of 20 slots tried were accepted."""
    survival = [0.8, 0.2, 0.0]
    assert geometric(survival) == pytest.approx(0.5)
    assert conditional(survival) == pytest.approx([0.8, 0.25, 0.0])
    assert better([0.98, 0.0]) == [1.0, 0.0], "never above 1, and nothing where nothing was seen"
    assert extended(survival, 5) == [0.8, 0.2, 0.0, 0.0, 0.0]
    assert extended(HALVES, 2) == [0.5, 0.25]


def test_speedups():
    """Tokens a step over what the step takes, single tokens taking 10 ms."""
    found = predicted(CURVE, HALVES)
    assert found["widths"] == pytest.approx({1: 1.0, 2: 1.5 * 10 / 11, 4: 1.875 * 10 / 15})
    assert found["best"]["width"] == 2
    assert found["best"]["speedup_better"] == pytest.approx(1.54 * 10 / 11)
    assert predicted(CURVE, HALVES[:2])["trees"] == {}, "their blocks are wider than the drafter's"


def test_a_tree_costs_its_nodes_and_is_accepted_more_often():
    """16 nodes of a block of 8: 17 slots, 13/28 of the way from width 4 to 32; a slot misses with m^1.5, and
    so with 7 of a block of 4: 8 slots, 4/28 of the way."""
    found = predicted(CURVE, [0.5**slot for slot in range(1, 8)])
    passed = 1 - 0.5**1.5
    tau = sum(passed**slot for slot in range(8))
    taken = 12 + 28 * 13 / 28 + 3 + 3 * 4 / 28
    fewer = sum(passed**slot for slot in range(4)) * 10 / (12 + 4 + 3)
    assert found["trees"] == {7: pytest.approx(fewer), 16: pytest.approx(tau * 10 / taken)}
    assert found["best_tree"]["nodes"] == 7


def test_drafting_never_costs_a_part_of_its_narrowest_block():
    """A block of 8 was not timed, and is not 7/15 of one of 16."""
    curve = Curve(1, 512, {1: 10.0, 16: 10.0, 64: 10.0}, {1: 0.0, 16: 2.0, 64: 2.0}, {}, 100.0)
    found = predicted(curve, [0.0] * 15)
    assert found["widths"] == pytest.approx({1: 1.0, 16: 10 / 12})
    assert found["trees"][16] == pytest.approx(10 / 12)


def test_what_is_written_can_be_read(tmp_path: Path):
    """Charts are files of their own, and cost.json is the study."""
    curve = dataclasses.replace(CURVE, floor_ms={1: 5.0, 2: 5.0, 4: 5.0, 32: 30.0})
    none = Curve(64, 512, {}, {}, {}, 100.0)
    machine = Machine("any", 1e12, 1e9)
    study = assemble([curve, none], machine, {"one": HALVES, "two": [0.5, 0.5, 0.0]}, {"target": "tiny"})
    files = write_study(study, tmp_path)
    assert [file.name for file in files] == ["cost.json", "verify.svg", "survival.svg", "speedup.svg", "tau.svg"]
    for file in files[1:]:
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(study))
    assert study["curves"][0]["free_to"] == 2
    assert study["scaling"]["tasks"]["one"]["ceiling"] == pytest.approx(2.0)
    console = Console(file=io.StringIO(), width=120)
    print_study(study | {"dtype": "float32", "source": "measured"}, console)
    said = console.file.getvalue()  # pyright: ignore
    assert "batch 64, context 512: does not fit" in said
    assert "free (within 10%) to W = 2; knee at W = 2" in said


def test_tasks_count_alike():
    report = {"tasks": {"one": {"survival": [0.5, 0.0]}, "two": {"survival": [1.0, 0.5]}}}
    assert mean_survival(survivals_of(report, "here")) == [0.75, 0.25]
    with pytest.raises(UserError, match="here: expected a report with at least one task"):
        survivals_of({"tasks": {}}, "here")
