"""``pruneloop bench``: the paired measurement on this machine, no server; how anyone reproduces a number."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
