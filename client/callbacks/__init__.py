"""A job's trials as they end, handed to what shows or keeps experiments: TensorBoard, MLflow, Weights & Biases.

A callback is any object with the methods of ``JobCallback``. ``log_job`` follows a job to its end; one that is over is told at
once, from its first trial on, so that a finished job can be logged as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from api.schemas.jobs import JobView
from client.api import PruneloopClient
from domain.front import Front
from domain.pareto import hypervolume, nondominated
from domain.trial import Trial, TrialState

REFERENCE = (1.0, 1.0)  # latency ratio and error of a network that is as slow as the dense one and always wrong
TRIAL_ENDED = "trial.finished"


@dataclass(frozen=True)
class TrialNews:
    """A trial that ended, with its target's front as of then.

    Attributes:
        trial: The trial.
        step: How many trials of its target had ended, this one included: the x axis.
        front: Trials not dominated so far, fastest first.
        scalars: Name -> number. Of a trial that gave no point only those of the front.
    """

    trial: Trial
    step: int
    front: tuple[Trial, ...]
    scalars: Mapping[str, float]


class JobCallback(Protocol):
    """Is told what happens to one job."""

    def started(self, job: JobView) -> None:
        """The job is known; called once, first."""

    def trial_ended(self, news: TrialNews) -> None:
        """A trial ended, whatever came of it."""

    def ended(self, job: JobView, fronts: Sequence[Front]) -> None:
        """The job is over; a front a target, measured again and on the test split. Called once, last."""


class Progress:
    """Turns trials into news, a target each its own count and front. Pure."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._steps: dict[int, int] = {}
        self._points: dict[int, list[Trial]] = {}

    def news(self, trials: Sequence[Trial]) -> list[TrialNews]:
        """Return news of the trials that ended since the last call, in the order in which they ended."""
        ended = [trial for trial in trials if trial.state.is_terminal and trial.number not in self._told]
        return [
            self._take(trial)
            for trial in sorted(ended, key=lambda one: (one.finished_at or one.created_at, one.number))
        ]

    def _take(self, trial: Trial) -> TrialNews:
        self._told.add(trial.number)
        step = self._steps[trial.target] = self._steps.get(trial.target, 0) + 1
        points = self._points.setdefault(trial.target, [])
        scalars: dict[str, float] = {}
        if trial.values is not None and trial.state is TrialState.SUCCEEDED:
            points.append(trial)
            scalars = {
                "accuracy_search": 1 - trial.values.error,
                "latency_ratio": trial.values.latency_ratio,
                "speedup": 1 / trial.values.latency_ratio,
            }
        front = nondominated(points, latency=lambda one: _pair(one)[0], error=lambda one: _pair(one)[1])
        scalars["front_size"] = float(len(front))
        scalars["hypervolume"] = hypervolume([_pair(one) for one in front], reference=REFERENCE)
        return TrialNews(trial, step, tuple(front), scalars)


def log_job(client: PruneloopClient, job_id: str, callbacks: Sequence[JobCallback]) -> JobView:
    """Tell callbacks of a job until it is over; return it.

    Args:
        client: Of the server that has the job.
        job_id: The job; a finished one is told at once.
        callbacks: Told in this order. What one raises ends the logging, never the job.
    """
    progress = Progress()
    view = client.job(job_id)
    for callback in callbacks:
        callback.started(view)
    if not view.state.is_terminal:
        for event in client.watch(job_id):
            if event.type == TRIAL_ENDED:
                _tell(callbacks, progress.news(client.trials(job_id)))
        view = client.job(job_id)
    _tell(callbacks, progress.news(client.trials(job_id)))
    fronts = [client.front(job_id, target) for target in range(len(view.spec.targets))]
    for callback in callbacks:
        callback.ended(view, fronts)
    return view


def final_scalars(front: Front) -> dict[str, float]:
    """Return the numbers of a finished front that are worth a line in a table of jobs."""
    within = [point for point in front.items if point.within_max_drop and point.trial is not None]
    scalars = {"points": float(len(front.items))}
    if within:
        best = max(within, key=lambda point: point.speedup)
        scalars |= {
            "best_speedup": best.speedup,
            "best_latency_ms": best.latency_ms,
            "best_accuracy": best.accuracy if best.accuracy is not None else best.accuracy_search,
        }
    return scalars


def _tell(callbacks: Sequence[JobCallback], news: Sequence[TrialNews]) -> None:
    for one in news:
        for callback in callbacks:
            callback.trial_ended(one)


def _pair(trial: Trial) -> tuple[float, float]:
    assert trial.values is not None, "only trials with values are points"
    return trial.values.latency_ratio, trial.values.error
