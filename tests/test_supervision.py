"""What `show` and a study count as supervised is what the loss gives weight to."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from pipelines.show import counted, text_of, written_out
from pipelines.supervision import Supervision, supervision
from tests.tiny import Letters
from train.objectives.slots import anchor_groups, slot_labels


def batch_of(*, rows: int = 3, length: int = 24, anchors: dict[int, int]) -> dict[str, np.ndarray]:
    """Rows of two responses and padding, anchors anywhere in them."""
    rng = np.random.default_rng(0)
    segments = np.repeat([[1, 2, 0]], [9, 11, 4], axis=1).repeat(rows, axis=0).astype(np.int32)
    tokens = rng.integers(3, 60, (rows, length)).astype(np.int32)
    response = (segments > 0) & (np.arange(length) % 10 > 3)
    drawn = {
        f"anchors_w{w}": rng.integers(-4, 20, (rows, count)).clip(-1).astype(np.int32) for w, count in anchors.items()
    }
    return {"tokens": tokens, "segments": segments, "response": response, **drawn}


def test_counts_are_the_losss():
    batch, vocab = batch_of(anchors={3: 5, 6: 4}), np.arange(0, 60, 3)
    names = ("tokens", "segments", "anchors_w3", "anchors_w6")
    as_trained = {name: jnp.asarray(batch[name]) for name in names}
    usable = slots = valid = 0
    for width, anchors in anchor_groups(as_trained).items():
        labels = np.asarray(slot_labels(as_trained, anchors, width))
        slots, valid = slots + labels.size, valid + (labels >= 0).sum()
        usable += np.isin(labels, vocab).sum()
    found = supervision(batch, vocab)
    assert (found.slots, found.supervised, found.outside_vocabulary) == (slots, usable, valid - usable)
    assert found.without_anchor == sum((batch[f"anchors_w{w}"] < 0).sum() * (w - 1) for w in (3, 6))
    assert min(dataclasses.astuple(found)) > 0


def test_by_hand():
    """Two responses, 5 6 7 8 and 9 4: the block at 6 has labels 7 8 and one past the end, that at 9 has 4."""
    batch = {
        "tokens": np.array([[5, 6, 7, 8, 9, 4, 0]]),
        "segments": np.array([[1, 1, 1, 1, 2, 2, 0]]),
        "response": np.array([[False, False, True, True, False, True, False]]),
        "anchors_w4": np.array([[1, 4, -1]]),
    }
    vocab = np.array([4, 7])
    assert supervision(batch, vocab) == Supervision(9, without_anchor=3, past_end=3, outside_vocabulary=1)
    shown = text_of(batch, Letters(), vocab, Console()).plain
    assert shown == "<05*06>07{08}<*09>04"
    assert written_out(batch, Letters(), vocab)[0] == (
        "width 4, anchor '06' at 1 -> '07' not in the draft vocabulary past the end"
    )
    assert counted(batch, vocab)[-1].startswith("slots: 9: 2 supervised")


def test_a_batch_that_supervises_nothing_is_warned_of():
    batch = batch_of(anchors={3: 5}) | {"anchors_w3": np.full((3, 5), -1, np.int32)}
    assert "warning: this batch supervises nothing" in counted(batch, None)[-1]
