"""Commands about devices, as the operator sees them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from client.commands.shared import DataDir, Json, Token, Url, connect, emit, labels_of, write_json
from client.render import devices_table

NO_DEVICES = (
    "No device has joined yet; `pruneloop up` joins this machine, the line of `pruneloop devices add` any other."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(invoke_without_command=True, help="List devices: state, labels, runtimes, queue.")
    group.callback()(devices)
    group.command()(add)
    app.add_typer(group, name="devices")


def devices(
    context: typer.Context, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """List devices: state, labels, runtimes, queue."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, token, data_dir) as client:
        found = client.devices()
    emit(found, devices_table(found) if found else NO_DEVICES, as_json=as_json)


def add(
    label: Annotated[list[str] | None, typer.Option("--label", help="key=value, of every device that joins.")] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, help="Devices that may join with the line.")] = 1,
    expires_in_s: Annotated[int, typer.Option("--expires-in-s", min=1, help="The line is good for so long.")] = 3600,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print the one line that makes a fresh machine with Python 3.11 or later a device."""
    with connect(url, token, data_dir) as client:
        made = client.create_join_token(expires_in_s=expires_in_s, uses=uses, labels=labels_of(label))
    if as_json:
        write_json(made.model_dump(mode="json"))
        return
    if made.note:
        sys.stderr.write(f"note: {made.note}\n")
    # The line and nothing else: it can be piped to a shell on another machine.
    sys.stdout.write(f"{made.command}\n")
