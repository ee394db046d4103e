"""What commands share: options, exit codes, and how results and errors reach the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import RenderableType

from client.api import PruneloopClient
from client.config import ClientConfig, load_config
from client.connection import DEFAULT_DATA_DIR, connect
from client.errors import UNREACHABLE
from client.render import make_console
from domain.device import Device
from domain.errors import Conflict, Forbidden, Invalid, NotFound, PruneloopError, Unauthorized
from domain.trust import UNTRUSTED

__all__ = [
    "DataDir",
    "JobArgument",
    "Json",
    "Token",
    "Url",
    "config_of",
    "connect",
    "device_of",
    "emit",
    "exit_code_of",
    "job_id_of",
    "labels_of",
    "make_console",
    "show_error",
    "write_json",
]

OK = 0
FAILED = 1
USAGE = 2
NO_SERVER = 3
STILL_RUNNING = 4
INTERRUPTED = 130
EXIT_CODES = {
    OK: "Done. A watched job ended SUCCEEDED or STOPPED.",
    FAILED: "What was asked failed: a refused job, an unknown id, a state that forbids it, a job FAILED or CANCELLED.",
    USAGE: "Wrong usage: an unknown command or option, a missing argument.",
    NO_SERVER: "No server is known or answers, its certificate is not trusted, or it does not take the token.",
    STILL_RUNNING: "The time of `--timeout-s` was up; the job goes on.",
    INTERRUPTED: "Ctrl-C. A watched job goes on.",
}

COMPLETED_JOBS = 30
LATEST = "latest"

NO_SERVER_CODES = frozenset({UNREACHABLE, UNTRUSTED, "no_server"})

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output instead of tables.")]
Url = Annotated[str | None, typer.Option("--url", help="The server; default: PRUNELOOP_URL, else the local one.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Default: PRUNELOOP_TOKEN, else the local data folder's admin token.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data folder of a local server; default: .pruneloop here.")
]
DEFAULT_DIR = DEFAULT_DATA_DIR


def config_of() -> ClientConfig:
    """Return the defaults of the configuration file."""
    return load_config()


def jobs_for_completion(incomplete: str) -> list[tuple[str, str]]:
    """Return ids of recent jobs, with name and state, for the shell; nothing where no server answers at once."""
    try:
        with connect() as client:
            found = client.jobs(limit=COMPLETED_JOBS) if client.is_alive() else []
    except PruneloopError:
        return []  # a shell that completes must not print errors
    return [(job.id, f"{job.state.value} {job.name}".strip()) for job in found if job.id.startswith(incomplete)]


JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="The job's id, or `latest`.", autocompletion=jobs_for_completion, show_default=False
    ),
]


def job_id_of(client: PruneloopClient, text: str) -> str:
    """Return the id that is meant: the newest job's for ``latest``. Raises NotFound where there is none."""
    if text != LATEST:
        return text
    newest = client.jobs(limit=1)
    if not newest:
        raise NotFound("There is no job yet; submit one with: pruneloop submit FILE.yaml", code="no_jobs")
    return newest[0].id


def device_of(client: PruneloopClient, name: str) -> Device:
    """Return the device of an id or a name. Raises NotFound; Conflict where several have the name."""
    found = [device for device in client.devices() if name in {device.id, device.name}]
    if not found:
        raise NotFound(f"There is no device {name}; `pruneloop devices` lists them.", code="unknown_device")
    if len(found) > 1:
        raise Conflict(
            f"{len(found)} devices are called {name}: give the id of one, {', '.join(device.id for device in found)}.",
            code="ambiguous_device",
        )
    return found[0]


def emit(value: BaseModel | Sequence[BaseModel], table: RenderableType, *, as_json: bool) -> None:
    """Write a result to standard output, for a program or for a person."""
    if not as_json:
        make_console().print(table)
        return
    items = (
        value.model_dump(mode="json") if isinstance(value, BaseModel) else [i.model_dump(mode="json") for i in value]
    )
    write_json(items)


def write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Write a sentence to standard output as it is."""
    make_console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_error(error: PruneloopError) -> None:
    """Write an error and its next step to standard error."""
    sys.stderr.write(f"error: {error.message}\n")
    if isinstance(error, Invalid):
        for field in error.fields:
            sys.stderr.write(f"  {field.field}: {field.message}\n")


def labels_of(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that ``--label`` was given. Raises BadParameter where one is not key=value."""
    labels = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{text} is not key=value", param_hint="--label")
        labels[key] = value
    return labels


def exit_code_of(error: PruneloopError) -> int:
    """Return the exit code of an error: 3 for a server that is away or does not know us, else 1."""
    if isinstance(error, Unauthorized | Forbidden) or error.code in NO_SERVER_CODES:
        return NO_SERVER
    return FAILED
