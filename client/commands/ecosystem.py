"""Commands that hand a job's trials to other tools: Optuna, TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from client.callbacks import JobCallback, log_job
from client.commands.shared import DataDir, JobArgument, Json, Token, Url, connect, job_id_of, say, write_json
from domain.errors import NotFound, Unavailable


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("export-study", rich_help_panel="Jobs in other tools")(export_study)
    app.command(rich_help_panel="Jobs in other tools")(log)


def export_study(
    job: JobArgument,
    storage: Annotated[
        str, typer.Option("--storage", help="Any Optuna storage: sqlite:///trials.db, postgresql://..., journal:FILE.")
    ],
    target: Annotated[
        int | None, typer.Option("--target", min=0, help="Only this target; default: a study each.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Write a job's trials as Optuna studies; again: only what is new. For optuna-dashboard and optuna.visualization."""
    try:
        from search.export import export_study as write
    except ImportError as error:
        raise Unavailable(
            "Optuna is not installed here; run: pip install 'pruneloop[server]'", code="missing_package"
        ) from error
    with connect(url, token, data_dir) as client:
        view = client.job(job_id_of(client, job))
        trials = client.trials(view.id)
    if target is not None and target >= len(view.spec.targets):
        raise NotFound(f"Job {job} has targets 0 to {len(view.spec.targets) - 1}.", code="unknown_target")
    made = write(view, trials, storage, targets=None if target is None else [target])
    if as_json:
        write_json([asdict(one) for one in made])
        return
    for one in made:
        say(f"{one.study}: {one.added} trials added, {one.trials} in all")
    say(f"Look at them with: optuna-dashboard {storage.removeprefix('journal:')}")


def log(
    job: JobArgument,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for `tensorboard --logdir`.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option("--mlflow", help="Tracking URI: sqlite:///mlflow.db, http://....")
    ] = None,
    wandb: Annotated[str | None, typer.Option("--wandb", help="Project; WANDB_MODE=offline keeps it here.")] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Log every trial to TensorBoard, MLflow or Weights & Biases until the job is over; a finished job at once."""
    callbacks = _callbacks(tensorboard, mlflow, wandb)
    with connect(url, token, data_dir) as client:
        view = log_job(client, job_id_of(client, job), callbacks)
    if as_json:
        write_json({"id": view.id, "state": view.state.value, "trials": view.trials_asked})
        return
    say(f"{view.id} is {view.state.value}: {view.trials_asked} trials logged.")
    if tensorboard is not None:
        say(f"Look at them with: tensorboard --logdir {tensorboard}")


def _callbacks(tensorboard: Path | None, mlflow: str | None, wandb: str | None) -> list[JobCallback]:
    if not (tensorboard or mlflow or wandb):
        raise typer.BadParameter("give at least one of --tensorboard, --mlflow, --wandb")
    made: list[JobCallback] = []
    try:
        if tensorboard is not None:
            from client.callbacks.tensorboard import TensorboardCallback

            made.append(TensorboardCallback(tensorboard))
        if mlflow is not None:
            from client.callbacks.mlflow import MlflowCallback

            made.append(MlflowCallback(mlflow))
        if wandb is not None:
            from client.callbacks.wandb import WandbCallback

            made.append(WandbCallback(wandb))
    except ImportError as error:
        raise Unavailable(str(error), code="missing_package") from error
    return made
