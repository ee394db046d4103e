"""Commands that run on a device; the agent itself is ``python -m workers.agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from client.commands.shared import FAILED, OK, Json, labels_of, make_console, say, write_json

STYLE_OF_LEVEL = {"ok": "green", "missing": "dim", "warning": "yellow", "error": "red"}

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Where this device keeps its identity; default: PRUNELOOP_AGENT_STATE_DIR."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    agent = typer.Typer(help="This machine as a device.", no_args_is_help=True)
    agent.command()(join)
    agent.command()(run)
    agent.command()(doctor)
    app.add_typer(agent, name="agent", rich_help_panel="Devices")


def join(
    server: Annotated[str, typer.Option("--server", help="URL of the server.")],
    token: Annotated[str, typer.Option("--token", help="Join token of `pruneloop devices add`.")],
    name: Annotated[str, typer.Option("--name", help="Default: this machine's name.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="key=value; may be given again.")] = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Join this machine as a device, once."""
    from workers.agent.__main__ import join as join_server

    identity = join_server(server, token, name, labels_of(label), state_dir)
    if as_json:
        write_json({"device_id": identity.device_id, "name": identity.name, "server_url": identity.server_url})
        return
    say(f"Joined {identity.server_url} as {identity.name} ({identity.device_id}). Measure with: pruneloop agent run")


def run(state_dir: StateDir = None) -> None:
    """Measure whatever waits for this device, until Ctrl-C."""
    from workers.agent.__main__ import run as run_agent

    raise typer.Exit(run_agent(state_dir))


def doctor(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Say what this machine can measure, what is missing, and what to install."""
    from workers.agent.__main__ import doctor as examine

    diagnosis = examine(state_dir)
    if as_json:
        write_json({**diagnosis.model_dump(mode="json"), "is_fit": diagnosis.is_fit})
    else:
        console = make_console()
        for finding in diagnosis.findings:
            console.print(
                Text(f"{finding.level:8}", style=STYLE_OF_LEVEL.get(finding.level, "")), finding.name, end=": "
            )
            console.print(finding.detail, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(OK if diagnosis.is_fit else FAILED)
