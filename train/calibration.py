"""Calibration of a drafter's confidence (`models.drafters.confidence`) on held-out steps.

In: the chances that a drafter gave its drafts, and which of them were accepted, for every draft known to be right or
wrong: those accepted, and the first one that was not. Out: the temperature that its log-odds are divided by, and the
expected calibration error before and after (ECE, arXiv 1706.04599: the mean over BINS equal bins of the distance
between stated chance and accepted share, by the bins' drafts). The ECE after is of the drafts the temperature, a single
number, was fitted to.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

BINS = 15
TEMPERATURES = np.geomspace(0.2, 5.0, 65)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted, and to how many drafts."""

    temperature: float
    ece_before: float
    ece_after: float
    drafts: int

    def __str__(self) -> str:
        return f"temperature {self.temperature:.2f}, ECE {self.ece_before:.3f} -> {self.ece_after:.3f}"


def calibration(chances: Sequence[float] | np.ndarray, accepted: Sequence[bool] | np.ndarray) -> Calibration | None:
    """The temperature of the least mean cross-entropy; None without drafts."""
    hit = np.asarray(accepted, np.float64)
    if not hit.size:
        return None
    stated = np.clip(np.asarray(chances, np.float64), 1e-6, 1 - 1e-6)
    odds = np.log(stated / (1 - stated))
    # log(1 + exp(x)) - hit x is the cross-entropy of a chance of log-odds x
    costs = [np.mean(np.logaddexp(0, odds / t) - hit * odds / t) for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(costs))])
    after = 1 / (1 + np.exp(-odds / temperature))
    return Calibration(temperature, ece(stated, hit), ece(after, hit), hit.size)


def ece(chances: np.ndarray, accepted: np.ndarray) -> float:
    """The expected calibration error."""
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    apart = np.bincount(bins, chances - accepted, minlength=BINS)
    return float(np.abs(apart).sum() / len(chances))
