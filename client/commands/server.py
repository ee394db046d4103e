"""Commands that start the server, whole or by its parts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from client.commands.shared import DEFAULT_DIR, Json, write_json

Folder = Annotated[
    Path, typer.Option("--data-dir", help="Where everything is kept: database, artifacts, logs, tokens.")
]


class Role(StrEnum):
    SEARCH = "search"
    BUILD = "build"
    REAPER = "reaper"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (demo, up, serve, worker, backup, restore):
        app.command(rich_help_panel="Server")(command)
    db = typer.Typer(help="The database.", no_args_is_help=True)
    db.command("upgrade")(upgrade)
    app.add_typer(db, name="db", rich_help_panel="Server")


def demo(
    data_dir: Folder = DEFAULT_DIR,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Candidates to try; fewer is quicker.")] = None,
) -> None:
    """Start everything here, prune a real model against its latency on this machine, and show the front."""
    from client.demo import run_demo

    raise typer.Exit(run_demo(data_dir, trials))


def up(
    data_dir: Folder = DEFAULT_DIR,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", envvar="PRUNELOOP_PORT", min=0, max=65535, help="Port; 0: any free one.")
    ] = 8420,
    agent: Annotated[bool, typer.Option("--agent/--no-agent", help="Join this machine as a device.")] = True,
) -> None:
    """Run everything on this machine in the foreground; Ctrl-C drains, and a later start carries on."""
    from workers.embedded import up as run

    raise typer.Exit(run(data_dir, host, port, agent))


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Default: PRUNELOOP_HOST.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Default: PRUNELOOP_PORT.")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM file of the server's certificate and its chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file of the certificate's key.")] = None,
) -> None:
    """Run the API alone; PRUNELOOP_DATABASE_URL and the like say what it stands on."""
    from api.main import serve as run

    raise typer.Exit(run(host, port, tls_cert, tls_key))


def worker(role: Annotated[Role, typer.Argument(help="Which part to run.")]) -> None:
    """Run one worker: search, build or reaper."""
    from workers.main import run_worker

    raise typer.Exit(run_worker(role.value))


def upgrade() -> None:
    """Bring the database's schema to this release."""
    from workers.main import upgrade_database

    raise typer.Exit(upgrade_database())


Place = Annotated[Path, typer.Argument(help="The backup's folder.")]


def backup(place: Place, data_dir: Folder = DEFAULT_DIR, as_json: Json = False) -> None:
    """Save a data folder while it works: tables and files. Again into the same place: only new files are copied."""
    from workers.servers.backup import save
    from workers.servers.folders import prepare_folders

    count = save(prepare_folders(data_dir), place)
    if as_json:
        write_json({"place": str(place), "data_dir": str(data_dir), "new_files": count})
        return
    typer.echo(f"saved {data_dir} in {place}: the database, and {count} files that were not there yet")


def restore(place: Place, data_dir: Folder = DEFAULT_DIR, as_json: Json = False) -> None:
    """Bring a backup back into a new data folder; `pruneloop up` on it then carries on."""
    from workers.servers.backup import restore as bring_back
    from workers.servers.folders import prepare_folders

    count = bring_back(place, prepare_folders(data_dir))
    if as_json:
        write_json({"place": str(place), "data_dir": str(data_dir), "files": count})
        return
    typer.echo(f"restored {place} in {data_dir}: the database, and {count} files; start it with `pruneloop up`")
