"""Commands about jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from client.api import PruneloopClient
from client.commands.shared import (
    FAILED,
    INTERRUPTED,
    OK,
    STILL_RUNNING,
    DataDir,
    JobArgument,
    Json,
    Token,
    Url,
    config_of,
    connect,
    device_of,
    emit,
    job_id_of,
    make_console,
    write_json,
)
from client.files import kind_of, read_job, upload_folder
from client.follow import follow
from client.plan import plan_block
from client.render import front_table, jobs_table
from client.take import fetch_points, points_of
from domain.errors import Invalid, NotFound, Unavailable
from domain.job import Job, JobState, JobVerb

TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout-s", min=0, help="Watch for so long at most; the job goes on, and the exit code is 4."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (submit, upload, jobs, watch, front, pause, resume, stop, cancel, clone, download):
        app.command(rich_help_panel="Jobs")(command)


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The job; `-` reads standard input.")],
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", help="Show progress until the job is over.")
    ] = None,
    timeout_s: TimeoutS = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="Same key and job: the same job again.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would do: groups, devices, cost. Nothing is stored.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Submit a job from a YAML or JSON file; files it names by their path are uploaded first."""
    content = _read(file)
    with connect(url, token, data_dir) as client:
        folder = Path() if str(file) == "-" else file.parent
        wanted = read_job(content, folder, client)
        if dry_run:
            plan = client.plan(wanted)
            emit(plan, plan_block(plan), as_json=as_json)
            return
        job = client.submit(wanted, idempotency_key=key)
        if not (config_of().watch if watch is None else watch):
            if as_json:
                emit(job, "", as_json=True)
            else:
                console = make_console()
                console.print(
                    f"{job.id} is {job.state.value}.  Follow it with: pruneloop watch {job.id}", soft_wrap=True
                )
            return
        raise typer.Exit(_watch(client, job.id, as_json=as_json, timeout_s=timeout_s))


