"""The artifact is the public DFlash layout: names, shapes and keys; it reads back exactly; what does not fit is
refused by name."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.drafters.artifact import check_fit, read_artifact, write_artifact
from tests.tiny import make_artifact, make_target
from train.export import Form, check_out


def test_names_and_shapes_are_the_contract(tmp_path: Path):
    write_artifact(make_artifact(num_layers=5, target_layer_ids=(0, 1, 2, 3)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert len(tensors) == 58
    assert tensors["fc.weight"].shape == (32, 4 * 32)
    expected = {
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (16, 32),
        "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32),
        "self_attn.q_norm.weight": (8,),
        "self_attn.k_norm.weight": (8,),
        "mlp.gate_proj.weight": (48, 32),
        "mlp.up_proj.weight": (48, 32),
        "mlp.down_proj.weight": (32, 48),
        "input_layernorm.weight": (32,),
        "post_attention_layernorm.weight": (32,),
    }
    for index in range(5):
        for name, shape in expected.items():
            assert tensors[f"layers.{index}.{name}"].shape == shape
    assert {"hidden_norm.weight", "norm.weight"} <= set(tensors)


def test_config_is_what_every_loader_needs(tmp_path: Path):
    write_artifact(make_artifact(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DFlashDraftModel"]
    assert config["auto_map"] == {"AutoModel": "dflash.DFlashDraftModel"}
    assert config["model_type"] == "qwen3"
    assert config["block_size"] == 6
    assert config["dflash_config"] == {"mask_token_id": 60, "target_layer_ids": [0, 2]}
    assert config["layer_types"] == ["full_attention"] * 2
    assert config["num_target_layers"] == 4
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": (True, True)},
        {"windows": (7, None)},
        {"draft_vocab_size": 20},
        {"markov_size": 12},
        {"markov_rank": 3},
        {"confidence_head": True},
        {"sample_from_anchor": True},
    ],
)
def test_what_plain_loaders_would_run_wrong_has_its_own_name(tmp_path: Path, changes: dict):
    write_artifact(make_artifact(**changes), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["WideblockDraftModel"]
    assert "auto_map" not in config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draft_vocab_size": 20},
        {"causal": (True, True)},
        {"windows": (7, None), "causal": (True, False)},
        {"windows": (7, 7)},
        {"markov_size": 12},
        {"markov_rank": 3, "draft_vocab_size": 20},
        {"confidence_head": True},
        {"confidence_head": True, "markov_rank": 3},
        {"sample_from_anchor": True, "markov_rank": 3},
        {"markov_rank": 3, "markov_head_type": "gated"},
        {"markov_rank": 3, "markov_head_type": "rnn", "confidence_head": True},
        {"markov_rank": 3, "markov_head_type": "xpress", "draft_vocab_size": 20},
    ],
)
def test_round_trip_is_exact(tmp_path: Path, changes: dict):
    artifact = make_artifact(**changes)
    write_artifact(artifact, tmp_path / "a")
    again = read_artifact(tmp_path / "a")
    assert again.config == artifact.config
    assert jax.tree.all(
        jax.tree.map(lambda x, y: (np.asarray(x) == np.asarray(y)).all(), again.weights, artifact.weights)
    )
    if artifact.draft_vocab is not None:
        assert again.draft_vocab.tolist() == artifact.draft_vocab.tolist()
    write_artifact(again, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_maps_of_the_draft_vocabulary(tmp_path: Path):
    """As PyPI `speculators` has them: row i is token i + d2t[i]; t2d says which tokens have a row."""
    artifact = make_artifact(draft_vocab_size=20, markov_rank=3)
    write_artifact(artifact, tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (np.int64, np.bool_)
    assert (tensors["d2t"] + np.arange(20)).tolist() == artifact.draft_vocab.tolist()
    assert np.flatnonzero(tensors["t2d"]).tolist() == artifact.draft_vocab.tolist()
    assert tensors["markov_head.markov_w1.weight"].shape == (61, 3)
    assert tensors["markov_head.markov_w2.weight"].shape == (20, 3)
    expected = {"draft_vocab_size": 20, "markov_rank": 3, "markov_head_type": "vanilla"}
    expected |= {"sample_from_anchor": False, "enable_confidence_head": False}
    assert {name: config[name] for name in expected} == expected


def test_slots_that_draft_from_the_anchor_on(tmp_path: Path):
    """`block_size` counts slots: 5 of them draft 5 tokens, so that 6 are verified."""
    write_artifact(make_artifact(sample_from_anchor=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["block_size"], config["sample_from_anchor"]) == (5, True)
    assert read_artifact(tmp_path).config.width == 6


def test_an_earlier_layout_is_read(tmp_path: Path):
    """The draft vocabulary as ids, sizes of heads in dflash_config."""
    artifact = make_artifact(draft_vocab_size=20, markov_size=12)
    write_artifact(artifact, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("draft_vocab_size", "markov_size"):
        config["dflash_config"][name] = config.pop(name)
    for name in ("sample_from_anchor", "enable_confidence_head"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["d2t"], tensors["t2d"]
    save_file(tensors | {"draft_vocab_ids": artifact.draft_vocab.astype(np.int32)}, tmp_path / "model.safetensors")
    again = read_artifact(tmp_path)
    assert (again.config, again.digest()) == (artifact.config, artifact.digest())


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_killed_while_replacing_another(tmp_path: Path, survived: int):
    """After any number of file operations: the old drafter, the new one, or none; and another export goes on there."""
    old, new = make_artifact(1), make_artifact(2, mask_token_id=59)
    write_artifact(old, tmp_path / "a")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from models.drafters.artifact import write_artifact\n"
        "from tests.tiny import make_artifact\n"
        "left = int(sys.argv[2])\n"
        "def dying(operation):\n"
        "    def call(*arguments, **named):\n"
        "        global left\n"
        "        if left == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left -= 1\n"
        "        return operation(*arguments, **named)\n"
        "    return call\n"
        "artifact = make_artifact(2, mask_token_id=59)\n"
        "os.replace, Path.unlink = dying(os.replace), dying(Path.unlink)\n"
        "write_artifact(artifact, Path(sys.argv[1]))\n"
    )
    call = [sys.executable, "-c", program, str(tmp_path / "a"), str(survived)]
    done = subprocess.run(call, cwd=Path(__file__).resolve().parent.parent, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == -signal.SIGKILL
    if (tmp_path / "a" / "config.json").is_file():
        found = read_artifact(tmp_path / "a")
        assert (found.config, found.digest()) in [(one.config, one.digest()) for one in (old, new)]
    else:
        with pytest.raises(ValueError, match=r"no config\.json"):
            read_artifact(tmp_path / "a")
    check_out(tmp_path / "a", Form())
    write_artifact(new, tmp_path / "a")
    assert read_artifact(tmp_path / "a").digest() == new.digest()


def edit(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps(config))


def test_refusals(tmp_path: Path):
    def written(name: str) -> Path:
        write_artifact(make_artifact(), tmp_path / name)
        return tmp_path / name

    path = written("foreign")
    edit(path, architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"architectures 'LlamaForCausalLM'; expected a drafter"):
        read_artifact(path)
    path = written("extra")
    edit(path, dflash_config={"mask_token_id": 1, "target_layer_ids": [0, 2], "markov_rank": 4})
    with pytest.raises(ValueError, match=r"dflash_config\.markov_rank is not supported"):
        read_artifact(path)
    path = written("wider")
    edit(path, hidden_size=64)
    with pytest.raises(ValueError, match=r"tensor fc\.weight: expected shape"):
        read_artifact(path)
    path = written("deeper")
    edit(path, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ValueError, match=r"tensor layers\.2\..* is missing"):
        read_artifact(path)
    path = written("cut")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        read_artifact(path)
    with pytest.raises(ValueError, match=r"no config\.json; expected a drafter artifact"):
        read_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, dtype: str):
    """One of some thousand values: decoding would go on, right and at tau 1."""
    artifact = make_artifact()
    layer = artifact.weights["layers"][1]
    layer["kv"] = layer["kv"].at[3, 8 + 4].set(value)  # a value of the first head
    write_artifact(artifact, tmp_path, dtype)
    with pytest.raises(ValueError, match=r"tensor layers\.1\.self_attn\.v_proj\.weight holds NaN or infinity"):
        read_artifact(tmp_path)


def test_another_target_is_refused_with_every_difference(tmp_path: Path):
    artifact = make_artifact()
    check_fit(artifact, make_target(), tmp_path)
    with pytest.raises(
        ValueError, match=r"vocabulary: drafter expects 61, tiny has 70.*taps: layers \[2\] do not exist"
    ):
        check_fit(artifact, make_target(vocab_size=70, num_layers=2), tmp_path)
    stamped = make_artifact()
    stamped.origin["target_fingerprint"] = "0" * 16
    with pytest.raises(ValueError, match="weights: drafter expects 0000000000000000"):
        check_fit(stamped, make_target(), tmp_path)
