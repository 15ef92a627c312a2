"""What to draft next: the draft with the most expected tokens a second, learned while decoding.

Where the last tokens of a text occurred before, what followed them there is often right, and costs nothing to draft;
the drafter is for the rest. So in a step of `Draft(kind, width, copy)` a row copies at width `copy` where it can and
drafts at `width` where it cannot (`models.drafters.Draft`). Both have acceptance of their own: a row at width W'
commits on average tau(W') = 1 + sum over slots j < W' of prod_{i <= j} c_i tokens, c_i the conditional acceptance of
slot i, and a step costs what `serve.cost` measured. Of R rows each copies in a share c of its steps, so that all of
them do in c^R of the steps, none in (1-c)^R, and the others draft too and verify the wider of the two blocks. With
T_copy = T_verify(copy), T_draft = T_draft(width) + T_verify(width), T_both = T_draft(width) + T_verify(wider), a token
of each row takes

    (c^R T_copy + (1-c)^R T_draft + (1 - c^R - (1-c)^R) T_both) / (c tau_copy(copy) + (1-c) tau_draft(width))

c follows from s, the share of the text that is copied: c / (1-c) = s / tau_copy : (1-s) / tau_draft.

A drafter that says how sure it is (`models.drafters.confidence`) may have its blocks cut short, step by step. The floor
of a cut from width v to v' is where what lies past it pays for its time at the rate of tokens a second that such steps
have: s_v (1 + c_v+1 + c_v+1 c_v+2 + ...) = rate * (T_verify(v') - T_verify(v)), s_v the chance that slots 1..v are all
accepted and c those of the slots after it on average. What such steps take and commit is learned as they come; before,
they are supposed to do a little better than the best of their widths without a choice.

Where verifying many slots is cheap, a tree of the block's likeliest continuations (`models.drafters.tree`) may be
drafted in place of its likeliest chain, at a cost and with an acceptance of its own.

What a step takes is not what it took when it was measured: contexts are longer, another program runs beside. Where the
decoder says how long its segments took, a draft's steps are priced at what they took last over what they were supposed
to, and drafts not used for a while at what plain steps did.

The c_i and s start from a prior (for the drafter its held-out acceptance, kept in its artifact) and follow what the
last hundred steps or so accepted; a tree's prior is what the chain's acceptance now makes of it, so that a text on
which chains do well has trees tried. What copying would have got is read off the text without copying. Width 1 is
a plain step that keeps the drafter's context: where no draft pays, none is made, and the drafter is tried again as its
old failures fade into the prior.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from types import MappingProxyType
from typing import Literal

import numpy as np

from models.drafters import SINGLE, TREES, Draft
from models.drafters.ngram import COPY_LEAST, COPY_MOST
from serve.cost import Cost

PRIOR = 6.0  # steps a prior is worth
FADE = 0.9  # of older observations, per look with something new to see
FORGET = 0.97  # the same, per look with nothing new: how soon drafts that failed are tried again
MARGIN = 1.02  # a draft must promise this much over single tokens: a wrong guess costs more than a missed gain
COPY_PRIOR = 0.75  # conditional acceptance of copied tokens
FREE = 1.05  # plain steps: what no one has to wait for
SLOWEST = 4.0  # times what was supposed: what takes longer, as a program's first step, says nothing of later ones
CUT_PRIOR = 1.05  # what choosing where blocks end is worth over the best width
SHARE_PRIOR = 0.3  # of the tokens, those that are copied
Who = Literal["both", "drafter", "ngram"]  # may draft: the drafter beside copying, or one of them alone


class SlotAcceptance:
    """Running conditional acceptance of slots 1..W-1."""

    def __init__(self, prior: Sequence[float], num_slots: int):
        self.passed, self.reached = np.zeros(num_slots), np.zeros(num_slots)
        self.suppose(prior)

    def suppose(self, prior: Sequence[float]) -> None:
        """Another prior under what was seen; its last entry holds for all slots after it."""
        known = np.array([prior[min(slot, len(prior) - 1)] for slot in range(len(self.passed))])
        self.prior = np.clip(known, 0.01, 0.99)

    @property
    def conditional(self) -> np.ndarray:
        """A slot that was seen little follows the one before it: as far from its prior, in log-odds."""
        out, shift = np.empty(len(self.prior)), 0.0
        for slot, odds in enumerate(np.log(self.prior / (1 - self.prior))):
            supposed = 1 / (1 + np.exp(-odds - shift))
            out[slot] = (PRIOR * supposed + self.passed[slot]) / (PRIOR + self.reached[slot])
            shift = np.log(out[slot] / (1 - out[slot])) - odds
        return out

    def tau(self, width: int) -> float:
        """Expected tokens of a step at `width`."""
        return 1.0 + float(np.cumprod(self.conditional[: width - 1]).sum())

    def observe(self, seen: Sequence[tuple[int, int]]) -> None:
        """Steps, each as (drafts accepted, drafts known to be right or wrong)."""
        fade = FADE if seen else FORGET
        self.passed *= fade
        self.reached *= fade
        for passed, reached in seen:
            self.passed[:passed] += 1
            self.reached[:reached] += 1


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one row did in a segment."""

    runs: Sequence[int]  # tokens committed by each step
    copied: Sequence[bool]  # which of them copied
    text: Sequence[int]  # the row's whole text after it
    offered: Sequence[int] | None = None  # where blocks were cut, how many drafts each step verified
    done: bool = False  # the last step may have been cut short by the answer's end: it says nothing about its drafts

    def whole(self) -> "Seen":
        """Without a last step that was cut short."""
        if not (self.done and self.runs):
            return self
        offered = self.offered and self.offered[:-1]
        return Seen(self.runs[:-1], self.copied[:-1], self.text[: len(self.text) - self.runs[-1]], offered)