def upload(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A model (.onnx), weights (.safetensors) or data (.npz, .csv, .parquet, .zip, a folder).",
        ),
    ],
    kind: Annotated[
        str | None, typer.Option("--kind", help="onnx, data or weights; default: what the name ends in says.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Upload a file and print the digest that jobs name it by."""
    with connect(url, token, data_dir) as client:
        if file.is_dir() and kind in {None, "data"}:
            made = upload_folder(client, file)
        else:
            made = client.upload_artifact(file, kind or kind_of(file))
    emit(made, made.digest, as_json=as_json)


def jobs(
    state: Annotated[list[JobState] | None, typer.Option("--state", help="Only these states.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Only jobs with key=value, or with key; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List jobs, newest first."""
    with connect(url, token, data_dir) as client:
        found = client.jobs(states=tuple(state or ()), labels=label or (), limit=limit)
    emit(
        found,
        jobs_table(found) if found else "No jobs yet; submit one with: pruneloop submit FILE.yaml",
        as_json=as_json,
    )


def watch(
    job: JobArgument,
    timeout_s: TimeoutS = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Follow a job until it is over; with --json an event a line."""
    with connect(url, token, data_dir) as client:
        raise typer.Exit(_watch(client, job_id_of(client, job), as_json=as_json, timeout_s=timeout_s))


def front(
    job: JobArgument,
    device: Annotated[
        str | None, typer.Option("--device", help="Only targets this device (id or name) can do.")
    ] = None,
    target: Annotated[int | None, typer.Option("--target", min=0, help="Only this target.")] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Show the measured front, a table a target."""
    with connect(url, token, data_dir) as client:
        view = client.job(job_id_of(client, job))
        fronts = [client.front(view.id, index) for index in _targets(client, view, device, target)]
    if as_json:
        write_json([item.model_dump(mode="json") for item in fronts])
        return
    console = make_console()
    for item in fronts:
        if item.dense or item.items:
            console.print(front_table(item, view.spec))
        else:
            console.print(f"target {item.target}: nothing measured yet ({view.state.value}, {view.stage.value})")


def pause(
    job: JobArgument, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Ask no new trials; running ones go on."""
    _verb(job, JobVerb.PAUSE, as_json, url, token, data_dir)


def resume(
    job: JobArgument, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Go on after a pause."""
    _verb(job, JobVerb.RESUME, as_json, url, token, data_dir)


def stop(
    job: JobArgument, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Finish running trials, keep the front, and end."""
    _verb(job, JobVerb.STOP, as_json, url, token, data_dir)


def cancel(
    job: JobArgument, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Kill what runs and end now."""
    _verb(job, JobVerb.CANCEL, as_json, url, token, data_dir)


def clone(
    job: JobArgument,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=YAML", help="A field that differs, whole: --set 'budget={trials: 80}'."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Submit the same job again, with changes."""
    changes = {}
    for text in change or ():
        name, sign, value = text.partition("=")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{value} is not YAML", param_hint="--set") from error
        if not sign or not name:
            raise typer.BadParameter(f"{text} is not field=value", param_hint="--set")
    with connect(url, token, data_dir) as client:
        made = client.clone(job_id_of(client, job), changes)
    emit(made, f"{made.id} is {made.state.value}.  Follow it with: pruneloop watch {made.id}", as_json=as_json)


def download(
    job: JobArgument,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="Only this trial; default: the whole front.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Only this format, e.g. onnx.")] = None,
    target: Annotated[int | None, typer.Option("--target", min=0, help="Only this target.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; default: `out` of the config file, else here.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Download the front's files, each verified against its digest."""
    folder = out or Path(config_of().out or ".").expanduser()
    with connect(url, token, data_dir) as client:
        view = client.job(job_id_of(client, job))
        points = [
            point
            for index in _targets(client, view, None, target)
            for point in points_of(client.front(view.id, index), trial=trial)
        ]
        if not points:
            what = "the front is empty so far" if trial is None else f"trial {trial} is on no front"
            raise NotFound(f"Nothing to download: {what}. See `pruneloop front {job}`.", code="nothing_to_download")
        taken = fetch_points(client, points, folder, format=format)
    if not taken:
        raise NotFound(
            f"No file of format {format} on that front; leave --format out to take all.", code="no_such_format"
        )
    if as_json:
        write_json([{"path": str(path), "digest": digest} for digest, path in taken.items()])
        return
    console = make_console()
    for path in taken.values():
        console.print(str(path), soft_wrap=True, highlight=False)


def _verb(job: str, verb: JobVerb, as_json: bool, url: str | None, token: str | None, data_dir: Path | None) -> None:
    with connect(url, token, data_dir) as client:
        calls = {
            JobVerb.PAUSE: client.pause,
            JobVerb.RESUME: client.resume,
            JobVerb.STOP: client.stop,
            JobVerb.CANCEL: client.cancel,
        }
        changed = calls[verb](job_id_of(client, job))
    emit(changed, f"{changed.id} is {changed.state.value}.", as_json=as_json)


def _watch(client: PruneloopClient, job_id: str, *, as_json: bool, timeout_s: float | None) -> int:
    """Follow a job; return the exit code: 0 it ended well, 1 it failed or was cancelled, 4 it still runs."""
    try:
        if as_json:
            for event in client.watch(job_id, timeout_s=timeout_s):
                line = {"id": event.id, "type": event.type, "data": event.data, "at": event.at.isoformat()}
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            view = client.job(job_id)
        else:
            console = make_console()
            view = follow(client, job_id, console, timeout_s=timeout_s)
            for index in range(len(view.spec.targets)):
                found = client.front(job_id, index)
                if found.items or found.dense:
                    console.print(front_table(found, view.spec))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nNot watching any more; the job goes on. Cancel it with: pruneloop cancel {job_id}\n")
        return INTERRUPTED
    except Unavailable as error:
        if error.code != "still_running":
            raise
        sys.stderr.write(f"{error.message} Go on watching with: pruneloop watch {job_id}\n")
        return STILL_RUNNING
    if view.state in {JobState.SUCCEEDED, JobState.STOPPED}:
        return OK
    sys.stderr.write(f"{view.id} is {view.state.value}" + (f": {view.reason}\n" if view.reason else ".\n"))
    return FAILED


def _targets(client: PruneloopClient, job: Job, device: str | None, target: int | None) -> list[int]:
    """Return the indices of the targets that are meant."""
    indices = list(range(len(job.spec.targets)))
    if target is not None:
        if target not in indices:
            raise NotFound(f"Job {job.id} has targets 0 to {len(indices) - 1}; there is no target {target}.")
        indices = [target]
    if device is None:
        return indices
    known = device_of(client, device)
    fitting = [i for i in indices if job.spec.targets[i].device.matches(known.id, known.labels)]
    if not fitting:
        raise NotFound(
            f"No target of job {job.id} matches device {known.name}; see `pruneloop devices` for its labels."
        )
    return fitting


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise Invalid(f"{file} cannot be read ({error.strerror}); give the path of a job file.") from error
