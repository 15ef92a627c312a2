"""How to draft next: the width and the source of drafts with the most expected tokens a second, learned while decoding.

A step at width W' commits on average tau(W') = 1 + sum over slots j < W' of prod_{i <= j} c_i tokens, c_i the
conditional acceptance of slot i, and costs what `serve.cost` measured. The c_i start from a prior (the drafter's
held-out acceptance, kept in its artifact) and follow what the last hundred steps or so accepted. What n-gram drafts
would have got is read off the text without decoding with them. Width 1 is the plain loop: where no draft pays, none
is made, and the drafter is tried again as its old failures fade into the prior.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from serve.cost import Cost

PRIOR = 6.0  # steps a prior is worth
FADE = 0.9  # of older observations, per look with something new to see
FORGET = 0.97  # the same, per look with nothing new: how soon drafts that failed are tried again
MARGIN = 1.02  # a draft must promise this much over the plain loop: a wrong guess costs more than a missed gain
NGRAM_PRIOR = (0.15, 0.5, 0.6)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of drafting."""

    drafts: Literal["drafter", "ngram"]
    width: int


PLAIN = Way("drafter", 1)


class SlotAcceptance:
    """Running conditional acceptance of slots 1..W-1."""

    def __init__(self, prior: Sequence[float], num_slots: int):
        known = np.array([prior[min(slot, len(prior) - 1)] for slot in range(num_slots)])
        self.prior = np.clip(known, 0.01, 0.99)
        self.passed, self.reached = np.zeros(num_slots), np.zeros(num_slots)

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

    def observe(self, accepted: Sequence[int], width: int) -> None:
        """Steps at `width` and how many drafts each accepted; slots past width - 1 stay unknown."""
        fade = FADE if accepted else FORGET
        self.passed *= fade
        self.reached *= fade
        for count in accepted:
            seen = min(count + 1, width - 1)
            self.reached[:seen] += 1
            self.passed[:count] += 1


class Chooser:
    """Picks a way between segments and learns from each; one serves many answers of a kind."""

    def __init__(self, cost: Cost, prior: Sequence[float], ways: Sequence[Way] | None = None):
        self.cost = cost
        self.ways = list(ways or worthwhile_ways(cost, prior))
        slots = max(way.width for way in self.ways)
        self.acceptance = {"drafter": SlotAcceptance(prior, slots), "ngram": SlotAcceptance(NGRAM_PRIOR, slots)}

    def pick(self) -> Way:
        """The way with the most expected tokens a second; the plain loop unless another beats it by MARGIN."""
        best = max(self.ways, key=self._rate)
        return best if self._rate(best) > MARGIN * self._rate(PLAIN) else PLAIN

    def _rate(self, way: Way) -> float:
        tau = 1.0 if way.width == 1 else self.acceptance[way.drafts].tau(way.width)
        return tau / self.cost.step_ms(way.drafts, way.width)

    def observe(self, way: Way, runs: Sequence[int], text: Sequence[int]) -> None:
        """A segment: tokens committed by each of its steps, and the row's whole text, prompt included, after it."""
        drafted = way.drafts == "drafter" and way.width > 1
        self.acceptance["drafter"].observe([run - 1 for run in runs] if drafted else [], way.width)
        most = max((other.width for other in self.ways if other.drafts == "ngram"), default=1)
        if most > 1:
            places = len(text) - np.cumsum([0, *runs[::-1]])[1:]  # of the tokens each step started to write
            known = [ngram_hits(text, int(place), most) for place in places if len(text) - place >= most - 1]
            self.acceptance["ngram"].observe(known, most)


def worthwhile_ways(cost: Cost, prior: Sequence[float]) -> list[Way]:
    """The plain loop, and the ways that would pay best if drafts were accepted less, more or far more often than the
    prior says.

    Each is a program to compile, so the ones no acceptance asks for are left out.
    """
    slots = max(cost.verify_ms)
    drafter = SlotAcceptance(prior, slots).prior
    supposed: list[tuple[Literal["drafter", "ngram"], np.ndarray]] = [
        *(("drafter", drafter**power) for power in (2.0, 1.0, 0.4, 0.1)),
        *(("ngram", np.full(slots, chance)) for chance in (0.3, 0.8)),
    ]
    found = [PLAIN]
    for drafts, conditional in supposed:
        survival = np.cumprod(conditional)
        rates = {w: (1 + survival[: w - 1].sum()) / cost.step_ms(drafts, w) for w in cost.verify_ms if w > 1}
        found.append(Way(drafts, max(rates, key=lambda width: rates[width])))
    return list(dict.fromkeys(found))


def ngram_hits(text: Sequence[int], place: int, width: int, most: int = 3) -> int:
    """How many of the W-1 n-gram drafts for text[place:] are right (the rule of `serve.decoder.ngram_tokens`)."""
    row = np.asarray(text)
    past, best = row[:place], (0, 0)
    matched = np.ones(place - 1, bool)
    score = np.zeros(place - 1, np.int64)
    for back in range(min(most, place - 1)):
        shifted = np.concatenate([np.full(back, -1), past[: place - 1 - back]])
        matched = matched & (shifted == past[place - 1 - back])
        score += matched
    if not score.any():
        return 0
    best = int(np.argmax(score * place + np.arange(place - 1)))
    drafts, wanted = row[best + 1 : min(best + width, place)], row[place : place + width - 1]
    size = min(len(drafts), len(wanted))
    return int(np.cumprod(drafts[:size] == wanted[:size]).sum())
