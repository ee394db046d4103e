"""The paired measurement. One module times every runtime with the same code; a runtime never times itself.

    latency   time of one ``run()`` call on inputs already in memory
    block     ``runs_per_block`` calls in a row, as many on both sides; its value is its fastest call: what else the machine
              does only ever adds time, and a stolen millisecond is worse than none
    pair      one block of the baseline and one of a candidate, next to each other, in random order
    speedup   median over pairs of (baseline block / candidate block)

Both sides go through the same: as many fresh instances, one drawn at random for each block, the same untimed runs first, the
same warm-up. Several candidates take turns (round robin), each with a baseline block of its own at its side. A candidate whose
interval is tight enough leaves the round, so that time goes where noise is.

What pairs cannot cancel is a neighbour that slows a small file by a third and a large one by a twentieth, for seconds. Pairs taken
while both sides were slower than they can be are left out where they say something else than the calm ones (``calm_pairs``).

Source: duet benchmarking, arXiv:2001.05811; the minimum: Chen and Revels, arXiv:1608.04295. What each of these choices buys, in
figures: docs/measurement.md.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from domain.measurement import MeasurementPlan
from workers.agent.statistics import Floats, Interval, paired_ratio

WARM_UP_RUNS = 5
WARM_UP_AGREEMENT = 0.02
UNTIMED_RUNS = 2
LONG_RUN_MS = 20.0  # from here on one untimed run: the caches are long since warm
FEWEST_RUNS = 3  # of a block, unless they are long: a minimum of one is no minimum
SAMPLE_FLOOR_MS = 0.02  # a clock call takes about 0.1 µs: 0.5 % of this, and the same on both sides
LOOKS_GROWTH = 1.25  # the interval is looked at each time the pairs grew by this: few looks, little bootstrap time
THROTTLED_IN_A_ROW = 3
CALM = (
    1.12  # both sides of a pair together, over the fastest that was seen of each; calm ones lie within 1.06 as a rule
)
INSTANCE = 1.1  # how much slower than the fastest of its side an instance may be for good
FEWEST_CALM = 8  # pairs to say anything by themselves
TELLS = 0.005  # relative difference of ratios from which on it matters which pairs count
NS_PER_MS = 1e6


class Session(Protocol):
    """Anything that can be run again and again on inputs it already has."""

    def run(self) -> object: ...


@dataclass
class Contender:
    """One file: its instances, and what was seen of it."""

    sessions: Sequence[Session]
    run_ms: float = 0.0
    block_ms: list[float] = field(default_factory=list)
    single_ms: list[float] = field(default_factory=list)
    timed_runs: int = 0
    warm_up_runs: int = 0
    is_steady: bool = True


@dataclass
class Pairs:
    """All pairs of one candidate, in order."""

    baseline_ms: list[float] = field(default_factory=list)
    candidate_ms: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    baseline_instance: list[int] = field(default_factory=list)
    candidate_instance: list[int] = field(default_factory=list)
    discarded: int = 0
    interval: Interval | None = None
    unmet: str | None = None
    next_look: int = 0

    @property
    def counts(self) -> NDArray[np.bool_]:
        """Which pairs count: the calm ones, or all where these are too few, or where the others say the same."""
        calm = calm_pairs(self)
        if calm.sum() < FEWEST_CALM or not self.is_split(calm):
            return np.ones_like(calm)
        return calm

    def is_split(self, calm: NDArray[np.bool_]) -> bool:
        """Whether all pairs together say something else than the calm ones."""
        if calm.all() or not calm.any():
            return False
        ratios: Floats = np.asarray(self.baseline_ms) / np.asarray(self.candidate_ms)
        return abs(float(np.median(ratios[calm]) / np.median(ratios)) - 1) > TELLS


@dataclass(frozen=True)
class Pass:
    """Everything one interleaved session saw."""

    baseline: Contender
    candidates: tuple[Contender, ...]
    pairs: tuple[Pairs, ...]
    runs_per_block: int
    warm_up_s: float
    measure_s: float
    is_throttled: bool


def calm_pairs(pairs: Pairs) -> NDArray[np.bool_]:
    """Return which pairs were taken while the machine was as fast as it was seen to be, for both sides together.

    A block is compared with the fastest of its own instance, which may be slower than its siblings for good, within reason.
    """
    over = np.ones(len(pairs.start_s))
    sides = (pairs.baseline_ms, pairs.baseline_instance), (pairs.candidate_ms, pairs.candidate_instance)
    for blocks_ms, instances in ((np.asarray(values), np.asarray(drawn)) for values, drawn in sides):
        for instance in np.unique(instances):
            own = instances == instance
            over[own] *= blocks_ms[own] / min(blocks_ms[own].min(), INSTANCE * blocks_ms.min())
    return np.asarray(over <= CALM)


def measure(
    baseline: Sequence[Session],
    candidates: Sequence[Sequence[Session]],
    plan: MeasurementPlan,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    report_stage: Callable[[str, int], None] = lambda stage, side: None,
    is_disturbed: Callable[[], bool] = lambda: False,
    cool_down: Callable[[], float] = lambda: 0.0,
) -> Pass:
    """Warm everything up, then time pairs until every interval is tight enough or the time is over.

    Args:
        baseline: Instances of the baseline, already loaded.
        candidates: Instances of each candidate.
        plan: ``max_s`` counts for each candidate; four pairs are taken however long they last, and once more ``max_s`` where a
            restless machine left too few calm ones.
        clock_ns: Monotonic nanoseconds.
        report_stage: Told ``warm_up`` and which side is warmed up (0: the baseline), then ``measure`` and the last side.
        is_disturbed: Asked after each pair; True discards it (a throttled clock, say).
        cool_down: Called after more than three discarded pairs in a row; returns the seconds it slept, which do not count
            as measuring time, or 0 where it will not sleep (any more).
    """
    rng = np.random.default_rng(plan.seed)
    sides = [Contender(baseline), *(Contender(sessions) for sessions in candidates)]
    begin_ns = clock_ns()
    with collector_paused():
        for index, side in enumerate(sides):
            report_stage("warm_up", index)
            _warm_up(side, plan, clock_ns)
        warm_ns = clock_ns()
        report_stage("measure", len(sides) - 1)
        timer = _BlockTimer.planned(sides, plan, clock_ns, rng)
        pairs, is_throttled = _take_pairs(sides, plan, timer, is_disturbed, cool_down)
        end_ns = clock_ns()
    return Pass(
        baseline=sides[0],
        candidates=tuple(sides[1:]),
        pairs=tuple(pairs),
        runs_per_block=timer.samples * timer.runs_per_sample,
        warm_up_s=(warm_ns - begin_ns) / 1e9,
        measure_s=(end_ns - warm_ns) / 1e9,
        is_throttled=is_throttled,
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed region."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warm_up(side: Contender, plan: MeasurementPlan, clock_ns: Callable[[], int]) -> None:
    """Run each instance until two consecutive 5-run medians agree within 2 %, for ``warmup_s`` at the longest."""
    medians = []
    for session in side.sessions:
        until_ns = clock_ns() + plan.warmup_s * 1e9
        before, is_steady = float("inf"), False
        while True:
            runs_ms = []
            for _ in range(WARM_UP_RUNS):
                start_ns = clock_ns()
                session.run()
                now_ns = clock_ns()
                runs_ms.append((now_ns - start_ns) / NS_PER_MS)
                if now_ns >= until_ns and len(runs_ms) >= 2:
                    break
            side.warm_up_runs += len(runs_ms)
            median = float(np.median(runs_ms))
            is_steady = abs(median - before) <= WARM_UP_AGREEMENT * min(median, before)
            before = median
            if is_steady or clock_ns() >= until_ns:
                break
        side.is_steady = side.is_steady and is_steady
        medians.append(before)
    side.run_ms = float(np.median(medians))


@dataclass
class _BlockTimer:
    """Times one block; the same code and the same counts for every side.

    A block is ``samples`` stretches of ``runs_per_sample`` calls, one call unless it is too short for the clock.
    """

    clock_ns: Callable[[], int]
    rng: np.random.Generator
    untimed: int
    samples: int
    runs_per_sample: int

    @classmethod
    def planned(
        cls, sides: Sequence[Contender], plan: MeasurementPlan, clock_ns: Callable[[], int], rng: np.random.Generator
    ) -> _BlockTimer:
        fastest_ms = max(min(side.run_ms for side in sides), 1e-6)
        # The middle of the fastest and the slowest: equal counts make minima comparable, and a much faster candidate must
        # not make the baseline's blocks long.
        middle_ms = max(float(np.sqrt(fastest_ms * max(side.run_ms for side in sides))), 1e-6)
        is_long = max(side.run_ms for side in sides) >= LONG_RUN_MS
        runs_per_sample = int(np.ceil(SAMPLE_FLOOR_MS / fastest_ms))
        samples = int(np.ceil(plan.block_ms / middle_ms / runs_per_sample))
        return cls(
            clock_ns=clock_ns,
            rng=rng,
            untimed=1 if is_long else UNTIMED_RUNS,
            samples=max(samples, 1 if is_long else FEWEST_RUNS),
            runs_per_sample=runs_per_sample,
        )

    def block(self, side: Contender) -> tuple[float, int]:
        """Return the block's value in ms and the instance it was drawn for."""
        instance = int(self.rng.integers(len(side.sessions)))
        run, clock_ns, runs = side.sessions[instance].run, self.clock_ns, range(self.runs_per_sample)
        for _ in range(self.untimed):
            run()
        stamps = [clock_ns()]
        for _ in range(self.samples):
            for _ in runs:
                run()
            stamps.append(clock_ns())
        samples_ms = np.diff(stamps) / (NS_PER_MS * self.runs_per_sample)
        if self.runs_per_sample == 1:
            side.single_ms.extend(samples_ms.tolist())
        side.timed_runs += self.samples * self.runs_per_sample
        return float(samples_ms.min()), instance


