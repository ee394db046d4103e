"""``pruneloop report``: what a job says of itself."""

from __future__ import annotations

from typing import Annotated

import typer

from client.commands.shared import DataDir, JobArgument, Json, Token, Url, connect, job_id_of, make_console, write_json
from client.report import read_report, report_block
from domain.errors import NotFound


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(rich_help_panel="Jobs")(report)


def report(
    job: JobArgument,
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="Account of this finalist.")] = None,
    target: Annotated[int | None, typer.Option("--target", min=0, help="Only this target's account.")] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Say why a job is not faster, which single model serves all targets best, and how far predictions were off."""
    with connect(url, token, data_dir) as client:
        view = client.job(job_id_of(client, job))
        fronts = [] if as_json else [client.front(view.id, index) for index in range(len(view.spec.targets))]
    if as_json:
        write_json(view.report)
        return
    fastest = {one.target: one.items[0].trial for one in fronts if one.items and one.items[0].trial is not None}
    why = read_report(view.report).why
    finalists = sorted({int(name) for one in why.values() for name in one.trials})
    if trial is not None and trial not in finalists:
        raise NotFound(
            f"Trial {trial} is no finalist of job {job}; finalists: {', '.join(map(str, finalists)) or 'none yet'}.",
            code="not_a_finalist",
        )
    make_console().print(report_block(view, trial=trial, target=target, fastest=fastest))
