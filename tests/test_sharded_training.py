"""Training on a (data=4, fsdp=2) mesh of eight devices gives the losses and parameters of one device, and really
shards the parameters."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import Tiny, checkpoint_arrays, make_tiny

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    return [line["values"]["loss"] for line in lines if line["kind"] == "train"]


def test_eight_devices_equal_one(tiny: Tiny):
    shape = ("batches.rows=8", "train.eval_every=0")
    one, eight = tiny.root / "one", tiny.root / "eight"
    done = tiny.train(one, *shape)
    assert done.returncode == 0, done.stderr
    done = tiny.train(eight, *shape, "mesh.data=4", "mesh.fsdp=2", environment=EIGHT)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(eight), losses(one), rtol=1e-5)
    expected, got = checkpoint_arrays(one, 12), checkpoint_arrays(eight, 12)
    for name, value in expected.items():
        if name.startswith("params"):
            np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)
    sharding = (eight / "checkpoints" / "12" / "params" / "_sharding").read_text()
    assert "fsdp" in sharding, "parameters are split over fsdp"


def test_more_devices_than_there_are(tiny: Tiny):
    done = tiny.train(tiny.root / "many", "mesh.data=64")
    assert done.returncode == 2
    assert "mesh.data=64 x mesh.fsdp=1: expected 64 devices" in done.stderr
