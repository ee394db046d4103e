"""What is built in and what the operator plugged in, with the reason where a plug-in does not import."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from api.auth import require_read
from api.deps import Deps
from api.schemas.lists import Listing
from api.schemas.plugins import PluginView

router = APIRouter(prefix="/v1/plugins", tags=["plugins"], dependencies=[Depends(require_read)])


@router.get("", operation_id="listPlugins", summary="Names that jobs may use by plug-in, and what does not import")
def list_plugins(deps: Deps) -> Listing[PluginView]:
    return Listing[PluginView](items=list(deps.plugins()))
