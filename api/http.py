"""Small habits of HTTP that several routes share: ids in paths, ETags."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, TypeVar

from fastapi import Header, Path, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, BeforeValidator

from api.schemas.lists import Listing
from domain.ports import Page

M = TypeVar("M", bound=BaseModel)


def _text_of_moment(value: object) -> object:
    if isinstance(value, str) and not re.match(r"\d{4}-\d{2}-\d{2}[Tt ]", value):
        raise ValueError("write a moment as 2026-11-01T12:00:00Z")
    return value


ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

JobId = Annotated[str, Path(pattern=ID_PATTERN)]
DevicePathId = Annotated[str, Path(pattern=ID_PATTERN)]
TokenId = Annotated[str, Path(pattern=ID_PATTERN)]
MeasurementId = Annotated[str, Path(pattern=ID_PATTERN)]

Moment = Annotated[AwareDatetime, BeforeValidator(_text_of_moment)]
"""RFC 3339, and nothing else that a date might be read from: not seconds since 1970."""

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "You have it already (`If-None-Match`)."}}

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Same key and body: the first answer again. Same key, other body: 422 `idempotency_mismatch`.",
    ),
]


def with_etag(request: Request, body: BaseModel) -> Response:
    """Answer with the body and its ETag, or 304 where the caller has it already (``If-None-Match``)."""
    return _tagged(request, body.model_dump_json().encode())


def listing(request: Request, page: Page[M], item: type[M]) -> Response:
    """Answer with a page of a list as ``with_etag`` does."""
    return with_etag(request, Listing[item](items=list(page.items), next_page_token=page.next_page_token))  # type: ignore[valid-type]


def _tagged(request: Request, data: bytes) -> Response:
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if etag in known:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="application/json", headers=headers)
