"""Drafters written by others load as the same drafter, however they spell it; what we do not compute is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.drafters.artifact import check_fit, read_artifact, write_artifact
from tests.tiny import make_artifact, make_target


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_artifact(make_artifact(), tmp_path / "a")
    return tmp_path / "a"


def edit(path: Path, *, drop: tuple[str, ...] = (), **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    config = {name: value for name, value in (config | changes).items() if name not in drop}
    (path / "config.json").write_text(json.dumps(config))


def assert_same(path: Path, tolerance: float = 0.0) -> None:
    expected, found = make_artifact(), read_artifact(path)
    assert found.config == expected.config
    close = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() <= tolerance), found.weights, expected.weights)
    assert jax.tree.all(close)


def test_names_with_a_prefix(written: Path):
    file = written / "model.safetensors"
    tensors = {f"model.{name}": value for name, value in load_file(file).items()}
    save_file(tensors, file)
    assert_same(written)


def test_sharded(written: Path):
    file = written / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    index = {}
    for part, mine in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in mine}, written / shard)
        index |= dict.fromkeys(mine, shard)
    (written / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same(written)
    (written / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: missing"):
        read_artifact(written)


def test_bfloat16(written: Path):
    file = written / "model.safetensors"
    save_file({name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(file).items()}, file)
    assert_same(written, tolerance=0.02)


def test_fields_at_the_top_level_and_block_size_nested(written: Path):
    config = json.loads((written / "config.json").read_text())
    edit(written, **config["dflash_config"], drop=("dflash_config",))
    assert_same(written)
    edit(written, dflash_config={**config["dflash_config"], "block_size": 6}, drop=("block_size",))
    assert_same(written)


@pytest.mark.parametrize("drop", ["rope_theta", "rope_parameters"])
def test_both_rope_spellings(written: Path, drop: str):
    edit(written, drop=(drop, "rope_scaling", "tie_word_embeddings"))
    assert_same(written)


def test_causal_by_its_public_name(written: Path):
    edit(written, is_causal=True)
    assert read_artifact(written).config.causal == (True, True)


def test_sliding_layers_are_causal_inside_the_block_unless_told_otherwise(written: Path):
    edit(written, layer_types=["full_attention", "sliding_attention"], sliding_window=7)
    config = read_artifact(written).config
    assert config.windows == (None, 7)
    assert config.causal == (False, True)
    edit(written, is_causal=False)
    assert read_artifact(written).config.causal == (False, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window: expected a number of positions"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types: expected full_attention or sliding"),
        ({"layer_types": ["full_attention"]}, "for each of 2 layers"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported; expected None"),
        ({"input_embedding_scale": 2.0}, "input_embedding_scale=2.0 is not supported; expected 1.0"),
        ({"architectures": ["DFlash2DraftModel"]}, "architectures 'DFlash2DraftModel'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn' is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"residual_scale": 0.5}, "residual_scale is not known"),
        ({"use_sliding_window": True, "layer_types": None}, "use_sliding_window without layer_types"),
        ({"wideblock": {"kind": "eagle2"}}, "a drafter of kind 'eagle2'; expected dflash or eagle3"),
        ({"wideblock": ["mine"]}, "wideblock: expected a mapping of fields"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(written: Path, changes: dict, said: str):
    edit(written, **changes)
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        read_artifact(written)


def test_heads_of_others(tmp_path: Path):
    """No head is none, whatever its type; who does not say from where it drafts is asked; loaders' own knobs are."""
    write_artifact(make_artifact(markov_rank=3), tmp_path)
    edit(tmp_path, num_jacobi_passes=9, markov_head_type=None)
    assert read_artifact(tmp_path).config == make_artifact(markov_rank=3).config
    edit(tmp_path, drop=("wideblock", "sample_from_anchor"))
    with pytest.raises(ValueError, match="sample_from_anchor is missing beside markov_rank"):
        read_artifact(tmp_path)
    edit(tmp_path, sample_from_anchor=False, markov_head_type="linear")
    with pytest.raises(ValueError, match="markov_head_type: expected one of vanilla, gated, rnn, got 'linear'"):
        read_artifact(tmp_path)
    edit(tmp_path, xpress_rank=3)
    with pytest.raises(ValueError, match="markov_rank and xpress_rank: expected at most one"):
        read_artifact(tmp_path)


