"""Commands about devices, as the operator sees them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from client.commands.shared import DataDir, Json, Token, Url, connect, device_of, emit, labels_of, say, write_json
from client.render import devices_table
from domain.device import Device

DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id or name.", show_default=False)]
Note = Annotated[str | None, typer.Option("--note", help="Why, for whoever looks at the device next.")]
NO_DEVICES = (
    "No device has joined yet; `pruneloop up` joins this machine, the line of `pruneloop devices add` any other."
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(invoke_without_command=True, help="List devices: state, labels, runtimes, queue.")
    group.callback()(devices)
    for command in (add, pause, resume, drain, remove):
        group.command()(command)
    app.add_typer(group, name="devices", rich_help_panel="Devices")


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
    token_only: Annotated[
        bool, typer.Option("--token-only", help="Print the join token alone, for PRUNELOOP_AGENT_JOIN_TOKEN_FILE.")
    ] = False,
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
    if token_only:
        sys.stdout.write(f"{made.token}\n")
        return
    if made.note:
        sys.stderr.write(f"note: {made.note}\n")
    # The line and nothing else: it can be piped to a shell on another machine.
    sys.stdout.write(f"{made.command}\n")


def pause(
    device: DeviceArgument,
    note: Note = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Give a device nothing new; what it measures goes on."""
    with connect(url, token, data_dir) as client:
        _tell(client.pause_device(device_of(client, device).id, note=note), as_json)


def resume(
    device: DeviceArgument,
    note: Note = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Let a device measure again; ends a quarantine too, and begins its health's history anew."""
    with connect(url, token, data_dir) as client:
        _tell(client.resume_device(device_of(client, device).id, note=note), as_json)


def drain(
    device: DeviceArgument,
    note: Note = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Let a device finish what it measures, then leave."""
    with connect(url, token, data_dir) as client:
        _tell(client.drain_device(device_of(client, device).id, note=note), as_json)


def remove(
    device: DeviceArgument, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Take a device's tokens and its access to the broker away; its measurements stay."""
    with connect(url, token, data_dir) as client:
        found = device_of(client, device)
        client.remove_device(found.id)
    if as_json:
        write_json({"id": found.id, "name": found.name, "state": "removed"})
        return
    say(f"{found.name} ({found.id}) is removed. To have it back: pruneloop devices add")


def _tell(changed: Device, as_json: bool) -> None:
    emit(changed, f"{changed.name} ({changed.id}) is {changed.state.value}.", as_json=as_json)
