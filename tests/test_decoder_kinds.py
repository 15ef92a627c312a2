"""Speculative decoding writes what the plain loop writes, whatever heads, windows and vocabulary a drafter has."""

from typing import Any

import pytest

from models.drafters import Draft
from tests.test_decoder_lossless import same_text_alone_and_together
from tests.tiny import make_artifact

KINDS = {
    "draft vocabulary": {"draft_vocab_size": 40, "markov_rank": 3},
    "causal": {"causal": (True, True)},
    "windows": {"windows": (9, 4), "causal": (True, False)},
    "confidence head": {"confidence_head": True, "markov_rank": 3},
    "from the anchor's slot": {"sample_from_anchor": True, "markov_rank": 3},
    "gated head": {"markov_rank": 3, "markov_head_type": "gated"},
    "recurrent head": {"markov_rank": 3, "markov_head_type": "rnn"},
    "refiner": {"markov_rank": 3, "markov_head_type": "xpress"},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("page", [None, 5])
def test_random_drafter_of_every_kind(kind: dict[str, Any], page: int | None):
    same_text_alone_and_together(make_artifact(**kind), Draft("drafter", 6), page)


@pytest.mark.parametrize("kind", ["from the anchor's slot", "gated head", "recurrent head", "refiner"])
def test_trees_of_every_head(kind: str):
    same_text_alone_and_together(make_artifact(**KINDS[kind]), Draft("drafter", 6, tree=16), None)
