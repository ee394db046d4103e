"""Join tokens: what an operator hands to a device, once."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends

from api.auth import require_admin
from api.body import body_of, request_body
from api.deps import Deps
from domain.messages import JoinTokenAnswer, JoinTokenRequest

router = APIRouter(prefix="/v1/join_tokens", tags=["devices"], dependencies=[Depends(require_admin)])

Wanted = Annotated[JoinTokenRequest, Depends(body_of(JoinTokenRequest, is_optional=True))]


@router.post(
    "",
    operation_id="createJoinToken",
    summary="Make a token that lets a device join",
    description="Single use and one hour by default. The token is shown this once; its hash is kept.",
    status_code=201,
    openapi_extra=request_body(JoinTokenRequest, is_optional=True),
)
def create_join_token(deps: Deps, wanted: Wanted) -> JoinTokenAnswer:
    token = f"plj_{secrets.token_urlsafe(24)}"
    expires_at = deps.store.create_join_token(
        token, expires_in=timedelta(seconds=wanted.expires_in_s), uses=wanted.uses, labels=wanted.labels
    )
    command = f"pruneloop agent join --server {deps.public_url} --token {token}"
    return JoinTokenAnswer(token=token, expires_at=expires_at, command=command)
