"""A page of anything on the wire."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, Field

T = TypeVar("T")


class Listing(BaseModel, Generic[T]):
    """A slice of a list; an empty ``next_page_token`` is the only mark of its end."""

    items: list[T]
    next_page_token: str = Field(
        default="", description="Send as `page_token`, with all else the same; empty: the end."
    )
