"""Shows what a training batch supervises: its text with anchors and labels marked, and every share counted.

On a terminal the text is tinted; elsewhere marks say the same (see LEGEND).
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from configs.schema import Recipe
from models.target import Target
from models.tokenizer import Tokenizer
from pipelines.batches import RowSource, TrainBatches
from pipelines.prepare import draft_vocabulary, prepare
from pipelines.records import Responses
from pipelines.supervision import OUTSIDE, PAST_END, blocks, supervision

LEGEND = "dim or <prompt>; *anchor; green: a slot's label; plain or (token): no slot's; red or {token}: not drafted"
BLOCKS = 3  # of every width, written out
REASONS = {PAST_END: "past the end", OUTSIDE: "not in the draft vocabulary"}


class Marked(RowSource):
    """Rows that say too which of their tokens the response wrote: `response` [S] bool."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = super().__getitem__(index)
        return row | {"response": np.roll(row["startable"], 1)}  # an anchor stands right before a response's token


def show(recipe: Recipe, target: Target, tokenizer: Tokenizer, *, number: int, rows: int) -> None:
    """Prints what batch `number` (from 0) supervises, and the text of its first `rows` rows."""
    prepared, section = prepare(recipe, target, tokenizer), recipe.batches
    source = Marked(Responses(prepared.responses / "train"), None, section.row_length, section.responses)
    batch = next(itertools.islice(TrainBatches(recipe, source), number, None))
    vocab, console = draft_vocabulary(recipe, prepared, target.config), Console(soft_wrap=True, highlight=False)
    for row in range(min(rows, section.rows)):
        console.print(f"\nbatch {number}, row {row}: {LEGEND}", style="bold")
        console.print(text_of({name: value[row : row + 1] for name, value in batch.items()}, tokenizer, vocab, console))
    console.print(f"\nbatch {number}, blocks of row 0:", style="bold")
    for line in written_out(batch, tokenizer, vocab):
        console.print(line)
    console.print(f"\nbatch {number}, counted:", style="bold")
    for line in counted(batch, vocab):
        console.print(line, style="bold red" if line.startswith("warning") else "")


def text_of(row: Mapping[str, np.ndarray], tokenizer: Tokenizer, vocab: np.ndarray | None, console: Console) -> Text:
    """The text of a batch of one row, every token tinted or marked by what it is for."""
    labelled, anchored = _roles(row, vocab)
    out, plain, before = Text(), not console.is_terminal, False
    tokens, segments, response = (row[name][0] for name in ("tokens", "segments", "response"))
    for place in np.flatnonzero(segments).tolist():
        piece, prompt = tokenizer.decode([int(tokens[place])]), not response[place]
        outside = not prompt and vocab is not None and tokens[place] not in vocab
        style = "dim" if prompt else "red" if outside else "green" if labelled[place] else ""
        if plain and not prompt and (outside or not labelled[place]):
            piece = f"{{{piece}}}" if outside else f"({piece})"
        if plain and prompt != before:
            out.append("<" if prompt else ">")
        out.append(f"*{piece}" if anchored[place] else piece, style + " bold underline" * bool(anchored[place]))
        before = prompt
    return out


def _roles(row: Mapping[str, np.ndarray], vocab: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """[S] bool each: which tokens some slot is supervised by, and which are anchors."""
    labelled, anchored = np.zeros((2, row["tokens"].shape[1]), bool)
    for width, anchors, labels in blocks(row, vocab):
        anchored[anchors[anchors >= 0]] = True
        labelled[(anchors[..., None] + np.arange(1, width))[labels >= 0]] = True
    return labelled, anchored


def written_out(batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, vocab: np.ndarray | None) -> list[str]:
    """The first blocks of every width in row 0: the anchor, then the label of each masked slot."""
    lines = []
    for width, anchors, labels in blocks(batch, vocab):
        for anchor, slots in list(zip(anchors[0].tolist(), labels[0].tolist(), strict=True))[:BLOCKS]:
            if anchor < 0:
                lines.append(f"width {width}: no anchor: the row has too few places")
                continue
            given = tokenizer.decode([int(batch["tokens"][0, anchor])])
            lines.append(f"width {width}, anchor {given!r} at {anchor} -> {_slots(slots, tokenizer)}")
    return lines


def _slots(labels: Sequence[int], tokenizer: Tokenizer) -> str:
    """Labels side by side; equal reasons in a row are counted."""
    out = []
    for label, same in itertools.groupby(labels):
        count = len(list(same))
        word = repr(tokenizer.decode([label])) if label >= 0 else REASONS[label]
        out.append(word if count == 1 else f"{count} x {word}")
    return " ".join(out)


def counted(batch: Mapping[str, np.ndarray], vocab: np.ndarray | None) -> list[str]:
    """Shares in words, and a warning where nothing is supervised."""
    segments, response = batch["segments"], batch["response"]
    roles = [
        _roles({name: value[row : row + 1] for name, value in batch.items()}, vocab) for row in range(len(segments))
    ]
    labelled, anchored = (np.stack(values) for values in zip(*roles, strict=True))
    total, written = segments.size, int(response.sum())
    prompt, slots = int((segments > 0).sum()) - written, supervision(batch, vocab)
    per_token = max(written, 1)
    lines = [
        f"positions: {total}: {prompt / total:.1%} prompt, {written / total:.1%} response, "
        f"{1 - (prompt + written) / total:.1%} padding",
        f"response tokens: {written}: {(anchored & response).sum() / per_token:.1%} are anchors, "
        f"{labelled.sum() / per_token:.1%} are some slot's label",
        f"slots: {slots.slots}: {slots.supervised} supervised, {slots.without_anchor} without an anchor, "
        f"{slots.past_end} past the end of a response, {slots.outside_vocabulary} not in the draft vocabulary",
    ]
    if slots.supervised == 0:
        lines.append(
            "warning: this batch supervises nothing; look at the responses (responses.regenerate) and the blocks"
        )
    return lines
