"""What to keep of the wall budget for the finals: as much as the front's own builds say they will take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from domain.build import BuildResult, CandidateRequest
from domain.trial import Trial
from search.accounting import FINAL_PLAN_S, elapsed_s
from search.finals import final_build, final_epochs, finalists, pick, runners_up, useful_of
from search.view import View

# Of the wall budget: past that a search for fewer finals serves better than many finals of no search.
MOST_FOR_FINALS = 0.4
SESSION_S = 2.0  # fetch, load, check and warm-up of a measuring session
MARGIN = 1.2  # an epoch takes a little longer at one time than at another
FINAL_OVER_TRIAL = 1.5
SPARED = ("prune", "hold")  # stages of a trial's build that a final's hardly has


def final_build_s(view: View, trial: Trial) -> float | None:
    """Return the seconds the final build of a trial should take, from its own build; None where that does not tell.

    Recovery grows with the epochs; the rest (load, export) stays, less what a final is spared: it finds its channels chosen, and
    nothing measures meanwhile. Evaluation on test is about one on val.
    """
    build = view.builds_by_id.get(trial.build_id or "")
    if build is None or not isinstance(build.request, CandidateRequest) or not isinstance(build.outcome, BuildResult):
        return None
    if build.started_at is None or build.finished_at is None:
        return None
    stages_s = build.outcome.stages_s
    recover_s = stages_s.get("recover", 0.0)
    epochs = build.request.candidate.recovery.epochs
    spared_s = sum(stages_s.get(stage, 0.0) for stage in SPARED)
    other_s = max(0.0, (build.finished_at - build.started_at).total_seconds() - recover_s - spared_s)
    return other_s + (recover_s / epochs if epochs > 0 else 0.0) * final_epochs(view, trial)


def final_measured_s(view: View) -> float:
    """Return the seconds a final should be measured for, from the trials measured last: pairs are more, sessions fewer."""
    done = [m for m in view.snapshot.measurements if m.started_at is not None and m.finished_at is not None][-5:]
    spans = [(m.finished_at - m.started_at).total_seconds() for m in done if m.started_at and m.finished_at]
    return min(FINAL_PLAN_S, FINAL_OVER_TRIAL * sum(spans) / len(spans)) if spans else FINAL_PLAN_S


def final_s(view: View, trial: Trial, *, pace: float = 1.0) -> float:
    """Return the seconds the final of a trial should take, built and measured; ``pace``: what builds take over what they should."""
    return MARGIN * (pace * (final_build_s(view, trial) or 0.0) + final_measured_s(view))


def reserve_s(view: View) -> float:
    """Return the seconds to keep back for the finals that were asked for, were the search to end now; 0 before it has a front."""
    total_s = 0.0
    for target, spec in enumerate(view.spec.targets):
        picked = pick(view, target, keep=view.spec.final.keep)
        wanted = useful_of(view, target, picked) or picked[:1]
        if wanted:
            total_s += sum(final_s(view, trial) for trial in wanted) + len(spec.precision) * SESSION_S
    return total_s


def in_flight_s(view: View) -> float:
    """Return the seconds one more trial takes from its ask to its number: what is asked last must still come in."""
    last = [trial for trial in view.snapshot.trials if trial.finished_at is not None and trial.build_id is not None][
        -3:
    ]
    spans = [(trial.finished_at - trial.created_at).total_seconds() for trial in last if trial.finished_at is not None]
    return sum(spans) / len(spans) if spans else 0.0


def search_ends_s(view: View) -> float:
    """Return the used seconds of the wall budget at which asking ends, so that the finals fit in the rest."""
    wall_s = view.spec.budget.wall_s
    return wall_s - min(reserve_s(view) + in_flight_s(view), MOST_FOR_FINALS * wall_s)


def affordable(view: View, now: datetime) -> dict[int, list[int]]:
    """Return, a target, the numbers of the finals that fit in the time left: the most wanted first, and one at least.

    Targets take turns. One that does not fit is passed over for a quicker one after it: wide networks take long to recover. Those
    chosen before stay first; once they are built, what they took says what others will take.
    """
    wanted = {target: _wanted(view, target) for target in range(len(view.spec.targets))}
    before = {target: finalists(view, target) for target in wanted}
    left_s = view.spec.budget.wall_s - elapsed_s(view.job, now)
    left_s -= sum(len(spec.precision) for spec in view.spec.targets) * SESSION_S
    left_s -= sum(len(trials) for trials in before.values()) * final_measured_s(view)
    pace = _pace(view, before)
    chosen = {target: [trial.number for trial in trials] for target, trials in before.items()}
    for place in range(view.spec.final.keep):
        for target, trials in wanted.items():
            if place >= len(trials) or len(chosen[target]) >= view.spec.final.keep:
                continue
            trial = trials[place]
            takes_s = final_s(view, trial, pace=pace)
            if trial.number not in chosen[target] and (takes_s <= left_s or not chosen[target]):
                chosen[target].append(trial.number)
                left_s -= takes_s
    return chosen


def _pace(view: View, finals: Mapping[int, Sequence[Trial]]) -> float:
    """Return the seconds that the builds of finals took over what they should have; 1 before there are any."""
    took_s = should_s = 0.0
    for target, trials in finals.items():
        for trial in trials:
            build, estimate_s = final_build(view, target, trial), final_build_s(view, trial)
            if build is not None and build.started_at and build.finished_at and estimate_s:
                took_s += (build.finished_at - build.started_at).total_seconds()
                should_s += estimate_s
    return took_s / should_s if should_s else 1.0


def _wanted(view: View, target: int) -> list[Trial]:
    """Return as many trials as the job keeps files of, where there are so many: the front's, then those that come next to it."""
    keep = view.spec.final.keep
    picked = pick(view, target, keep=keep)
    if len(picked) == keep:
        return picked
    return [*picked, *runners_up(view, target, {trial.number for trial in picked})][:keep]
