"""Commands about devices, as the operator sees them."""

from __future__ import annotations

import typer

from client.commands.shared import DEFAULT_DIR, DataDir, Json, Token, Url, connect, emit
from client.render import devices_table

NO_DEVICES = "No device has joined yet; `pruneloop up` joins this machine, `pruneloop agent join` any other."


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(devices)


def devices(as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = DEFAULT_DIR) -> None:
    """List devices: state, labels, runtimes, queue."""
    with connect(url, token, data_dir) as client:
        found = client.devices()
    emit(found, devices_table(found) if found else NO_DEVICES, as_json=as_json)
