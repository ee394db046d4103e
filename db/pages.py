"""Lists by keyset: a page starts after the last row of the one before, so rows that come and go shift nothing.

A page token is base64 of JSON: which list it belongs to, its filters, and the last row's sort key. Opaque to callers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from db.mapping import AnyRow
from domain.errors import FieldProblem, Invalid
from domain.ports import Page

T = TypeVar("T")

MAX_PAGE_SIZE = 1000
MAX_TOKEN_LENGTH = 2000


def coerce_page_size(page_size: int) -> int:
    return max(1, min(page_size, MAX_PAGE_SIZE))


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
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise _bad_token() from error
    return tuple(after)


def moment_in_token(text: str) -> datetime:
    """Return a moment that stands in a token. Raises Invalid ``bad_page_token``."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _bad_token() from error
    if moment.tzinfo is None:
        raise _bad_token()
    return moment


def make_page(
    rows: Sequence[AnyRow],
    page_size: int,
    noun: Callable[[AnyRow], T],
    *,
    list_name: str,
    key: Callable[[AnyRow], Sequence[str | int]],
) -> Page[T]:
    """Return a page of at most ``page_size`` nouns from one row more than that, if there is one more."""
    shown = rows[:page_size]
    has_more = len(rows) > page_size
    return Page(
        items=tuple(noun(row) for row in shown),
        next_page_token=write_page_token(list_name, key(shown[-1])) if has_more else "",
    )


def _bad_token() -> Invalid:
    return Invalid(
        "This page token is not one of this list's; start again without a page_token, with the same filters throughout.",
        code="bad_page_token",
        fields=[FieldProblem("page_token", "take it from `next_page_token` of the page before")],
    )
