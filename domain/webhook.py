"""Telling somebody that a job is over: what is told, how it is signed, and how long it is tried."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue

SECRET_PREFIX = "whsec_"
LEAST_SECRET_BYTES = 24
# Seconds until the next try, by the number of tries so far: twelve in two days, then it is given up.
PAUSES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200, 86400)


@dataclass(frozen=True)
class Delivery:
    """One message to one hook, taken for this try."""

    id: str
    hook: str
    body: dict[str, JsonValue]
    attempts: int


class DeliveryView(BaseModel):
    """A message as an operator sees it."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="Also the header `webhook-id`, the same at every try.")
    hook: str
    job_id: str
    attempts: int
    created_at: datetime
    next_at: datetime | None = Field(description="When it is tried next; null: delivered or given up.")
    delivered_at: datetime | None
    last_error: str | None


def pause_after(attempts: int) -> int | None:
    """Return the seconds until the next try, None where it is given up."""
    return PAUSES_S[attempts - 1] if attempts <= len(PAUSES_S) else None


def secret_of(text: str) -> bytes:
    """Return the bytes of a secret. Raises ValueError where it is not ``whsec_`` and base64 of 24 bytes or more."""
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"must begin with {SECRET_PREFIX}; make one by: echo whsec_$(openssl rand -base64 32)")
    secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"must hold {LEAST_SECRET_BYTES} bytes or more in base64")
    return secret


def signature(secret: bytes, message_id: str, sent_at_s: int, body: bytes) -> str:
    """Return the header ``webhook-signature``.

    Source: Standard Webhooks, github.com/standard-webhooks/standard-webhooks, spec version 1.
    """
    signed = f"{message_id}.{sent_at_s}.".encode() + body
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")
