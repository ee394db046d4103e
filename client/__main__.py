"""``pruneloop``: the command line. Exit codes: see docs/reference/command-line.md, held by a test."""

from __future__ import annotations

import sys
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from client.commands import agent, bench, devices, ecosystem, exporters, jobs, report, server, tokens
from client.commands.shared import INTERRUPTED, exit_code_of, say, show_error
from domain.errors import PruneloopError

HELP = """Prune models in a loop with the devices they will run on.

PRUNELOOP_URL and PRUNELOOP_TOKEN say which server, or ~/.config/pruneloop/config.toml; else the one running in ./.pruneloop.
Exit codes: 0 done, 1 what was asked failed, 2 wrong usage, 3 no server or no access, 4 the job still runs, 130 Ctrl-C."""


def make_app() -> typer.Typer:
    """Return the command line application."""
    app = typer.Typer(name="pruneloop", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(help=HELP)(options)
    for commands in (jobs, report, ecosystem, devices, server, tokens, agent, bench, exporters):
        commands.register(app)
    return app


def tell_version(wanted: bool) -> None:
    if wanted:
        say(f"pruneloop {distribution_version('pruneloop')}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=tell_version, is_eager=True, help="Say which release this is, and end."),
    ] = False,
) -> None:
    """What stands before the command; its help is the application's."""


def main() -> None:
    """Run the command line."""
    try:
        make_app()(prog_name="pruneloop")
    except PruneloopError as error:
        show_error(error)
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
