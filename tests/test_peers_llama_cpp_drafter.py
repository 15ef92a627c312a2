"""Our drafters as GGUF files in llama.cpp (PyPI `xllamacpp`): the text is its own, its drafts are accepted as ours."""

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from configs.schema import load_recipe
from models.decode import make_engine
from models.drafters import Draft
from models.drafters.artifact import Artifact, read_artifact
from models.drafters.dflash_weights import target_weights
from models.sources import EMBEDDED, load_target
from models.sources.gguf import embedded_file
from models.tokenizer import load_tokenizer
from serve.bench_llama_cpp import drafts_beside
from serve.bench_peers import plain_part
from serve.session import Decoder
from tests import test_sources_gguf
from tests.test_embedded_target import REFERENCE
from tests.test_released import RELEASED
from tests.test_target_parity import SHAPE
from tests.tiny import Letters, make_artifact
from train.objectives.dflash_build import drafter_config

pytestmark = pytest.mark.peers
WIDTH, VOCAB = 6, 12

KINDS = {
    "plain": {},
    "causal": {"causal": (True, True)},
    "windows": {"windows": (WIDTH, WIDTH)},
    "a narrow window, causal": {"windows": (4, None), "causal": (True, True)},
    "draft vocabulary": {"draft_vocab_size": 7},
    "Markov head": {"markov_rank": 4},
    "Markov head, draft vocabulary": {"markov_rank": 4, "draft_vocab_size": 7},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A random Llama of so few tokens that an untrained drafter is often right."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPE | {"vocab_size": VOCAB, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=False)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (1.0 if "norm" in name else 0.0))
        model.lm_head.weight[2] = model.lm_head.weight[3:].mean(0)  # the end, which never wins
    path = tmp_path_factory.mktemp("target") / "target.gguf"
    return test_sources_gguf.write_gguf(path, model, "llama", gguf.GGMLQuantizationType.F32)


@pytest.mark.parametrize("kind", KINDS)
def test_accepted(target: Path, kind: str):
    artifact = make_artifact(vocab_size=VOCAB, mask_token_id=VOCAB - 1, **KINDS[kind])
    engine = make_engine(load_target(str(target), "float32"), artifact)
    ours = Decoder(engine, Letters(), Draft("drafter", WIDTH), capacity=256)
    prompts = np.random.default_rng(3).integers(3, VOCAB - 1, (12, 9)).tolist()
    found = drafts_beside(target, artifact, ours, prompts, width=WIDTH, new=60)
    assert found["equal_outputs"] == found["equal_drafts"] == 12
    assert found["tau"] == found["their_tau"] >= 1.03


def test_embedded_target():
    """A Markov head that holds the pairs of tokens of two answers drafts most of them, here and there."""
    rows = json.loads(REFERENCE.read_text())[:2]
    target = load_target(EMBEDDED, "float32")
    tokens = sorted({token for row in rows for token in row["greedy_ids"]})
    w1, w2 = (np.zeros((target.config.vocab_size, len(tokens)), np.float32) for _ in range(2))
    w1[tokens, np.arange(len(tokens))] = 100.0
    for row in rows:
        for before, after in itertools.pairwise(row["greedy_ids"]):
            w2[after, tokens.index(before)] = 1.0
    changes = ["drafter.draft_vocab_size=null", f"drafter.markov_rank={len(tokens)}"]
    config = drafter_config(load_recipe("smoke.yaml", changes), target, load_tokenizer(EMBEDDED))
    weights = target_weights(config, target, jax.random.key(0)) | {"markov_w1": w1, "markov_w2": w2}
    artifact = Artifact(config, weights, None, {})
    ours = Decoder(make_engine(target, artifact), Letters(), Draft("drafter", 8), capacity=256)
    prompts = [row["prompt_ids"] for row in rows]
    found = drafts_beside(embedded_file(), artifact, ours, prompts, width=8, new=48)
    assert found["equal_outputs"] == found["equal_drafts"] == 2
    assert found["tau"] == found["their_tau"] > 2


@pytest.mark.parametrize(("dtype", "whole"), [("float32", True), ("float32", False), ("float16", True), ("q8_0", True)])
def test_the_released_drafter(dtype: str, whole: bool):
    """With its head and draft vocabulary and without, in every type of file: the target's text, drafts as ours."""
    artifact = read_artifact(RELEASED)
    artifact = artifact if whole else plain_part(artifact)
    prompts = [row["prompt_ids"] for row in json.loads(REFERENCE.read_text())[:3]]
    ours = Decoder(
        make_engine(load_target(EMBEDDED, "float32"), artifact), Letters(), Draft("drafter", 8), capacity=512
    )
    found = drafts_beside(embedded_file(), artifact, ours, prompts, width=8, new=96, dtype=dtype)
    print(f"{dtype}, {'whole' if whole else 'plain'}: {found}")
    assert found["equal_outputs"] == len(prompts)
    assert found["equal_drafts"] == len(prompts) or dtype != "float32"
    assert found["their_tau"] == pytest.approx(found["tau"], rel=0.05)
    assert found["tau"] > (1.4 if whole else 1.1)
