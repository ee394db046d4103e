"""Named tokens: made, listed, revoked. Admin only."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.auth import AdminPrincipal, require_admin
from api.body import body_of, request_body
from api.deps import Deps, Paging
from api.http import NOT_MODIFIED, TokenId, listing
from api.schemas.lists import Listing
from domain.access import ApiToken, TokenMade, TokenRequest

router = APIRouter(prefix="/v1/tokens", tags=["access"], dependencies=[Depends(require_admin)])

Wanted = Annotated[TokenRequest, Depends(body_of(TokenRequest))]


@router.post(
    "",
    operation_id="createToken",
    summary="Make a token",
    description="The text is shown this once; its hash is kept. `admin` holds `submit`, `submit` holds `read`.",
    status_code=201,
    openapi_extra=request_body(TokenRequest),
)
def create_token(deps: Deps, principal: AdminPrincipal, wanted: Wanted, response: Response) -> TokenMade:
    token = f"pl_{wanted.scopes[0].value}_{secrets.token_urlsafe(32)}"
    life = timedelta(seconds=wanted.expires_in_s) if wanted.expires_in_s is not None else None
    made = deps.store.create_token(token, name=wanted.name, scopes=wanted.scopes, expires_in=life, by=principal)
    response.headers["Location"] = "/v1/tokens"
    return TokenMade(token=token, **made.model_dump())


@router.get(
    "",
    operation_id="listTokens",
    summary="Tokens, newest first; revoked and expired ones too",
    response_model=Listing[ApiToken],
    responses=NOT_MODIFIED,
)
def list_tokens(deps: Deps, request: Request, paging: Paging) -> Response:
    return listing(request, deps.store.tokens(page_size=paging.size, page_token=paging.token), ApiToken)


@router.delete(
    "/{token_id}",
    operation_id="revokeToken",
    summary="Let a token, and sessions opened with it, stand for nobody from now on",
    status_code=204,
)
def revoke_token(deps: Deps, principal: AdminPrincipal, token_id: TokenId) -> None:
    deps.store.revoke_token(token_id, by=principal)
