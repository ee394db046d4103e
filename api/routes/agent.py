"""The code of a device, for whoever wants to become one. Open: it is the source this server runs, and holds no secret."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import Deps
from domain.errors import NotFound

router = APIRouter(prefix="/v1/agent", tags=["devices"])


@router.get(
    "/{file_name}",
    operation_id="getAgentWheel",
    summary="The agent as a wheel",
    description=(
        "What `command` of a join token installs: this server's own code, as much of it as a device needs. "
        "Wants no token, so that none stands in a URL; only the current wheel's name is known."
    ),
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_agent_wheel(deps: Deps, file_name: str) -> Response:
    wheel = deps.agent_wheel()
    if file_name != wheel.file_name:
        raise NotFound(
            f"This server has no {file_name[:200]}; it was updated since, so ask for a new join command.",
            metadata={"current": wheel.file_name},
        )
    # The name holds the content's digest: whoever has it need not ask again.
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(wheel.content, media_type="application/octet-stream", headers=headers)
