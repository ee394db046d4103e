"""What commands share: options, exit codes, and how results and errors reach the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import RenderableType

from client.connection import DEFAULT_DATA_DIR, connect
from client.errors import UNREACHABLE
from client.render import make_console
from domain.errors import Forbidden, Invalid, PruneloopError, Unauthorized

__all__ = [
    "DataDir",
    "Json",
    "Token",
    "Url",
    "connect",
    "emit",
    "exit_code_of",
    "labels_of",
    "make_console",
    "show_error",
    "write_json",
]

OK = 0
FAILED = 1  # the thing asked for did not succeed
USAGE = 2
NO_SERVER = 3  # no server answers, or it does not know the token
INTERRUPTED = 130

NO_SERVER_CODES = frozenset({UNREACHABLE, "no_server"})

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output instead of tables.")]
Url = Annotated[str | None, typer.Option("--url", help="The server; default: PRUNELOOP_URL, else the local one.")]
Token = Annotated[
    str | None, typer.Option("--token", help="Default: PRUNELOOP_TOKEN, else the local data folder's admin token.")
]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Data folder of a local server.")]
DEFAULT_DIR = DEFAULT_DATA_DIR


def emit(value: BaseModel | Sequence[BaseModel], table: RenderableType, *, as_json: bool) -> None:
    """Write a result to standard output, for a program or for a person."""
    if not as_json:
        make_console().print(table)
        return
    items = (
        value.model_dump(mode="json") if isinstance(value, BaseModel) else [i.model_dump(mode="json") for i in value]
    )
    write_json(items)


def write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Write a sentence to standard output as it is."""
    make_console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_error(error: PruneloopError) -> None:
    """Write an error and its next step to standard error."""
    sys.stderr.write(f"error: {error.message}\n")
    if isinstance(error, Invalid):
        for field in error.fields:
            sys.stderr.write(f"  {field.field}: {field.message}\n")


def labels_of(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that ``--label`` was given. Raises BadParameter where one is not key=value."""
    labels = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{text} is not key=value", param_hint="--label")
        labels[key] = value
    return labels


def exit_code_of(error: PruneloopError) -> int:
    """Return the exit code of an error: 3 for a server that is away or does not know us, else 1."""
    if isinstance(error, Unauthorized | Forbidden) or error.code in NO_SERVER_CODES:
        return NO_SERVER
    return FAILED
