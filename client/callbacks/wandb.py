"""Weights & Biases: a run a job, metrics a trial, the finished fronts as tables. Needs ``pip install wandb``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.schemas.jobs import JobView
from client.callbacks import TrialNews, final_scalars
from domain.front import Front

COLUMNS = ("trial", "precision", "accuracy", "latency_ms", "speedup", "params", "macs", "size_bytes", "within_max_drop")


class WandbCallback:
    """Logs a job as one run.

    Args:
        project: Name of the project.
        mode: ``online``, ``offline`` (files in ``folder``, for ``wandb sync``) or None: as WANDB_MODE says.
        folder: Where W&B keeps its files; None: here.

    Raises:
        ImportError: Where wandb is not installed.
    """

    def __init__(
        self, project: str = "pruneloop", *, mode: str | None = None, folder: Path | str | None = None
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbCallback needs wandb: pip install 'pruneloop[trackers]'") from error
        self._wandb: Any = wandb
        self._options = {"project": project, "mode": mode, "dir": str(folder) if folder is not None else None}
        self._run: Any = None

    def started(self, job: JobView) -> None:
        self._run = self._wandb.init(
            **self._options, id=job.id, name=job.name or job.id, config=job.spec.model_dump(mode="json"), resume="allow"
        )
        # Targets end their trials in turns, so each has an axis of its own.
        for target in range(len(job.spec.targets)):
            self._run.define_metric(f"target_{target}/trial")
            self._run.define_metric(f"target_{target}/*", step_metric=f"target_{target}/trial")

    def trial_ended(self, news: TrialNews) -> None:
        place = f"target_{news.trial.target}"
        self._run.log({f"{place}/trial": news.step, **{f"{place}/{name}": n for name, n in news.scalars.items()}})

    def ended(self, job: JobView, fronts: Sequence[Front]) -> None:
        for front in fronts:
            rows = [[getattr(point, name) for name in COLUMNS] for point in (*front.dense, *front.items)]
            table = self._wandb.Table(columns=list(COLUMNS), data=rows)
            self._run.log({f"target_{front.target}/front": table})
            for name, value in final_scalars(front).items():
                self._run.summary[f"target_{front.target}/final/{name}"] = value
        self._run.summary["state"] = job.state.value
        self._run.finish(exit_code=0 if job.state.value in {"SUCCEEDED", "STOPPED"} else 1)
