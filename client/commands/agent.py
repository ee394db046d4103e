"""Commands that run on a device; the agent itself is ``python -m workers.agent``."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from client.commands.shared import USAGE

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Where this device keeps its identity and journal.", envvar="PRUNELOOP_AGENT_STATE_DIR"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    agent = typer.Typer(help="This machine as a device.", no_args_is_help=True)
    agent.command()(join)
    agent.command()(run)
    agent.command()(doctor)
    app.add_typer(agent, name="agent")


def join(
    server: Annotated[str, typer.Option("--server", help="URL of the server.")],
    token: Annotated[str, typer.Option("--token", help="Join token of `POST /v1/join_tokens`.")],
    name: Annotated[str | None, typer.Option("--name", help="Default: this machine's name.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="key=value; may be given again.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Join this machine as a device, once."""
    from workers.agent import __main__ as agent

    labels = dict(_label(text) for text in label or [])
    agent.join(server, token, name or socket.gethostname(), labels, state_dir)


def run(state_dir: StateDir = None) -> None:
    """Measure whatever waits for this device, until Ctrl-C."""
    from workers.agent import __main__ as agent

    raise typer.Exit(agent.run(state_dir))


def doctor() -> None:
    """Say what this machine can measure, what is missing, and what to install."""
    from workers.agent import __main__ as agent

    raise typer.Exit(agent.doctor())


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        typer.echo(f"error: --label {text} is not key=value", err=True)
        raise typer.Exit(USAGE)
    return key, value
