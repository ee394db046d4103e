"""What a job would do, before it is submitted: the groups, the devices, the cost. Pure but for what it reads."""

from __future__ import annotations

from collections.abc import Callable

from domain.build import BuildResult
from domain.errors import PruneloopError
from domain.job import Job, JobSpec, JobState, Stage
from domain.plan import Cost, JobPlan, MatchedDevice, Network, Pace, PlannedGroup, PlannedTarget, Whole
from domain.ports import JobSnapshot, JobStore
from search.devices import all_devices, can_run, why_no_device
from search.view import View, content_key, prepare_request

Trace = Callable[[JobSpec], Network]
"""Builds a job's model somewhere safe and finds its groups. Raises PruneloopError with the reason where it cannot."""


class NoBuilderHere(PruneloopError):
    default_code = "no_builder_here"


def no_builder_here(spec: JobSpec) -> Network:
    raise NoBuilderHere(
        "The groups are not known: no builder is installed with this API; the job's first build finds them."
    )


def make_plan(spec: JobSpec, store: JobStore, trace: Trace) -> JobPlan:
    """Return what a valid job would do now."""
    devices = all_devices(store)
    targets = []
    for index, target in enumerate(spec.targets):
        able = [device for device in devices if can_run(device, target.device, target.runtime, target.precision)]
        reason = why_no_device(target, index, devices)
        if reason is None and not any(device.is_online for device in able):
            reason = f"Target {index}: no matching device is online. Start `pruneloop agent run` there."
        matched = tuple(
            MatchedDevice(
                id=device.id,
                name=device.name,
                state=device.state,
                is_online=device.is_online,
                queue_depth=device.queue_depth,
            )
            for device in able
        )
        targets.append(PlannedTarget(target=index, devices=matched, reason=reason))
    network, why_unknown = _network(spec, store, trace)
    return JobPlan(
        spec=spec, network=network, network_reason=why_unknown, targets=tuple(targets), cost=_cost(spec, store)
    )


def _network(spec: JobSpec, store: JobStore, trace: Trace) -> tuple[Network | None, str | None]:
    known = store.find_build(content_key(prepare_request(_view_of(spec, store), spec.targets[0].batch)))
    if known is not None and isinstance(known.outcome, BuildResult):
        dense = known.outcome
        network = Network(
            groups=tuple(PlannedGroup(name=group.name, channels=group.channels) for group in dense.groups),
            blocks=tuple(block.name for block in dense.blocks),
            unprunable=tuple(Whole(name=layer.name, reason=layer.reason) for layer in dense.unprunable),
            macs=dense.macs,
            params=dense.params,
            source="build",
        )
        return network, None
    try:
        return trace(spec), None
    except PruneloopError as error:
        return None, error.message


def _cost(spec: JobSpec, store: JobStore) -> Cost:
    pace = store.pace()
    trials, finals, targets = spec.budget.trials, spec.final.keep, len(spec.targets)
    return Cost(
        trials=trials,
        finals=finals * targets,
        measurements=trials + finals * targets + targets,
        wall_budget_s=spec.budget.wall_s,
        expected_s=_expected_s(spec, pace),
        pace=pace,
        queue=store.queue_place(priority=spec.priority),
    )


def _expected_s(spec: JobSpec, pace: Pace) -> float | None:
    """Return seconds until the end: trials are built while others are measured, so the slower of the two sets the pace."""
    if pace.build_s is None or pace.measurement_s is None:
        return None
    trials_s = spec.budget.trials * max(pace.build_s, pace.measurement_s)
    return round(min(spec.budget.wall_s, trials_s), 1)


def _view_of(spec: JobSpec, store: JobStore) -> View:
    row = Job(id="", name=spec.name, spec=spec, state=JobState.QUEUED, stage=Stage.QUEUED, created_at=store.now())
    return View(JobSnapshot(job=row, trials=()))
