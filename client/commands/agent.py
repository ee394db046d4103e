"""Commands that run on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Where this device keeps its identity and journal.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    agent = typer.Typer(help="This machine as a device.", no_args_is_help=True)
    agent.command()(join)
    agent.command()(run)
    agent.command()(doctor)
    app.add_typer(agent, name="agent")
