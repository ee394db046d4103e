"""Sessions, as pages see them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class SessionRequest(BaseModel):
    """The token to be changed for a cookie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(min_length=1, max_length=500)


class WhoAmI(BaseModel):
    """Who a token or a session stands for."""

    name: str
    scopes: list[str]
    device_id: str | None = None


class SessionOpened(WhoAmI):
    """The cookie is in the header; here is when it ends."""

    expires_at: datetime
