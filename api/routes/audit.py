"""The audit log. Admin only, and nothing here changes it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import StringConstraints

from api.auth import require_admin
from api.deps import Deps, Paging
from api.http import NOT_MODIFIED, listing
from api.schemas.lists import Listing
from domain.access import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["access"], dependencies=[Depends(require_admin)])

Name = Annotated[str | None, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")]


@router.get(
    "",
    operation_id="listAudit",
    summary="Who changed what, the latest first",
    description="An entry is written in the transaction of its change. Claims and heartbeats of agents are not in it.",
    response_model=Listing[AuditEntry],
    responses=NOT_MODIFIED,
)
def list_audit(
    deps: Deps,
    request: Request,
    paging: Paging,
    actor: Annotated[Name, Query(description="Name of a token or a device.")] = None,
    subject: Annotated[Name, Query(description="Id of what was changed.")] = None,
) -> Response:
    page = deps.store.audit(actor=actor, subject=subject, page_size=paging.size, page_token=paging.token)
    return listing(request, page, AuditEntry)
