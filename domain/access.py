"""Who may do what, and what was done: scopes, tokens, and the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

MAX_TOKEN_LIFE_S = 10 * 365 * 86400
DEFAULT_TOKEN_LIFE_S = 90 * 86400
SESSION_S = 8 * 3600


class Scope(StrEnum):
    """What a token opens. Each of a person's scopes holds those below it; a device's reaches that device's rows only."""

    ADMIN = "admin"
    SUBMIT = "submit"
    READ = "read"
    DEVICE = "device"


PersonsScope = Literal[Scope.ADMIN, Scope.SUBMIT, Scope.READ]

WITHIN: dict[str, frozenset[str]] = {
    Scope.ADMIN: frozenset({Scope.ADMIN, Scope.SUBMIT, Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.SUBMIT, Scope.READ}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.DEVICE: frozenset({Scope.DEVICE}),
}


@dataclass(frozen=True)
class Principal:
    """Who a bearer token or a session stands for.

    ``device_id`` is set for a device's token only, ``token_id`` for a named one; ``address`` is where the request came from.
    """

    name: str
    scopes: frozenset[str]
    device_id: str | None = None
    token_id: str | None = None
    address: str = ""

    def may(self, *wanted: str) -> bool:
        """Whether one of the scopes is held, or lies within one that is."""
        held = frozenset[str]().union(*(WITHIN.get(scope, frozenset()) for scope in self.scopes))
        return not held.isdisjoint(wanted)


SYSTEM = Principal("system", frozenset())
"""Whoever holds the database and the machine: the server's own start, and tests."""


class ApiToken(BaseModel):
    """A named token as the tables know it; its text is known to its holder only."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    created_by: str = ""
    expires_at: datetime | None = Field(default=None, description="Null: never.")
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(default=None, description="To the minute.")


class TokenRequest(BaseModel):
    """A token to be made. A device's is made by joining, never here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"name": "ci", "scopes": ["submit"]}]}
    )

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]*$")
    scopes: tuple[PersonsScope, ...] = Field(
        min_length=1, max_length=3, description="A device's token is made by joining."
    )
    expires_in_s: int | None = Field(
        default=DEFAULT_TOKEN_LIFE_S, ge=1, le=MAX_TOKEN_LIFE_S, description="Null: never. Default: 90 days."
    )

    @field_validator("scopes")
    @classmethod
    def _once_each(cls, scopes: tuple[PersonsScope, ...]) -> tuple[PersonsScope, ...]:
        return tuple(sorted(set(scopes)))


class TokenMade(ApiToken):
    """The answer to making one, the only time its text is shown."""

    token: str


class AuditEntry(BaseModel):
    """One change, written in its transaction."""

    model_config = ConfigDict(frozen=True)

    id: int
    at: datetime
    actor: str = Field(description="Name of the token or the device, `system` for the server itself.")
    actor_id: str | None = Field(description="Id of the token or the device.")
    address: str = Field(description="Where the request came from.")
    action: str = Field(description="`noun.verb`.")
    subject: str = Field(description="Id of what was changed.")
    detail: dict[str, JsonValue]
