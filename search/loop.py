"""The loop: ask -> build -> measure -> tell over the tables. It owns no state: thrown away at any point, another goes on.

Every turn reads one snapshot, lets ``search.decide`` say what is next, writes it fenced by the lease, and wakes whoever
carries the work. The studies are kept between turns for speed only; they can be rebuilt from the rows at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue

from domain.artifact import ArtifactKind
from domain.device import Device
from domain.errors import StaleAttempt
from domain.job import JobState
from domain.ports import ArtifactStore, JobStore, Launcher, NewMeasurement, SearchLease
from domain.work import HEARTBEAT_S, LEASE_S
from search import finals
from search.actions import Action, Ask, End, Enter, FinishTrial, GiveBack, Report, StartBuild, StartMeasurement
from search.decide import MAX_IN_FLIGHT, decide, new_trial
from search.devices import all_devices, can_run
from search.front import best_speedups, build_front
from search.inherit import settled
from search.joint import joint_report
from search.manifest import build_manifest
from search.models import network_of, predictor_report, why_report
from search.options import Parts
from search.ranges import moved
from search.sampler import Preset
from search.space import SearchSpace
from search.stopping import growth
from search.study import ALL, TargetStudy
from search.view import View
from search.zeros import weights_report

DEVICES_S = 2.0  # how old the list of devices may be
SNAPSHOT_S = 5.0  # how old a snapshot may be, should word of a change get lost


class LoopEnd(StrEnum):
    """Why a run of the loop came back."""

    ENDED = "ended"  # the job is over
    PAUSED = "paused"
    WAITING = "waiting"  # for a device
    DRAINED = "drained"  # ``until`` said so; the job goes on with the next lease
    LOST = "lost"  # the lease went to somebody else


@dataclass(frozen=True)
class LoopResult:
    """What a run of the loop came to, and how many trials it asked for."""

    end: LoopEnd
    asked: int = 0
    reason: str | None = None


@dataclass
class _Run:
    lease: SearchLease
    renewed_at: datetime
    asked: int = 0
    devices: Sequence[Device] = ()
    devices_at: datetime | None = None
    studies: dict[int, TargetStudy] = field(default_factory=dict)
    spaces: dict[int, SearchSpace] = field(default_factory=dict)


class SearchLoop:
    """Carries jobs to their fronts.

    Args:
        store: The tables.
        launcher: Woken after each commit.
        artifacts: Where manifests of finals go; None: none are written.
        preset: Sampler.
        parts: Which parts of the search are on.
        poll_s: The longest wait for a change before looking again.
    """

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        artifacts: ArtifactStore | None = None,
        *,
        preset: Preset = "tpe",
        parts: Parts = ALL,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._artifacts = artifacts
        self._preset = preset
        self._parts = parts
        self._poll_s = poll_s

    def run(self, lease: SearchLease, *, until: Callable[[], bool]) -> LoopResult:
        """Carry a leased job on until it is over, paused, without a device, or ``until`` says to give way.

        The lease is given back in every case but a lost one, which is left quietly.
        """
        run = _Run(lease, renewed_at=self._store.now())
        try:
            return self._turn_until(run, until)
        except StaleAttempt as error:
            is_over = self._store.job(lease.job_id).state.is_terminal  # cancelled: then no lease holds either
            return LoopResult(LoopEnd.ENDED if is_over else LoopEnd.LOST, run.asked, error.message)

    def _turn_until(self, run: _Run, until: Callable[[], bool]) -> LoopResult:
        view: View | None = None
        seen_at = run.renewed_at
        while True:
            if until():
                self._store.release_search(run.lease)
                return LoopResult(LoopEnd.DRAINED, run.asked)
            now = self._renew(run)
            if view is None or (now - seen_at).total_seconds() >= SNAPSHOT_S:
                view, seen_at = View(self._store.snapshot(run.lease.job_id)), now
            if view.job.state.is_terminal:
                return LoopResult(LoopEnd.ENDED, run.asked, view.job.reason)
            if view.job.state is JobState.PAUSED:
                self._store.release_search(run.lease)
                return LoopResult(LoopEnd.PAUSED, run.asked)
            actions = decide(
                view,
                now=now,
                devices=self._devices(run, now),
                parameters=self._parameters(run, view),
                in_flight=MAX_IN_FLIGHT if self._parts.overlap else 1,
            )
            for action in actions:
                end = self._apply(run, view, action)
                if end is not None:
                    return end
            if actions or self._store.wait_for_change(run.lease.job_id, self._poll_s):
                view = None

    def _apply(self, run: _Run, view: View, action: Action) -> LoopResult | None:
        store, lease = self._store, run.lease
        match action:
            case Enter():
                store.set_stage(lease, action.stage, reason=action.reason)
            case Report():
                store.merge_report(lease, action.data)
            case StartBuild():
                finished = store.find_build(action.build.key) if action.may_adopt else None
                if finished is not None:
                    store.adopt_build(lease, finished)
                else:
                    store.add_build(lease, action.build)
                    self._launcher.wake_builders()
            case StartMeasurement():
                store.add_measurement(lease, action.measurement, trial_id=action.trial_id)
                self._wake_devices(run, action.measurement)
            case FinishTrial():
                store.finish_trial(lease, action.trial_id, action.state, values=action.values, reason=action.reason)
            case Ask():
                self._ask(run, view, action.target)
            case GiveBack():
                store.release_search(lease, retry_after_s=action.retry_after_s)
                return LoopResult(LoopEnd.WAITING, run.asked)
            case End():
                self._end(run, action)
                return LoopResult(LoopEnd.ENDED, run.asked, action.reason)
        return None

    def _ask(self, run: _Run, view: View, target: int) -> None:
        study = self._study(run, view, target)
        study.sync(view)
        asked = study.ask(view)
        candidate, start = asked.candidate, None
        if self._parts.inheritance:
            candidate, start = settled(view, target, candidate)
        trial = new_trial(
            view,
            target,
            candidate,
            study_number=asked.study_number,
            params=asked.params,
            distributions=asked.distributions,
            seed_name=asked.seed_name,
            start=start,
        )
        self._store.add_trial(run.lease, trial)
        run.asked += 1
        self._note_moves(run, view, target, study)
        if trial.build is not None:
            self._launcher.wake_builders()

    def _note_moves(self, run: _Run, view: View, target: int, study: TargetStudy) -> None:
        """Write down where the ranges of groups moved since the last time."""
        ranges = view.job.report.get("ranges")
        known = dict(ranges) if isinstance(ranges, dict) else {}
        before = known.get(str(target))
        entry = moved(study.models(view).loss, before if isinstance(before, dict) else {})
        if entry is not None:
            self._store.merge_report(run.lease, {"ranges": {**known, str(target): entry}})

    def _end(self, run: _Run, action: End) -> None:
        view = View(self._store.snapshot(run.lease.job_id))
        best: dict[str, JsonValue] = {str(target): value for target, value in best_speedups(view.snapshot).items()}
        self._store.merge_report(run.lease, {"best_speedup": best})  # a list of jobs then need not read their rows
        if action.state is JobState.SUCCEEDED:
            curves: dict[str, JsonValue] = {
                str(target): [round(area, 6) for area in growth(view, target)]
                for target in range(len(view.spec.targets))
            }
            report = {
                "predictor": predictor_report(view),
                "hypervolume": curves,
                "joint": joint_report(view),
                "why": why_report(view),
                "weights": weights_report(view),
                **self._manifests(view),
            }
            self._store.merge_report(run.lease, report)
        self._store.end_job(run.lease, action.state, ended_by=action.ended_by, reason=action.reason)

    def _manifests(self, view: View) -> dict[str, JsonValue]:
        """Write a manifest beside every final artifact; return the report's map of artifact digest to manifest digest."""
        if self._artifacts is None:
            return {}
        manifests: dict[str, JsonValue] = {}
        for target in range(len(view.spec.targets)):
            front = build_front(view.snapshot, target)
            for point in (*front.dense, *front.items) if front.is_final else ():
                dense = next(d for d in front.dense if d.precision == point.precision)
                body = build_manifest(view.snapshot, point, dense)
                ref = self._artifacts.put_bytes(body, ArtifactKind.MANIFEST)
                self._store.record_artifact(ref)
                manifests[f"{target}:{point.artifacts[0].digest}"] = ref.digest
        return {"manifests": manifests}

    def _space(self, run: _Run, view: View, target: int) -> SearchSpace:
        if target not in run.spaces:
            precisions = view.spec.targets[target].precision
            run.spaces[target] = SearchSpace(
                network_of(view, target),
                view.spec.recovery,
                precisions=precisions,
                is_slow_to_recover=view.dense_of(target).is_slow_to_recover,
            )
        return run.spaces[target]

    def _study(self, run: _Run, view: View, target: int) -> TargetStudy:
        if target not in run.studies:
            space = self._space(run, view, target)
            # Half of a target's trials at most are seeds: the other half is the sampler's.
            limit = max(1, view.spec.budget.trials // len(view.spec.targets) // 2)
            run.studies[target] = TargetStudy(
                space,
                target=target,
                seed=view.spec.seed,
                seeds=limit if self._parts.seeds else 0,
                preset=self._preset,
                parts=self._parts,
            )
        return run.studies[target]

    def _parameters(self, run: _Run, view: View) -> int:
        if finals.is_chosen(view) or view.prepared(0) is None or not view.dense_of(0).groups:
            return 0
        return len(self._space(run, view, 0).distributions)

    def _renew(self, run: _Run) -> datetime:
        now = self._store.now()
        if (now - run.renewed_at).total_seconds() >= HEARTBEAT_S:
            self._store.renew_search(run.lease, lease_s=LEASE_S)
            run.renewed_at = now
        return now

    def _devices(self, run: _Run, now: datetime) -> Sequence[Device]:
        if run.devices_at is None or (now - run.devices_at).total_seconds() >= DEVICES_S:
            run.devices, run.devices_at = all_devices(self._store), now
        return run.devices

    def _wake_devices(self, run: _Run, measurement: NewMeasurement) -> None:
        request = measurement.request
        for device in run.devices:
            if can_run(device, measurement.selector, request.runtime, (request.precision,)):
                self._launcher.wake_device(device.id)
