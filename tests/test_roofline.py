"""What a verification takes at least, and where it ends to be free: against values worked out by hand.

The tiny target: 4 layers of 32 x (64 + 32 + 3 x 48) = 7,680 weights and a head of 61 x 32: 32,672. A position's keys
and values are 2 x 4 layers x 2 heads x 8 = 128 numbers; a token attends to each at 4 x 4 heads x 8 x 4 layers = 512
operations.
"""

import pytest

from models.roofline import Machine, num_matmul_weights, ridge_width, verify_work
from serve.cost_study import free_to, knee
from tests.tiny import TARGET


def test_bytes_and_operations():
    work = verify_work(TARGET, 4, batch=2, width=3, context=10)
    assert num_matmul_weights(TARGET) == 32672
    assert work.bytes == 4 * 32672 + 2 * 13 * 4 * 128
    assert work.flops == 2 * 3 * (2 * 32672 + 512 * 12)  # tokens see 11, 12 and 13 positions
    assert work.ms(Machine("slow memory", peak=1e12, bandwidth=1e6)) == pytest.approx(144.0)
    assert work.ms(Machine("slow matmuls", peak=1e6, bandwidth=1e12)) == pytest.approx(428.928)


def test_the_ridge_of_a_bare_target_is_the_machines():
    """In two bytes a weight: peak over bandwidth tokens, shared among the rows, but for what a token sees of itself."""
    v5p = Machine("v5p", 459e12, 2765e9)
    for batch in (1, 4):
        ridge = batch * ridge_width(TARGET, 2, v5p, batch=batch, context=0)
        assert ridge == pytest.approx(166 * 2 * 32672 / (2 * 32672 + 512), rel=1e-3)
    assert ridge_width(TARGET, 2, v5p, batch=4, context=4096) > ridge_width(TARGET, 2, v5p, batch=4, context=0) / 1.01


def test_free_up_to_a_tenth_more():
    assert free_to({1: 10.0, 8: 10.9, 64: 11.0, 128: 11.1, 256: 9.0}) == 64, "a later dip is not free"
    assert free_to({1: 10.0, 2: 12.0, 4: 10.0}) == 1
    assert free_to({1: 10.0}) == 1


def test_the_knee_of_a_hinge():
    assert knee({1: 10.0, 64: 10.0, 128: 10.0, 256: 20.0, 512: 40.0}) == pytest.approx(128)
    assert knee({1: 10.0, 64: 10.0, 128: 10.1}) is None, "free to the widest"
    assert knee({1: 10.0, 2: 20.0, 4: 40.0}) == pytest.approx(1)
    assert knee({1: 10.0, 64: 90.0}) is None
    assert knee({1: 10.0, 64: 30.0, 128: 20.0}) is None