def _take_pairs(
    sides: Sequence[Contender],
    plan: MeasurementPlan,
    timer: _BlockTimer,
    is_disturbed: Callable[[], bool],
    cool_down: Callable[[], float],
) -> tuple[list[Pairs], bool]:
    begin_ns = timer.clock_ns()
    pairs = [Pairs(next_look=plan.min_pairs) for _ in sides[1:]]
    active = list(range(len(pairs)))
    budget_s = plan.max_s * len(pairs)
    disturbed_in_a_row, is_throttled, cooled_s = 0, False, 0.0
    while active:
        for index in list(active):
            own = pairs[index]
            start_s = (timer.clock_ns() - begin_ns) / 1e9
            _one_pair(sides[0], sides[index + 1], own, timer, start_s)
            if is_disturbed():
                _discard(own, sides[0], sides[index + 1], timer)
                disturbed_in_a_row += 1
                if disturbed_in_a_row > THROTTLED_IN_A_ROW and not is_throttled:
                    slept_s = cool_down()
                    cooled_s += slept_s
                    is_throttled = slept_s <= 0
                    disturbed_in_a_row = 0
            else:
                disturbed_in_a_row = 0
            spent_s = (timer.clock_ns() - begin_ns) / 1e9 - cooled_s
            is_over = spent_s >= budget_s
            if is_over and spent_s < budget_s + plan.max_s and _lacks_calm(own, plan):
                continue
            if is_over and (len(own.start_s) >= 4 or is_throttled):
                active.remove(index)
                _look(own, plan, timer)
                own.unmet = _unmet(own, plan, budget_s, is_throttled)
            elif len(own.start_s) >= own.next_look:
                _look(own, plan, timer)
                own.next_look = int(np.ceil(len(own.start_s) * LOOKS_GROWTH))
                if (
                    own.interval is not None
                    and own.interval.half_width <= plan.half_width
                    and not _lacks_calm(own, plan)
                ):
                    active.remove(index)
    return pairs, is_throttled


