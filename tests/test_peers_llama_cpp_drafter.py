"""Our drafters as GGUF files in llama.cpp (PyPI `xllamacpp`): the text is its own, its drafts are accepted as ours."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from models.decode import make_engine
from models.drafters import Draft
from models.drafters.gguf import write_gguf
from models.sources import load_target
from serve.bench_llama_cpp import LlamaCpp
from serve.session import Decoder
from tests import test_sources_gguf
from tests.test_target_parity import SHAPE
from tests.tiny import Letters, make_artifact

pytestmark = pytest.mark.peers
WIDTH, NEW, VOCAB = 6, 60, 12

KINDS = {
    "plain": {},
    "causal": {"causal": (True, True)},
    "windows": {"windows": (WIDTH, WIDTH)},
    "a narrow window, causal": {"windows": (4, None), "causal": (True, True)},
    "draft vocabulary": {"draft_vocab_size": 7},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A random Llama of so few tokens that an untrained drafter is often right."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": VOCAB, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=False)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (1.0 if "norm" in name else 0.0))
        model.lm_head.weight[2] = model.lm_head.weight[3:].mean(0)  # the end, which never wins
    path = tmp_path_factory.mktemp("target") / "target.gguf"
    return test_sources_gguf.write_gguf(path, model, "llama", gguf.GGMLQuantizationType.F32)


@pytest.mark.parametrize("kind", KINDS)
def test_accepted(target: Path, tmp_path: Path, kind: str):
    artifact = make_artifact(vocab_size=VOCAB, mask_token_id=VOCAB - 1, **KINDS[kind])
    write_gguf(artifact, target, tmp_path / "drafter.gguf", "float32")
    plain = LlamaCpp(target, 256, exact=True)
    drafting = LlamaCpp(target, 256, drafter=tmp_path / "drafter.gguf", width=WIDTH, exact=True)
    engine = make_engine(load_target(str(target), "float32"), artifact)
    ours = Decoder(engine, Letters(), Draft("drafter", WIDTH), capacity=256)
    rng = np.random.default_rng(3)
    accepted = 0
    for _ in range(12):
        ids = rng.integers(3, VOCAB - 1, 9).tolist()
        theirs = drafting.generate(ids, NEW)
        assert theirs.tokens == plain.generate(ids, NEW).tokens
        (answer,) = ours.generate([[*ids, theirs.tokens[0]]], max_new_tokens=NEW - 1)
        assert answer.ids == theirs.tokens[1:]
        assert sum(answer.runs) - len(answer.runs) == theirs.accepted
        accepted += theirs.accepted
    assert accepted > 40
