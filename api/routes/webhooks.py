"""What was told to the operator's webhooks, and what could not be. Admin only."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from api.auth import require_admin
from api.deps import Deps, Paging
from api.http import NOT_MODIFIED, listing
from api.schemas.lists import Listing
from domain.webhook import DeliveryView

router = APIRouter(prefix="/v1/webhook_deliveries", tags=["access"], dependencies=[Depends(require_admin)])


@router.get(
    "",
    operation_id="listWebhookDeliveries",
    summary="Messages to webhooks, newest first",
    response_model=Listing[DeliveryView],
    responses=NOT_MODIFIED,
)
def list_webhook_deliveries(deps: Deps, request: Request, paging: Paging) -> Response:
    return listing(request, deps.store.deliveries(page_size=paging.size, page_token=paging.token), DeliveryView)
