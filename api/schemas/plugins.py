"""A name that a job may use, and where it comes from."""

from __future__ import annotations

from pydantic import BaseModel, Field


class PluginView(BaseModel):
    """One name of an entry-point group."""

    group: str = Field(
        description="pruneloop.models, pruneloop.datasets, pruneloop.metrics, pruneloop.exporters or pruneloop.runtimes."
    )
    name: str
    source: str = Field(description="`builtin`, or the distribution that brings it.")
    error: str | None = Field(default=None, description="Why it does not import; null: it works.")