class Chooser:
    """Picks a draft between segments and learns from each; one serves many answers of a kind.

    `cost` is of one row, `batches` of so many. For each the drafts that may pay are picked from, those of `who`, with
    `cuts` or without (`worthwhile_drafts`); or `drafts`, as far as they were timed with so many rows.
    """

    def __init__(
        self,
        cost: Cost,
        prior: Sequence[float],
        drafts: Sequence[Draft] | None = None,
        *,
        who: Who = "both",
        cuts: bool = False,
        batches: Mapping[int, Cost] = MappingProxyType({}),
    ):
        self.costs = {1: cost, **batches}
        self._choices = {
            rows: [draft for draft in drafts if each.covers(draft)]
            if drafts
            else worthwhile_drafts(each, prior, who, cuts=cuts and rows == 1)
            for rows, each in self.costs.items()
        }
        self.drafts = list(dict.fromkeys(draft for choices in self._choices.values() for draft in choices))
        slots = max(draft.widest for draft in self.drafts)
        self.copied = SlotAcceptance([COPY_PRIOR], slots)
        shapes = {(draft.tree, draft.cuts) for draft in self.drafts} | {(0, ())}
        self.drafted = {shape: SlotAcceptance(supposed(prior, shape[0]), slots) for shape in shapes}
        self.cut = {
            draft: np.zeros(3) for draft in self.drafts if draft.cuts
        }  # steps, their milliseconds, their tokens
        self.tokens = np.array([SHARE_PRIOR, 1.0]) * PRIOR  # copied, and all
        self.paces = {(rows, draft): np.zeros(2) for rows in self.costs for draft in self._choices[rows]}

    def pick(self, rows: int = 1, *, hurry: bool = False) -> Draft:
        """The draft with the most expected tokens a second; SINGLE unless another beats it by MARGIN.

        `rows` are written together. Steps are priced at what the next larger number of rows took that was timed. In a
        `hurry` others wait for the end of the step: only those are picked that take next to no longer than plain ones.
        """
        cost, choices = self.cost(rows), [SINGLE, *self.choices(rows)]
        if hurry:
            choices = [draft for draft in choices if max(_times(cost, draft)) <= FREE * cost.verify_ms[1]]
        best = min(choices, key=lambda draft: self.token_ms(draft, rows))
        return best if MARGIN * self.token_ms(best, rows) < self.token_ms(SINGLE, rows) else SINGLE

    def choices(self, rows: int) -> list[Draft]:
        """What may be picked for so many rows."""
        return self._choices[self._timed(rows)]

    def cost(self, rows: int) -> Cost:
        """What steps of so many rows cost, as far as it was measured."""
        return self.costs[self._timed(rows)]

    def _timed(self, rows: int) -> int:
        return min((size for size in self.costs if size >= rows), default=max(self.costs))

    def token_ms(self, draft: Draft, rows: int = 1) -> float:
        """Expected milliseconds of a token of each row."""
        cost = self.cost(rows)
        drafting, drafted = self.step_of(draft, cost)
        if not draft.copy:
            return self.pace(draft, rows) * drafting / drafted
        copying, _, both = _times(cost, draft)
        copied = self.copied.tau(draft.copy)
        share = self.tokens[0] / self.tokens[1]
        copies = share / copied / (share / copied + (1 - share) / drafted)
        every, none = copies**rows, (1 - copies) ** rows
        taken = every * copying + none * drafting + (1 - every - none) * both
        return self.pace(draft, rows) * taken / (copies * copied + (1 - copies) * drafted)

    def pace(self, draft: Draft, rows: int = 1) -> float:
        """What steps of `draft` took last, over what they were supposed to."""
        steps, ratios = self.paces.get((self._timed(rows), draft), (0, 0))
        supposed = 1.0 if draft == SINGLE else self.pace(SINGLE, rows)
        return float((PRIOR * supposed + ratios) / (PRIOR + steps))

    def step_of(self, draft: Draft, cost: Cost) -> tuple[float, float]:
        """What a step of `draft` in which no row copies takes in milliseconds, and commits, on average."""
        acceptance = self.drafted[draft.tree, ()]
        if not draft.cuts:
            return cost.drafting_ms(draft), acceptance.tau(draft.width)
        widths = (*draft.cuts, draft.width)
        supposed = [(_cut_ms(cost, draft, width) / CUT_PRIOR, acceptance.tau(width)) for width in widths]
        steps, *seen = self.cut[draft]
        ms, tokens = PRIOR * np.array(min(supposed, key=lambda step: step[0] / step[1])) + seen
        return ms / (PRIOR + steps), tokens / (PRIOR + steps)

    def floors(self, draft: Draft) -> list[float]:
        """The floors of the draft's cuts, for a row alone."""
        cost = self.cost(1)
        (ms, tokens), verify = self.step_of(draft, cost), cost.verify_ms
        chances, widths = self.drafted[draft.tree, draft.cuts].conditional, (*draft.cuts, draft.width)
        gains = [1 + np.cumprod(chances[v : then - 1]).sum() for v, then in pairwise(widths)]
        return [
            float((verify[then] - verify[v]) * tokens / ms / gain)
            for (v, then), gain in zip(pairwise(widths), gains, strict=True)
        ]

    def observe(self, draft: Draft, seen: Sequence[Seen], *, rows: int = 1, ms: float | None = None) -> None:
        """A segment of a batch of `rows`, as each of those that were not done before saw it; the time it took."""
        if ms is not None and not draft.cuts:
            self._time(draft, seen, rows, ms)
        seen = [row.whole() for row in seen]
        steps = [
            (run, most)
            for row in seen
            for run, most, copy in zip(row.runs, _offered(draft, row), row.copied, strict=True)
            if not copy
        ]
        known = [(run - 1, min(run, most)) for run, most in steps] if draft.width > 1 else []
        for shape, acceptance in self.drafted.items():
            acceptance.observe(known if shape == (draft.tree, draft.cuts) else [])
        for (nodes, _), acceptance in self.drafted.items():
            if nodes:
                acceptance.suppose(supposed(self.drafted[0, ()].conditional.tolist(), nodes))
        for other, sums in self.cut.items():
            taken = [(1, _cut_ms(self.cost(1), draft, most + 1), run) for run, most in steps] if other == draft else []
            self.cut[other] = (FADE if taken else FORGET) * sums + np.sum(taken or [(0, 0, 0)], axis=0)
        most, tokens = max(other.copy for other in self.drafts), sum(sum(row.runs) for row in seen)
        if most:
            copies = [copying(row.text, len(row.text) - sum(row.runs), most) for row in seen]
            self.copied.observe([hit for hits, _ in copies for hit in hits])
            share = sum(share for _, share in copies)
            self.tokens = FADE * self.tokens + [share, tokens] if tokens else self.tokens

    def _time(self, draft: Draft, seen: Sequence[Seen], rows: int, ms: float) -> None:
        copying, drafting, both = _times(self.cost(rows), draft)
        by_step = [{bool(copy) for copy in step if copy is not None} for step in zip_longest(*(r.copied for r in seen))]
        supposed = sum(both if len(ways) > 1 else copying if True in ways else drafting for ways in by_step)
        here = self._timed(rows)
        if ms > SLOWEST * supposed:
            return
        for (size, other), sums in self.paces.items():
            if size == here and other == draft:
                sums *= FADE
                sums += len(by_step) * np.array([1.0, ms / supposed])
            elif size == here and other != SINGLE:
                sums *= FORGET


