"""Converters that live in environments of their own: what they need would not go with the builder's, or is too much for everybody.

``child`` runs there, on that environment's Python, and imports nothing of ours but the one file it is given;
``pruning.exporters.converter`` is what talks to it. Nothing in this package imports torch in the builder's own process, so the API
can ask whether a format can be made.
"""

from __future__ import annotations

from pruning.converters.settings import FORMATS, ConverterSettings

__all__ = ["FORMATS", "ConverterSettings", "why_missing"]


def why_missing(format: str) -> str | None:
    """Return what to do about a format whose environment is not there, else None; a format that needs none is never missing."""
    if format not in FORMATS:
        return None
    python = ConverterSettings().python_of(format)
    if python.is_file():
        return None
    return (
        f"{format} files are made in an environment of their own, and there is none at {python}. Where builds are made, run:"
        f" pruneloop exporters install {format}"
    )
