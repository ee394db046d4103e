"""Sessions: how the dashboard's pages say who looks, without a token where scripts could read it."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.auth import COOKIE, CurrentPrincipal, address_of, recognise
from api.body import body_of, request_body
from api.deps import Deps
from api.schemas.access import SessionOpened, SessionRequest, WhoAmI
from domain.access import SESSION_S, Principal
from domain.errors import Forbidden, Unauthorized

router = APIRouter(prefix="/v1/session", tags=["access"])

Wanted = Annotated[SessionRequest, Depends(body_of(SessionRequest))]


@router.post(
    "",
    operation_id="openSession",
    summary="Change a token for a cookie",
    description=(
        "For pages: the cookie is HttpOnly and SameSite=Strict, and good for eight hours or as long as the token is. "
        "With it, a changing verb needs an Origin header of this server, as browsers send."
    ),
    status_code=201,
    openapi_extra=request_body(SessionRequest),
    responses={201: {"headers": {"Set-Cookie": {"schema": {"type": "string"}}}}},
)
def open_session(deps: Deps, request: Request, wanted: Wanted, response: Response) -> SessionOpened:
    principal = recognise(request, deps, wanted.token, deps.store.principal)
    if principal.device_id is not None:
        raise Forbidden("A device has no pages to look at; use a person's token.")
    session = secrets.token_urlsafe(32)
    lasts = timedelta(seconds=SESSION_S)
    expires_at = deps.store.open_session(wanted.token, session, lasts=lasts, address=address_of(request))
    if expires_at is None:
        raise Unauthorized("This token has just been revoked; get a new one from the operator.")
    response.set_cookie(
        COOKIE,
        session,
        expires=expires_at,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or deps.public_url.startswith("https:"),
    )
    return SessionOpened(**_who(principal).model_dump(), expires_at=expires_at)


@router.get("", operation_id="getSession", summary="Who I am, by token or cookie")
def get_session(principal: CurrentPrincipal) -> WhoAmI:
    return _who(principal)


@router.delete("", operation_id="closeSession", summary="Log out", status_code=204)
def close_session(deps: Deps, request: Request, principal: CurrentPrincipal, response: Response) -> None:
    session = request.cookies.get(COOKIE)
    if session:
        deps.store.close_session(session, by=principal)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


def _who(principal: Principal) -> WhoAmI:
    return WhoAmI(name=principal.name, scopes=sorted(principal.scopes), device_id=principal.device_id)
