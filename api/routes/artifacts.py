"""Artifacts: upload a file once, fetch it by the sha256 of its bytes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import FileResponse

from api.auth import AnyPrincipal, SubmitPrincipal, require_submit
from api.checks.kinds import check_file
from api.deps import Deps
from api.receive import Received
from domain.artifact import DIGEST_PATTERN, ArtifactKind, ArtifactRef
from domain.errors import Forbidden

PRIVATE_KINDS = frozenset({ArtifactKind.WEIGHTS, ArtifactKind.DATA, ArtifactKind.MANIFEST})

UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "kind": {"type": "string"}},
                }
            },
        },
    }
}


router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.post(
    "",
    operation_id="uploadArtifact",
    summary="Upload a file: raw body and `kind`, or multipart",
    status_code=201,
    dependencies=[Depends(require_submit)],
    openapi_extra=UPLOAD_BODY,
)
def upload_artifact(deps: Deps, principal: SubmitPrincipal, received: Received, response: Response) -> ArtifactRef:
    check_file(received.path, received.kind)
    ref = deps.artifacts.put_file(received.path, received.kind)
    deps.store.record_artifact(ref, by=principal)
    response.headers["Location"] = f"/v1/artifacts/{ref.digest}"
    return ref


@router.get(
    "/{digest}",
    operation_id="getArtifact",
    summary="The file's bytes",
    description="A device may fetch what the measurement it holds names, never weights, data or manifests.",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}}, 304: {"description": "You have it already."}},
)
def get_artifact(
    deps: Deps, request: Request, principal: AnyPrincipal, digest: Annotated[str, Path(pattern=DIGEST_PATTERN)]
) -> Response:
    kind = deps.store.artifact(digest).kind
    path = deps.artifacts.local_path(digest)
    if principal.device_id is not None and (
        kind in PRIVATE_KINDS or not deps.store.may_fetch(principal.device_id, digest)
    ):
        raise Forbidden("A device may fetch what it measures only, while it does.", code="not_for_devices")
    # The name is the hash of the bytes: what a caller has under it can never be out of date.
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if f'"{digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="application/octet-stream", headers=headers)