def test_plain_drafters_draft_from_the_slot_after_the_anchor(written: Path):
    edit(written, sample_from_anchor=True, markov_head_type="gated")
    with pytest.raises(ValueError, match="sample_from_anchor=True is not supported of DFlashDraftModel"):
        read_artifact(written)
    edit(written, sample_from_anchor=False)
    assert_same(written)


HEADS = {
    "dflash": {},
    "dspark": {"markov_rank": 3, "markov_head_type": "gated", "confidence_head": True, "sample_from_anchor": True},
    "xpress": {"markov_rank": 3, "markov_head_type": "xpress"},
}


def as_speculators_writes(path: Path, kind: str, **changes) -> None:
    """The artifact at `path` in the words of `speculators` 0.9, what its layers have at Qwen3's default left out."""
    raw, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    dflash = raw["dflash_config"]
    begins = ("num_", "rope_p", "max_pos", "vocab", "sliding", "use_sliding")
    layers = {name: raw[name] for name in raw if name.startswith(begins)}
    layers |= {
        name: raw[name] for name in ("hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "layer_types")
    }
    heads = {
        "dspark": ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov"),
        "xpress": ("xpress_rank", "xpress_mlp_ratio", "num_jacobi_passes"),
    }
    config = {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": kind, "verifier": {"name_or_path": "tiny", "architectures": []}},
        "transformer_layer_config": {"model_type": "qwen3", **layers},
        "aux_hidden_state_layer_ids": [tap + 1 for tap in dflash["target_layer_ids"]],
        "block_size": raw["block_size"],
        "mask_token_id": dflash["mask_token_id"],
        "sample_from_anchor": raw.get("sample_from_anchor", False),
        "draft_vocab_size": raw.get("draft_vocab_size", raw["vocab_size"]),
        "target_hidden_size": None,
        "sliding_window_non_causal": False,
        "dtype": "float32",
        "tie_word_embeddings": False,
        **{name: raw[name] for name in heads.get(kind, ())},
    }
    if "d2t" in tensors:
        ids = tensors["d2t"] + np.arange(len(tensors["d2t"]))
        tensors["lm_head.weight"] = np.asarray(make_target().head[...])[ids]
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("draft_vocab_size", [None, 40])
@pytest.mark.parametrize("kind", HEADS)
def test_checkpoints_of_speculators(tmp_path: Path, kind: str, draft_vocab_size: int | None):
    expected = make_artifact(**HEADS[kind], draft_vocab_size=draft_vocab_size)
    write_artifact(expected, tmp_path)
    as_speculators_writes(tmp_path, kind)
    found = read_artifact(tmp_path)
    assert found.config == dataclasses.replace(expected.config, num_target_layers=None)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.weights, expected.weights))
    check_fit(found, make_target(), tmp_path)
    if draft_vocab_size is not None:
        assert np.array_equal(found.draft_vocab, expected.draft_vocab)
        with pytest.raises(ValueError, match="LM head: the drafter brings one of its own"):
            check_fit(found, make_target(seed=1), tmp_path)


def test_windows_of_speculators(tmp_path: Path):
    write_artifact(make_artifact(windows=(None, 7), causal=(False, True)), tmp_path)
    as_speculators_writes(tmp_path, "dflash")
    assert read_artifact(tmp_path).config.causal == (False, True)
    edit(tmp_path, sliding_window_non_causal=True)
    assert read_artifact(tmp_path).config.causal == (False, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculators_model_type": "peagle"}, "speculators_model_type 'peagle'; expected dflash, dspark, xpress or"),
        ({"aux_hidden_state_layer_ids": None}, "with aux_hidden_state_layer_ids None"),
        ({"transformer_layer_config": {"model_type": "llama"}}, "transformer_layer_config of 'llama'"),
        ({"residual_scale": 0.5}, "residual_scale is not known"),
        ({"mask_token_id": None}, "mask_token_id: expected 0 to 60"),
        ({"xpress_mlp_ratio": 4}, "xpress_mlp_ratio=4 is not supported"),
    ],
)
def test_what_of_speculators_is_refused(written: Path, changes: dict, said: str):
    as_speculators_writes(written, "dflash", **changes)
    with pytest.raises(ValueError, match=said):
        read_artifact(written)
    edit(written, drop=("sample_from_anchor",), speculators_model_type="dflash")
    with pytest.raises(ValueError, match="field 'sample_from_anchor' is missing"):
        read_artifact(written)
