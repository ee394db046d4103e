"""Commands where builds are made: which formats can be written here, and the environments that some of them need."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from client.commands.shared import Json, make_console, say, write_json
from domain.errors import FieldProblem, Invalid, Unavailable


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    exporters = typer.Typer(help="The formats that files are exported in here.", no_args_is_help=True)
    exporters.command("list")(list_exporters)
    exporters.command()(install)
    app.add_typer(exporters, name="exporters")


def list_exporters(as_json: Json = False) -> None:
    """Say which formats can be made here, and what the others need."""
    try:
        from pruning.exporters import exporter_plugins, make_exporter
    except ImportError as error:
        raise Unavailable(
            "No builder is installed here; run: pip install 'pruneloop[build]'", code="missing_package"
        ) from error
    found = []
    for plugin in exporter_plugins():
        missing = plugin.error
        if missing is None:
            try:
                make_exporter(plugin.name).require()
            except Unavailable as error:
                missing = error.message
        found.append({"format": plugin.name, "source": plugin.source, "missing": missing})
    if as_json:
        write_json(found)
        return
    console = make_console()
    for one in found:
        level, style = ("ok", "green") if one["missing"] is None else ("missing", "dim")
        console.print(Text(f"{level:8}", style=style), one["format"], end="")
        console.print(f": {one['missing']}" if one["missing"] else "", markup=False, highlight=False, soft_wrap=True)


def install(
    format: Annotated[str, typer.Argument(help="litert or executorch.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Make the environment of a converter: pinned versions, two gigabytes, some minutes."""
    from pruning.converters import FORMATS, ConverterSettings
    from pruning.converters.install import install as make

    if format not in FORMATS:
        message = f"{format} needs no environment of its own; those that do: {', '.join(FORMATS)}."
        raise Invalid(message, code="unknown_exporter", fields=[FieldProblem("format", message)])
    made = make(format, ConverterSettings())
    if as_json:
        write_json({"format": made.format, "python": str(made.python)})
        return
    say(f"{made.format} files can be made here now, by {made.python}.")
