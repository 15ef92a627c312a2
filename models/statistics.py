"""Intervals for what is measured: 95 %, stated beside every number that carries noise."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np


def bootstrap_ratio(pairs: Sequence[tuple[float, float]], draws: int = 1000) -> list[float]:
    """95 % interval [low, high] of sum(first) / sum(second)."""
    return bootstrap(pairs, lambda sums: sums[0] / sums[1], draws)


def bootstrap(
    rows: Sequence[Sequence[float]], of: Callable[[np.ndarray], np.ndarray], draws: int = 1000
) -> list[float]:
    """95 % interval [low, high] of `of`(the columns' sums), the rows resampled with replacement (fixed seed).

    The interval of `scipy.stats.bootstrap` with paired samples and percentiles, of one row too, which that refuses.
    """
    values = np.asarray(rows, np.float64)
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    return np.percentile(of(values[picks].sum(axis=1).T), [2.5, 97.5]).tolist()


def wilson(successes: int, trials: int) -> list[float]:
    """95 % Wilson score interval [low, high] of a proportion; [0, 1] without trials."""
    from scipy.stats import binomtest

    if trials == 0:
        return [0.0, 1.0]
    return list(map(float, binomtest(successes, trials).proportion_ci(method="wilson")))


def repetition(tokens: Sequence[int], size: int = 4) -> float:
    """Share of an answer's n-grams that occurred before in it: 0 for fresh text, near 1 in a loop."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


REPETITIVE = 0.5  # an answer with more repeated 4-grams than this counts as repeating itself


def outside_share(texts: Iterable[Sequence[int]], vocab: np.ndarray) -> float:
    """The share of the texts' tokens that `vocab`, token ids, lacks; 0 without tokens."""
    ids = np.concatenate([np.zeros(0, np.int64), *(np.asarray(text, np.int64) for text in texts)])
    return float(np.mean(~np.isin(ids, vocab))) if ids.size else 0.0
