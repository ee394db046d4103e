"""A name that a job may use, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field


class PluginView(BaseModel):
    """One name of an entry-point group."""

    model_config = ConfigDict(from_attributes=True)

    group: str = Field(description="pruneloop.models, pruneloop.datasets, pruneloop.exporters or pruneloop.runtimes.")
    name: str
    source: str = Field(description="`builtin`, or the distribution that brings it.")
    error: str | None = Field(default=None, description="Why it does not import; null: it works.")


class PluginListing(BaseModel):
    items: list[PluginView]


def listing_of(plugins: Iterable[object]) -> PluginListing:
    """Return the wire shape of plug-ins, mappings or objects with these attributes."""
    return PluginListing(items=[PluginView.model_validate(plugin) for plugin in plugins])
