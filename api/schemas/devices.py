"""What a person may say about a device."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DeviceNote(BaseModel):
    """Optional body of pause, resume and drain."""

    model_config = ConfigDict(extra="forbid")

    note: str | None = Field(default=None, max_length=500, description="Why, for whoever looks at the list later.")


class ReleaseRequest(BaseModel):
    """A device hands a measurement back untouched; the attempt does not count."""

    attempt: int = Field(ge=1)
