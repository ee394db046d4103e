"""Intervals, verdicts, percentile floors and the packed samples."""

from __future__ import annotations

import numpy as np
import pytest

from domain.measurement import Verdict
from workers.agent.statistics import (
    Interval,
    instance_variance,
    median_interval,
    pack_samples,
    paired_ratio,
    percentiles,
    unpack_samples,
)


@pytest.mark.parametrize(
    ("count", "has_p90", "has_p99"), [(63, False, False), (64, True, False), (661, True, False), (662, True, True)]
)
def test_percentiles_need_their_samples(count: int, has_p90: bool, has_p99: bool) -> None:
    p50, p90, p99 = percentiles(np.linspace(1, 2, count))
    assert p50 == pytest.approx(1.5)
    assert (p90 is not None, p99 is not None) == (has_p90, has_p99)


def test_no_samples_no_percentiles() -> None:
    assert percentiles(np.array([])) == (None, None, None)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.01, 1.1, Verdict.FASTER), (0.9, 0.99, Verdict.SLOWER), (0.99, 1.01, Verdict.TIE), (1.0, 1.1, Verdict.TIE)],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: Verdict) -> None:
    assert Interval(1.0, low, high).verdict is verdict


def ratio_of(logs: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    return paired_ratio(
        np.exp(logs), first, second, resamples=400, confidence=0.95, resolution=0.0, rng=np.random.default_rng(seed)
    )


def test_the_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    hits = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        seen = ratio_of(rng.normal(0.05, 0.03, 60), rng.integers(0, 4, 60), rng.integers(0, 4, 60), seed)
        hits += seen.low <= np.exp(0.05) <= seen.high
    assert 0.92 <= hits / 150 <= 1.0


def test_the_interval_holds_the_truth_where_instances_differ() -> None:
    """Pairs alone would be far too sure: every instance is off by its own 1 %."""
    hits = pairs_only_hits = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        first, second = rng.integers(0, 4, 120), rng.integers(0, 4, 120)
        logs = rng.normal(0, 0.01, 4)[first] - rng.normal(0, 0.01, 4)[second] + rng.normal(0, 0.01, 120)
        seen = ratio_of(logs, first, second, seed)
        alone = ratio_of(logs, np.zeros(120, int), np.zeros(120, int), seed)
        hits += seen.low <= 1 <= seen.high
        pairs_only_hits += alone.low <= 1 <= alone.high
    assert hits / 150 >= 0.9
    assert pairs_only_hits / 150 < 0.65


def test_instances_that_do_not_differ_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    shares = [instance_variance(rng.normal(0, 0.01, 200), rng.integers(0, 4, 200)) for _ in range(50)]
    assert np.median(shares) < (0.01 * 1.2533) ** 2 / 200


def test_the_resolution_bounds_the_interval_from_below() -> None:
    seen = paired_ratio(
        np.full(50, 1.003),
        np.zeros(50, int),
        np.zeros(50, int),
        resamples=200,
        confidence=0.95,
        resolution=0.005,
        rng=np.random.default_rng(0),
    )
    assert seen.low == pytest.approx(1.003 / 1.005)
    assert seen.high == pytest.approx(1.003 * 1.005)


def test_one_mad_pair_does_not_move_the_ratio() -> None:
    logs = np.random.default_rng(0).normal(0, 0.002, 40)
    logs[7] = 3.0
    seen = ratio_of(logs, np.zeros(40, int), np.zeros(40, int))
    assert seen.value == pytest.approx(1.0, abs=0.002)


def test_samples_survive_packing_in_order() -> None:
    rng = np.random.default_rng(0)
    table = rng.random((662, 3))
    packed = pack_samples(table[:, 0], table[:, 1], table[:, 2])
    assert packed.pairs == 662
    np.testing.assert_allclose(unpack_samples(packed), table, rtol=1e-6)
    assert unpack_samples(packed).dtype == np.dtype("<f4")


def test_the_interval_of_a_median_holds_the_true_one_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = median_interval(rng.exponential(size=60), confidence=0.95)
        held += low <= np.log(2) <= high
    assert 0.92 <= held / 400 <= 0.995


def test_the_interval_of_one_value_is_that_value() -> None:
    assert median_interval(np.array([3.0]), confidence=0.95) == (3.0, 3.0)
