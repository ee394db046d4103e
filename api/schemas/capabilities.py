"""What an installation can do, as a form or a script needs it before it submits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class CapabilitiesView(BaseModel):
    """Names that a job may use in the fields of the same kind."""

    model_config = ConfigDict(from_attributes=True)

    levels: tuple[str, ...]
    precisions: tuple[str, ...]
    runtimes: tuple[str, ...]
    exports: tuple[str, ...]
    metrics: tuple[str, ...]
    models: tuple[str, ...]
    datasets: tuple[str, ...]