def _one_pair(baseline: Contender, candidate: Contender, own: Pairs, timer: _BlockTimer, start_s: float) -> None:
    if timer.rng.random() < 0.5:
        baseline_ms, baseline_instance = timer.block(baseline)
        candidate_ms, candidate_instance = timer.block(candidate)
    else:
        candidate_ms, candidate_instance = timer.block(candidate)
        baseline_ms, baseline_instance = timer.block(baseline)
    baseline.block_ms.append(baseline_ms)
    candidate.block_ms.append(candidate_ms)
    own.baseline_ms.append(baseline_ms)
    own.candidate_ms.append(candidate_ms)
    own.start_s.append(start_s)
    own.baseline_instance.append(baseline_instance)
    own.candidate_instance.append(candidate_instance)


def _discard(own: Pairs, baseline: Contender, candidate: Contender, timer: _BlockTimer) -> None:
    for values in (own.baseline_ms, own.candidate_ms, own.start_s, own.baseline_instance, own.candidate_instance):
        values.pop()
    for side in (baseline, candidate):
        side.block_ms.pop()
        if side.single_ms:
            del side.single_ms[-timer.samples :]
    own.discarded += 1


def _lacks_calm(own: Pairs, plan: MeasurementPlan) -> bool:
    """Whether pairs disagree by how restless the machine was, and too few of them are calm."""
    calm = calm_pairs(own)
    return bool(calm.sum() < plan.min_pairs) and own.is_split(calm)


def _look(own: Pairs, plan: MeasurementPlan, timer: _BlockTimer) -> None:
    if not own.start_s:
        return
    counts = own.counts
    ratios: Floats = (np.asarray(own.baseline_ms) / np.asarray(own.candidate_ms))[counts]
    own.interval = paired_ratio(
        ratios,
        np.asarray(own.baseline_instance)[counts],
        np.asarray(own.candidate_instance)[counts],
        resamples=plan.bootstrap,
        confidence=plan.confidence,
        resolution=plan.resolution,
        # A generator of its own: how often we look must not change what is drawn next.
        rng=np.random.default_rng(plan.seed + len(own.start_s)),
    )


def _unmet(own: Pairs, plan: MeasurementPlan, budget_s: float, is_throttled: bool) -> str | None:
    if own.interval is None:
        return f"the device was throttled in every one of {own.discarded} pairs"
    because = ", the device throttled" if is_throttled else ""
    kept = int(own.counts.sum())
    if kept == len(own.start_s) and _lacks_calm(own, plan):
        return f"the machine was restless: {kept} pairs disagree and too few of them are calm{because}"
    if own.interval.half_width <= plan.half_width and kept >= plan.min_pairs:
        return None
    if kept < plan.min_pairs:
        restless = f", {len(own.start_s) - kept} more while the machine was restless" if kept < len(own.start_s) else ""
        return f"{kept} pairs in {budget_s:.1f} s, {plan.min_pairs} wanted{restless}{because}"
    return (
        f"interval ±{own.interval.half_width * 100:.1f} % after {budget_s:.1f} s, "
        f"±{plan.half_width * 100:.1f} % wanted{because}"
    )
