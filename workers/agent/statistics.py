"""What a set of pairs says: median ratio, its interval, the verdict, percentiles, and the raw samples packed to keep.

All ratios here are baseline / candidate, so above 1 the candidate is faster.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from domain.measurement import Samples, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Runs below which a percentile's own interval is wider than the percentile is worth. Source: MLPerf LoadGen.
P90_FLOOR = 64
P99_FLOOR = 662


@dataclass(frozen=True)
class Interval:
    """A ratio and the interval around it."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the value."""
        return (self.high - self.low) / 2 / self.value

    @property
    def verdict(self) -> Verdict:
        if self.low > 1:
            return Verdict.FASTER
        return Verdict.SLOWER if self.high < 1 else Verdict.TIE


def paired_ratio(
    ratios: Floats,
    baseline_instance: Ints,
    candidate_instance: Ints,
    *,
    resamples: int,
    confidence: float,
    resolution: float,
    rng: np.random.Generator,
) -> Interval:
    """Median of paired ratios with a bootstrap interval over pairs and instances.

    Pairs are resampled one by one. Instances of a file differ for good (memory layout), and there are too few of them to be
    resampled as such: their spread is estimated from the medians of each instance's pairs, less what the pairs' own noise
    explains, and every resampled median is shifted by a draw from it.

    Args:
        ratios: Baseline / candidate of each pair, shape (pairs,), at least one.
        baseline_instance: Which instance of the baseline ran in each pair, shape (pairs,).
        candidate_instance: The same for the candidate.
        resamples: Bootstrap resamples.
        confidence: Of the interval, 0.95 for 95 %.
        resolution: Relative half-width below which no interval is believed.
        rng: Source of randomness.

    Source:
        Percentile bootstrap of the median; variance components by the method of moments. Duet pairs: arXiv:2001.05811.
    """
    logs = np.log(ratios)
    pairs = len(logs)
    value = float(np.median(logs))
    medians = np.median(logs[rng.integers(0, pairs, (resamples, pairs))], axis=1)
    spread = instance_variance(logs, baseline_instance) + instance_variance(logs, candidate_instance)
    # A variance of a handful of instances is itself uncertain: Student's t, not the normal distribution.
    freedom = max(1, len(np.unique(baseline_instance)) + len(np.unique(candidate_instance)) - 2)
    medians = medians + np.sqrt(spread) * rng.standard_t(freedom, resamples)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(medians, (tail, 100 - tail))
    floor = np.log1p(resolution)
    return Interval(
        float(np.exp(value)), float(np.exp(min(low, value - floor))), float(np.exp(max(high, value + floor)))
    )


def instance_variance(logs: Floats, instance: Ints) -> float:
    """Variance that the choice of instances adds to the overall median, in squared log ratio; 0 where noise explains all."""
    medians, noises = [], []
    for index in np.unique(instance):
        own = logs[instance == index]
        if len(own) < 3:
            continue
        medians.append(np.median(own))
        # Standard error of a median: 1.253 sigma / sqrt(n), with sigma from the quartiles (1.349 sigma apart).
        spread = float(np.subtract(*np.percentile(own, (75, 25)))) / 1.349
        noises.append((1.2533 * spread) ** 2 / len(own))
    if len(medians) < 2:
        return 0.0
    between = float(np.var(medians, ddof=1)) - float(np.mean(noises))
    return max(0.0, between) / len(medians)


def median_interval(values: Floats, *, confidence: float) -> tuple[float, float]:
    """Return the interval of a median, free of any assumption on the distribution: two order statistics.

    Args:
        values: Shape (n,), at least one.
        confidence: 0.95 for 95 %.

    Source: the sign test's interval, with the normal approximation of the binomial.
    """
    ordered = np.sort(values)
    count = len(ordered)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(count) / 2
    low = max(0, int(np.floor((count - 1) / 2 - reach)))
    high = min(count - 1, int(np.ceil((count - 1) / 2 + reach)))
    return float(ordered[low]), float(ordered[high])


def percentiles(runs_ms: Floats) -> tuple[float | None, float | None, float | None]:
    """Return p50, p90, p99 of single runs in ms; None where there are too few to mean anything."""
    count = len(runs_ms)
    p50 = float(np.median(runs_ms)) if count else None
    p90 = float(np.percentile(runs_ms, 90)) if count >= P90_FLOOR else None
    p99 = float(np.percentile(runs_ms, 99)) if count >= P99_FLOOR else None
    return p50, p90, p99


def pack_samples(baseline_ms: Floats, candidate_ms: Floats, start_s: Floats) -> Samples:
    """Pack raw blocks, in order, each of shape (pairs,), as ``domain.measurement.Samples`` says."""
    table = np.column_stack((baseline_ms, candidate_ms, start_s)).astype("<f4")
    return Samples(pairs=len(table), data=base64.b64encode(zlib.compress(table.tobytes(), 6)).decode())


def unpack_samples(samples: Samples) -> NDArray[np.float32]:
    """Return the table of a ``Samples``: float32 of shape (pairs, 3), baseline ms, candidate ms, start s."""
    table = np.frombuffer(zlib.decompress(base64.b64decode(samples.data)), dtype="<f4")
    return table.reshape(samples.pairs, 3)
