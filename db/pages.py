"""Lists by keyset: a page starts after the last row of the one before, so rows that come and go shift nothing.

What a page token holds: ``domain.cursor``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from db.mapping import AnyRow
from domain.cursor import bad_page_token, read_page_token, write_page_token
from domain.ports import Page

__all__ = ["coerce_page_size", "make_page", "moment_in_token", "read_page_token", "write_page_token"]

T = TypeVar("T")

MAX_PAGE_SIZE = 1000


def coerce_page_size(page_size: int) -> int:
    return max(1, min(page_size, MAX_PAGE_SIZE))


def moment_in_token(text: str) -> datetime:
    """Return a moment that stands in a token. Raises Invalid ``bad_page_token``."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise bad_page_token() from error
    if moment.tzinfo is None:
        raise bad_page_token()
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
