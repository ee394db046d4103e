"""What the latency probes of the prepare build took on a target: measured while the first candidate is trained. Pure.

They are no trials: nothing was trained, so nothing stands on a front. The latency model learns from them, and a target where they
cannot be measured does without.
"""

from __future__ import annotations

from domain.formats import ONNX
from domain.measurement import CandidateTiming, Measured, MeasuredFile, MeasurementPlan, MeasurementRequest
from domain.ports import NewMeasurement
from search.actions import StartMeasurement
from search.network import Ints, Network
from search.precision import baseline_scale
from search.view import View, measured_file

PROBED = "fp32"
# Points of a fit that count half: a search waits for them, and they need not be as exact as what a user is told.
PLAN_S = 0.25
FEWEST_PAIRS = 12
HALF_WIDTH = 0.02


def probe_sessions(view: View) -> list[StartMeasurement]:
    """Return the sessions that time the probes, one a target that reads them, as far as they were not started."""
    sessions = []
    for target, spec in enumerate(view.spec.targets):
        probes = view.dense_of(target).probes
        if not probes or spec.file_format != ONNX or PROBED not in spec.precision or _key(target) in view.measurements:
            continue
        request = MeasurementRequest(
            runtime=spec.runtime,
            precision=PROBED,
            batch=spec.batch,
            threads=spec.threads,
            baseline=measured_file(view.dense_of(target), ONNX, PROBED),
            candidates=tuple(MeasuredFile(artifact=probe.file.artifact, check=probe.file.check) for probe in probes),
            plan=MeasurementPlan(max_s=PLAN_S, min_pairs=FEWEST_PAIRS, half_width=HALF_WIDTH, seed=view.spec.seed),
        )
        sessions.append(
            StartMeasurement(NewMeasurement(_key(target), target=target, selector=spec.device, request=request))
        )
    return sessions


def is_probing(view: View, target: int) -> bool:
    """Return whether a target's probes are being timed: where a search begins is chosen by what they show."""
    measurement = view.measurements.get(_key(target))
    return measurement is not None and not measurement.state.is_terminal


def probed(view: View, target: int, network: Network, precision: str) -> list[tuple[Ints, float]]:
    """Return (row, latency ratio to the dense model of the target's first precision) of the probes measured in a precision."""
    scale = baseline_scale(view, target, precision)
    if precision != PROBED or scale is None:
        return []
    blocks = {block.name for block in network.blocks}
    return [
        (network.row(probe.widths, probe.dropped), scale.ratio / timing.speedup)
        for probe, timing in zip(view.dense_of(target).probes, _timings(view, target), strict=False)
        if blocks >= set(probe.dropped)
    ]


def count_probed(view: View, target: int) -> int:
    """Return how many probes of a target were measured."""
    return len(_timings(view, target))


def _timings(view: View, target: int) -> tuple[CandidateTiming, ...]:
    measurement = view.measurements.get(_key(target))
    if measurement is None or measurement.is_suspect or not isinstance(measurement.outcome, Measured):
        return ()
    return measurement.outcome.candidates


def _key(target: int) -> str:
    return f"probes:{target}"
