"""Training on a (data=2, fsdp=2, tensor=2) mesh of eight devices gives the losses and parameters of one device, and
really shards the parameters."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import EIGHT, Tiny, checkpoint_arrays, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    return [line["values"]["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_eight_devices_equal_one(tiny: Tiny, optimizer: str):
    rate = "0.003" if optimizer == "muon" else "null"
    shape = ("batches.rows=8", "train.eval_every=0", f"optimizer.muon_learning_rate={rate}")
    one, eight = tiny.root / f"{optimizer}-one", tiny.root / f"{optimizer}-eight"
    done = tiny.train(one, *shape)
    assert done.returncode == 0, done.stderr
    done = tiny.train(eight, *shape, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", environment=EIGHT)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(eight), losses(one), rtol=1e-5)
    expected, got = checkpoint_arrays(one, 12), checkpoint_arrays(eight, 12)
    for name, value in expected.items():
        if name.startswith("params"):
            np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)
    # D over fsdp; heads, mlp and features over tensor; norms are whole.
    layer = {"q": ["fsdp", "tensor"], "kv": ["fsdp", "tensor"], "out": ["tensor", "fsdp"]}
    layer |= {"gate": ["fsdp", "tensor"], "up": ["fsdp", "tensor"], "down": ["tensor", "fsdp"]}
    layer |= {key: [] for key in ("attention_norm", "mlp_norm", "q_norm", "k_norm")}
    expected = {f"drafter.layers.0.{name}": split for name, split in layer.items()}
    expected |= {"drafter.fc": ["tensor", "fsdp"], "drafter.hidden_norm": [], "drafter.norm": []}
    assert splits(eight) == expected
    assert splits(one) == {key: [] for key in expected}


def splits(run: Path) -> dict[str, list[str | None]]:
    """Which mesh axis splits each dimension of every parameter, as Orbax found them when it saved the last step."""
    raw = json.loads((run / "checkpoints" / "12" / "params" / "_sharding").read_text())
    out = {}
    for name, text in raw.items():
        split = json.loads(text).get("partition_spec", [])
        while split and split[-1] is None:
            split.pop()
        out[base64.b64decode(name).decode()] = split
    return out


def test_more_devices_than_there_are(tiny: Tiny):
    done = tiny.called(tiny.root / "many", "mesh.tensor=64")
    assert done.returncode == 2
    assert "mesh.data=1 x mesh.fsdp=1 x mesh.tensor=64: expected 64 devices" in done.stderr
