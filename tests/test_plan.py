"""Hours and storage at scale are the arithmetic that they say they are; a user's mistakes are one line."""

import pytest

from configs.errors import UserError
from configs.schema import load_recipe
from models.aot import CHIPS
from tests.tiny import TARGET
from tests.tiny_run import called
from train.plan import Scale, answer_hours, chips_of, plan

SCALE = Scale(responses=800_000, epochs=6, mfu=0.4, efficiency=0.5, rows=64)


def test_llama_on_v5p():
    """Five taps of 4,096 bfloat16 numbers for 800,000 x 3,072 tokens are 100.7 TB; eight times the chips take an eighth
    of the hours, and as many chip hours; halving the use of the chips doubles training."""
    recipe = load_recipe("tpu/llama31_8b_w16_v5p8", [])
    found = plan(recipe, ["v5p:2x2x1", "v5p:2x4x4"], SCALE)
    small, large = found["topologies"]["v5p:2x2x1"], found["topologies"]["v5p:2x4x4"]
    assert found["tokens"] == 800_000 * 3072
    assert small["cached"]["stored_bytes"] == 800_000 * 3072 * 5 * 4096 * 2
    assert (small["chips"], large["chips"]) == (4, 32)
    for mode in ("online", "cached"):
        assert small[mode]["training_hours"] == pytest.approx(8 * large[mode]["training_hours"])
        assert small[mode]["chip_hours"] == pytest.approx(large[mode]["chip_hours"])
        seconds = small[mode]["training_hours"] * 3600
        assert small[mode]["read_bytes_per_second"] == pytest.approx(6 * small[mode]["stored_bytes"] / seconds)
    weights = 31.4 / 32 * 7e9  # of the layers up to the last that is read, roughly
    saved = (small["online"]["training_hours"] - small["cached"]["training_hours"]) * 3600 * 4 * 459e12 * 0.4
    assert saved == pytest.approx(2 * weights * 3072 * 6 * 800_000, rel=0.15)


def test_answers_take_the_rooflines_time():
    """A tiny target on a chip whose memory gives a byte a second: 2 x 32,672 of weights, and 64 rows of 2,049 positions
    of 256 bytes a step; 2,048 steps for every 64 of the answers, at half the speed."""
    recipe = load_recipe("tpu/llama31_8b_w16_v5p8", [])
    chip = type(CHIPS["v5p"])("slow", 3, 1.0, 1e12, 1.0, 1.0)
    hours = answer_hours(TARGET, recipe, chip, 10, SCALE)
    step = 2 * 32672 + 64 * 2049 * 256
    assert hours == pytest.approx(800_000 / 64 * 2048 * step / 0.5 / 10 / 3600)


def test_mistakes():
    assert chips_of("v5e:4x4") == (CHIPS["v5e"], 16)
    for name in ("v9:2x2", "v5p", "v5p:2xx1", "v5p:0x2x1"):
        with pytest.raises(UserError, match="expected v5p, v5e, v6e and its chips"):
            chips_of(name)
    done = called(["train", "plan", "--config", "tpu/llama31_8b_w16_v5p8", "--mfu", "1.5"])
    assert (done.returncode, done.stderr) == (2, "error: --mfu: expected above 0 and at most 1, got 1.5\n")
    for words, said in (
        (["--widths", "8,64"], "--widths 8,64: expected 1 among them"),
        (["--batches", "1,x"], "--batches 1,x: expected numbers of at least 1"),
        (["--acceptance", "nowhere"], "no report.json"),
    ):
        done = called(["serve", "cost", "--target", "smollm2-135m", *words])
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