def _times(cost: Cost, draft: Draft) -> tuple[float, float, float]:
    """Milliseconds of a step in which all rows copy, none does, and some do."""
    drafting = cost.drafting_ms(draft)
    if not draft.copy:
        return drafting, drafting, drafting
    both = drafting if draft.tree else cost.draft_ms[draft.width] + cost.verify_ms[draft.widest]
    return cost.step_ms("ngram", draft.copy), drafting, both


def _offered(draft: Draft, row: Seen) -> Sequence[int]:
    return row.offered if draft.cuts and row.offered is not None else [draft.width - 1] * len(row.runs)


def _cut_ms(cost: Cost, draft: Draft, width: int) -> float:
    return cost.draft_ms[draft.width] + cost.verify_ms[width]


def worthwhile_drafts(cost: Cost, prior: Sequence[float], who: Who = "both", *, cuts: bool = False) -> list[Draft]:
    """SINGLE, copying beside it, and copying beside the drafter at the widths, and with the tree, that would pay best
    if its drafts were accepted as often as the prior says, or far more often; the best of these without copying too,
    for texts that repeat words and go on differently; without those that `who` leaves out.
    With `cuts`, for a drafter whose confidence is calibrated, the chain that would pay best may go on to twice its
    width, or end at the anchor.

    Each is a program to compile, so the ones no acceptance asks for are left out.
    """
    widths = [width for width in cost.verify_ms if width > 1]
    if not widths:
        return [SINGLE]
    slots = max(widths)

    def best(drafts: Sequence[Draft], prior: Sequence[float], power: float = 1.0) -> tuple[Draft, float]:
        def rate(draft: Draft) -> float:
            survival = np.cumprod(SlotAcceptance(supposed(prior, draft.tree), slots).prior ** power)
            return (1 + survival[: draft.width - 1].sum()) / cost.drafting_ms(draft)

        draft = max(drafts, key=rate)
        return draft, rate(draft) * cost.verify_ms[1]

    copy = 0 if who == "drafter" else best([Draft("ngram", width) for width in widths], [COPY_PRIOR])[0].width
    chains = [Draft("drafter", width, copy) for width in widths]
    trees = [Draft("drafter", min(TREES[nodes], slots), copy, nodes) for nodes in cost.tree_ms]
    found = [SINGLE, Draft("drafter", 1, copy)]
    for power in () if who == "ngram" else (1.0, 0.25):
        for drafts in filter(None, (chains, trees)):
            draft, gain = best(drafts, prior, power)
            found += [draft] if gain > 1 else []
    chain = next((draft for draft in found if draft.width > 1 and not draft.tree), None)
    drafting = [draft for draft in found if draft.width > 1]
    if drafting and copy:
        found.append(dataclasses.replace(best(drafting, prior)[0], copy=0))
    if cuts and chain is not None and 2 * chain.width in cost.verify_ms:
        found.append(Draft("drafter", 2 * chain.width, copy, cuts=(1, chain.width)))
    return list(dict.fromkeys(found))


