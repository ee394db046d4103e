"""Page tokens: base64 of JSON, which says the list it belongs to, its filters, and where it stands. Opaque to callers."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from domain.errors import FieldProblem, Invalid

MAX_TOKEN_LENGTH = 2000


def write_page_token(list_name: str, after: Sequence[str | int]) -> str:
    """Return the token of the page after a sort key. ``list_name`` also names the filters: a token fits its own list only."""
    body = json.dumps([list_name, *after], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode("ascii").rstrip("=")


def read_page_token(list_name: str, token: str, *kinds: type) -> tuple[Any, ...] | None:
    """Return the sort key in a token, its parts of the given kinds; None for the first page (empty token).

    Raises:
        Invalid: ``bad_page_token``.
    """
    if not token:
        return None
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError("too long")
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        name, *after = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if name != list_name or [type(part) for part in after] != list(kinds):
            raise ValueError("of another list")
        if any(isinstance(part, int) and not 0 <= part < 2**63 for part in after):
            raise ValueError("out of range")
        if any(isinstance(part, str) and not _is_storable(part) for part in after):
            raise ValueError("no text")
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise bad_page_token() from error
    return tuple(after)


def bad_page_token() -> Invalid:
    """Return the error for a token that is not of its list."""
    return Invalid(
        "This page token is not one of this list's; start again without a page_token, with the same filters throughout.",
        code="bad_page_token",
        fields=[FieldProblem("page_token", "take it from `next_page_token` of the page before")],
    )


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL could compare with it: no NUL, no half surrogate."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
