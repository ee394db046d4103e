"""Commands about tokens: who may talk to the server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from client.commands.shared import DataDir, Json, Token, Url, connect, emit, say, write_json
from client.render import age, table_of
from domain.access import Scope

DAY_S = 86400


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(invoke_without_command=True, help="List tokens: name, scopes, expiry, last use.")
    group.callback()(tokens)
    group.command()(create)
    group.command()(revoke)
    app.add_typer(group, name="tokens", rich_help_panel="Server")


def tokens(
    context: typer.Context, as_json: Json = False, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """List tokens: name, scopes, expiry, last use. Devices have their own, see `pruneloop devices`."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, token, data_dir) as client:
        found = client.tokens()
    rows = [
        (
            item.id,
            item.name,
            ", ".join(scope.value for scope in item.scopes),
            "revoked" if item.revoked_at else f"{item.expires_at:%Y-%m-%d}" if item.expires_at else "never",
            age(item.last_used_at) if item.last_used_at else "never",
            item.created_by,
        )
        for item in found
    ]
    columns = ("token", "name", "scopes", "expires", ">used", "made by")
    emit(found, table_of(columns, rows, folding={"name"}), as_json=as_json)


def create(
    name: Annotated[str, typer.Argument(help="What it is for, e.g. ci.")],
    scope: Annotated[list[Scope] | None, typer.Option("--scope", help="admin, submit or read; default: read.")] = None,
    expires_in_days: Annotated[int, typer.Option("--expires-in-days", min=1, max=3650)] = 90,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token and print it: this once, the server keeps a hash."""
    with connect(url, token, data_dir) as client:
        made = client.create_token(name, scope or [Scope.READ], expires_in_s=expires_in_days * DAY_S)
    if as_json:
        write_json(made.model_dump(mode="json"))
        return
    sys.stderr.write(f"note: {made.id}, good until {made.expires_at:%Y-%m-%d}; it is not shown again.\n")
    # The token and nothing else: it can be piped into a file.
    sys.stdout.write(f"{made.token}\n")


def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="As `pruneloop tokens` lists it.")],
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Let a token, and sessions opened with it, stand for nobody from now on."""
    with connect(url, token, data_dir) as client:
        # A name is one token's at a time; those revoked before may have had it too.
        named = [item.id for item in client.tokens() if item.name == which and item.revoked_at is None]
        token_id = named[0] if named else which
        client.revoke_token(token_id)
    if as_json:
        write_json({"id": token_id, "revoked": True})
        return
    say(f"{token_id} is revoked.")