def supposed(prior: Sequence[float], nodes: int) -> Sequence[float]:
    """What is supposed of the levels of a tree of so many nodes, given the acceptance of its block's slots as a chain
    (0 nodes): where a slot misses with chance m, a tree does with m^(1 + log2(nodes) / 8), of 16 nodes at least. By
    `serve.bench_trees`, on six answers each time, the exponents of 7, 16, 32 and 64 nodes were about 1.7, 1.6 to 1.75,
    1.7 to 1.9 and 1.9 to 2.1 for a drafter of tau 1.6: seven lie on three levels, the others on many."""
    exponent = 1 + np.log2(max(nodes, 16)) / 8 if nodes else 1.0
    return [1 - (1 - chance) ** exponent for chance in prior]


def copying(text: Sequence[int], begin: int, width: int) -> tuple[list[tuple[int, int]], int]:
    """What steps that copy at `width` would have got of text[begin:]: each as (accepted, known), and their tokens.

    The walk is that of the decoder: a step that copies moves on by what it commits, one that cannot by a token.
    """
    row, seen, place, tokens = np.asarray(text), [], begin, 0
    while place < len(row):
        drafts, matched = ngram_drafts(row, place, width)
        if matched < COPY_LEAST:
            place += 1
            continue
        wanted = row[place : place + width - 1]
        hits = int(np.cumprod(drafts[: len(wanted)] == wanted).sum())
        seen.append((hits, min(hits + 1, len(wanted))))
        committed = min(hits + 1, len(row) - place)
        place, tokens = place + committed, tokens + committed
    return seen, tokens


def ngram_drafts(text: np.ndarray, place: int, width: int) -> tuple[np.ndarray, int]:
    """The W-1 n-gram drafts for text[place:], and how many tokens before `place` they rest on.

    The rule of `models.drafters.ngram.ngram_tokens`.
    """
    past = text[:place]
    if place < 2:
        return past[:0], 0
    matched, score = np.ones(place - 1, bool), np.zeros(place - 1, np.int64)
    for back in range(min(COPY_MOST, place - 1)):
        shifted = np.concatenate([np.full(back, -1), past[: place - 1 - back]])
        matched = matched & (shifted == past[place - 1 - back])
        score += matched
    best = int(np.argmax(score * place + np.arange(place - 1)))
    return past[best + 1 + np.arange(width - 1) % (place - 1 - best)], int(score[best])
