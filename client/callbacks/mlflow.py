"""MLflow: a run a job, metrics a trial, the finished fronts as JSON. Needs ``pip install mlflow-skinny`` (or ``mlflow``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from api.schemas.jobs import JobView
from client.callbacks import TrialNews, final_scalars
from domain.front import Front
from domain.job import JobState

ENDED_WELL = {JobState.SUCCEEDED, JobState.STOPPED}


class MlflowCallback:
    """Logs a job as one run.

    Args:
        tracking_uri: Where: ``sqlite:///mlflow.db``, ``http://...``; None: as MLflow finds it itself.
        experiment: Name of the experiment.

    Raises:
        ImportError: Where MLflow is not installed.
    """

    def __init__(self, tracking_uri: str | None = None, *, experiment: str = "pruneloop") -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError("MlflowCallback needs MLflow: pip install 'pruneloop[trackers]'") from error
        # The client, not the module: no active run of the caller's process is touched.
        self._client: Any = MlflowClient(tracking_uri=tracking_uri)
        self._experiment = experiment
        self.run_id = ""

    def started(self, job: JobView) -> None:
        found = self._client.get_experiment_by_name(self._experiment)
        place = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(place, run_name=job.name or job.id, tags={"pruneloop.job": job.id})
        self.run_id = run.info.run_id
        for name, value in job.spec.model_dump(mode="json", exclude={"targets", "name"}).items():
            self._client.log_param(self.run_id, name, json.dumps(value)[:500])
        for index, target in enumerate(job.spec.targets):
            self._client.log_param(self.run_id, f"target_{index}", json.dumps(target.model_dump(mode="json"))[:500])

    def trial_ended(self, news: TrialNews) -> None:
        for name, value in news.scalars.items():
            self._client.log_metric(self.run_id, f"target_{news.trial.target}/{name}", value, step=news.step)

    def ended(self, job: JobView, fronts: Sequence[Front]) -> None:
        for front in fronts:
            for name, value in final_scalars(front).items():
                self._client.log_metric(self.run_id, f"target_{front.target}/final/{name}", value)
            self._client.log_dict(self.run_id, front.model_dump(mode="json"), f"front-target-{front.target}.json")
        self._client.set_tag(self.run_id, "pruneloop.state", job.state.value)
        self._client.set_terminated(self.run_id, "FINISHED" if job.state in ENDED_WELL else "FAILED")
