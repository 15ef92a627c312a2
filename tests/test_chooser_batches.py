"""What is drafted for a batch goes by what steps of so many rows cost: where compute is the limit, nothing is."""

from models.drafters import SINGLE, Draft
from serve.choose import Chooser, Seen
from serve.cost import Cost

ALONE = Cost(10.0, {1: 0.0, 2: 1.0, 4: 1.0, 8: 1.0}, {1: 10.0, 2: 10.5, 4: 11.0, 8: 12.0})
FOUR = Cost(16.0, {1: 0.0, 2: 2.0, 4: 2.0}, {1: 16.0, 2: 19.0, 4: 32.0})
SIXTEEN = Cost(40.0, {1: 0.0, 2: 4.0, 4: 4.0}, {1: 40.0, 2: 70.0, 4: 130.0})
DRAFTS = [SINGLE, *(Draft("drafter", width) for width in (2, 4, 8))]


def test_width_by_rows():
    """Every slot right in 9 of 10: tau 1.9, 3.44, 5.70 at widths 2, 4, 8. By hand, milliseconds a token:

    1 row: 10, 6.05, 3.49, 2.28; 4 rows: 16, 11.05, 9.89. At 5 of 10, tau 1.5 and 1.88, 16 rows: 40, 49.3, 71.5.
    """
    chooser = Chooser(ALONE, [0.9], DRAFTS, batches={4: FOUR, 16: SIXTEEN})
    assert [chooser.pick(rows).width for rows in (1, 2, 4)] == [8, 4, 4]
    assert round(chooser.token_ms(DRAFTS[2], 3), 2) == round(34 / 3.439, 2)
    halves = Chooser(ALONE, [0.5], DRAFTS, batches={4: FOUR, 16: SIXTEEN})
    assert halves.pick(1).width > 1
    assert [halves.pick(rows) for rows in (5, 16, 20)] == [SINGLE] * 3


def test_a_hurry_leaves_what_is_free():
    """Drafts that cost a sixth more than a plain step and up go; one that costs a fiftieth stays."""
    assert Chooser(ALONE, [0.9], DRAFTS).pick(hurry=True) == SINGLE
    free = Cost(10.0, {1: 0.0, 2: 0.1, 4: 0.1, 8: 0.1}, {1: 10.0, 2: 10.1, 4: 10.1, 8: 10.6})
    assert Chooser(free, [0.9], DRAFTS).pick(hurry=True) == DRAFTS[2]


def test_steps_that_take_longer_than_they_were_timed():
    """Four rows pay at width 4 by the table; where such a step takes four fifths longer they do not, nor are they tried
    again for many segments; where all steps do, they still pay."""
    for slower, expected in (({4: 1.8}, SINGLE), (dict.fromkeys((1, 4), 1.8), DRAFTS[2])):
        chooser, picked = Chooser(ALONE, [0.9], DRAFTS[:1] + DRAFTS[2:3], batches={4: FOUR}), []
        for _ in range(60):
            picked.append(draft := chooser.pick(4))
            runs = [4, 4, 4, 1, 4, 4, 4, 1] if draft.width == 4 else [1] * 8
            ms = 8 * FOUR.drafting_ms(draft) * slower.get(draft.width, 1.0)
            chooser.observe(draft, [Seen(runs, [False] * 8, range(1000))] * 4, rows=4, ms=ms)
        assert picked[0] == DRAFTS[2]
        assert picked.count(expected) >= 52


def test_the_first_step_of_a_program_says_nothing_of_later_ones():
    """Where requests sample, a draft's first segment compiles for seconds."""
    chooser = Chooser(ALONE, [0.9], DRAFTS, batches={4: FOUR})
    chooser.observe(draft := chooser.pick(4), [Seen([1] * 8, [False] * 8, range(1000))] * 4, rows=4, ms=10_000.0)
    assert chooser.pace(draft, 4) == 1.0


def test_without_batches_one_row_stands_for_all():
    chooser = Chooser(ALONE, [0.9], DRAFTS)
    assert chooser.pick(16) == chooser.pick(1)
