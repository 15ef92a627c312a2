"""What a batch supervises, counted: a batch whose labels are all masked trains nothing and says nothing.

In: a batch of `pipelines.batches`. Out: the label of every drafted slot, and `Supervision`. Slot i of a block at anchor
p is supervised by the token at p + i of the same response, where the draft vocabulary has that token.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

PREFIX = "anchors_w"
NO_ANCHOR, PAST_END, OUTSIDE = -3, -2, -1  # in place of a label: why a slot is not supervised


@dataclasses.dataclass(frozen=True)
class Supervision:
    """Counts of drafted slots: all there are, and those lost for each reason."""

    slots: int
    without_anchor: int  # the row has too few places
    past_end: int  # of the response
    outside_vocabulary: int

    @property
    def supervised(self) -> int:
        return self.slots - self.without_anchor - self.past_end - self.outside_vocabulary


def supervision(batch: Mapping[str, np.ndarray], draft_vocab: np.ndarray | None) -> Supervision:
    """The slots of every block of `batch`, counted."""
    labels = np.concatenate([labels.ravel() for _, _, labels in blocks(batch, draft_vocab)])
    lost = [int((labels == reason).sum()) for reason in (NO_ANCHOR, PAST_END, OUTSIDE)]
    return Supervision(labels.size, *lost)


def blocks(batch: Mapping[str, np.ndarray], draft_vocab: np.ndarray | None) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(width W, anchors [B, A], labels [B, A, W-1]) of every width; a label is a token id or why there is none.

    Example: row tokens 5 6 7 8 of one response, anchor at 1 (token 6), width 4 -> labels 7 8 PAST_END.
    """
    named = {int(name.removeprefix(PREFIX)): value for name, value in batch.items() if name.startswith(PREFIX)}
    return [(width, anchors, _labels(batch, anchors, width, draft_vocab)) for width, anchors in sorted(named.items())]


def _labels(
    batch: Mapping[str, np.ndarray], anchors: np.ndarray, width: int, draft_vocab: np.ndarray | None
) -> np.ndarray:
    tokens, segments = batch["tokens"], batch["segments"]
    rows = np.arange(len(tokens))[:, None, None]
    at = anchors[:, :, None] + np.arange(1, width)
    inside = np.minimum(at, tokens.shape[1] - 1)
    own = segments[rows, np.maximum(anchors, 0)[:, :, None]]
    labels = tokens[rows, inside]
    if draft_vocab is not None:
        labels = np.where(np.isin(labels, draft_vocab), labels, OUTSIDE)
    labels = np.where((at < tokens.shape[1]) & (segments[rows, inside] == own), labels, PAST_END)
    return np.where(anchors[:, :, None] >= 0, labels, NO_ANCHOR)
