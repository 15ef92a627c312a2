"""The bootstrap's intervals are those of scipy's, which draws its own paired samples; one row's is its value."""

import numpy as np
import pytest
from scipy import stats

from models.statistics import bootstrap, bootstrap_ratio


def test_intervals_are_scipys():
    rows = np.random.default_rng(3).uniform(1.0, 9.0, (23, 4))

    def speedup(sums: np.ndarray) -> np.ndarray:
        return (sums[0] / sums[1]) / (sums[2] / sums[3])

    def of_samples(*columns: np.ndarray, axis: int) -> np.ndarray:
        return speedup(np.stack([column.sum(axis=axis) for column in columns]))

    settings = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 1000}
    theirs = stats.bootstrap(tuple(rows.T), of_samples, **settings, rng=np.random.default_rng(0)).confidence_interval
    assert bootstrap(rows.tolist(), speedup) == pytest.approx(list(theirs), rel=1e-12)


def test_one_row_is_its_own_interval():
    assert bootstrap_ratio([(6.0, 4.0)]) == [1.5, 1.5]
