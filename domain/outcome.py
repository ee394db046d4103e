"""Failure as a value: what went wrong, where, and who is to blame decides what happens next."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool


class Blame(StrEnum):
    """Who is to blame decides what is next: a candidate's failure is told to the search, others are retried."""

    CANDIDATE = "candidate"
    DEVICE = "device"
    SYSTEM = "system"


def require_status(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that ``status`` must be there: it tells the outcomes apart."""
    schema["required"] = sorted({*schema.get("required", ()), "status"})


class Failed(BaseModel):
    """A build or measurement that did not give a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=require_status)

    status: Literal["failed"] = "failed"
    stage: str = Field(
        description="Where it happened: fetch, load, check, warm_up, measure, prune, recover, export, ..."
    )
    reason: str = Field(description="One sentence for a person, with the next step where there is one.")
    blame: Blame
    retryable: StrictBool = False
    code: str = Field(default="failed", description="Stable machine-readable code.")
