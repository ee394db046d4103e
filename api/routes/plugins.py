"""What is built in and what the operator plugged in, with the reason where a plug-in does not import."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.auth import require_admin
from api.deps import Deps
from api.schemas.plugins import PluginListing, listing_of

router = APIRouter(prefix="/v1/plugins", tags=["plugins"], dependencies=[Depends(require_admin)])


@router.get("", operation_id="listPlugins", summary="Models, datasets, exporters and runtimes that a job may name")
def list_plugins(deps: Deps) -> PluginListing:
    return listing_of(deps.service.plugins())
