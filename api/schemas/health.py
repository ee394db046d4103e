"""Bodies of the health routes."""

from __future__ import annotations

from pydantic import BaseModel


class Health(BaseModel):
    status: str = "ok"


class Readiness(BaseModel):
    """What was asked and found well."""

    status: str = "ready"
    checks: dict[str, str]
