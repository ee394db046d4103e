"""Who may do what: bearer tokens and their scopes. Open are the health routes, the schema, the front page and the
agent's wheel only.

``admin``   everything a person does.
``device``  one device's own rows; the id in the path must be its own.
A join token is no principal: it is spent by ``POST /v1/devices`` in the transaction that inserts the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from api.deps import Deps
from domain.errors import Forbidden, Unauthorized
from domain.ports import Principal

ADMIN = "admin"
DEVICE = "device"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Declares the scheme in the OpenAPI text; the header is read here, so that every refusal has our shape.
bearer_scheme = HTTPBearer(auto_error=False, scheme_name="bearer", description="`Authorization: Bearer TOKEN`")


def bearer_token(request: Request, _declared: Annotated[object, Security(bearer_scheme)]) -> str:
    """Return the bearer token of a request. Raises Unauthorized if there is none."""
    _refuse_foreign_origin(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("Send the header `Authorization: Bearer TOKEN`; the admin token is in D/admin-token.")
    return token


def current_principal(deps: Deps, token: Annotated[str, Depends(bearer_token)]) -> Principal:
    """Return whom the request's token stands for. Raises Unauthorized if nobody knows it."""
    principal = deps.store.principal(token)
    if principal is None:
        raise Unauthorized(
            "Nobody knows this token, or it has expired or been revoked; get a new one from the operator.",
            metadata={"token_given": True},
        )
    return principal


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


def _needs(*scopes: str) -> Callable[[Principal], Principal]:
    def check(principal: CurrentPrincipal) -> Principal:
        if not principal.scopes.intersection(scopes):
            raise Forbidden(
                f"This token may not do that; use one with the scope {' or '.join(scopes)}.",
                metadata={"needed_scopes": list(scopes)},
            )
        return principal

    return check


def require_admin(principal: Annotated[Principal, Depends(_needs(ADMIN))]) -> Principal:
    """Let people through."""
    return principal


def require_any(principal: Annotated[Principal, Depends(_needs(ADMIN, DEVICE))]) -> Principal:
    """Let people and devices through."""
    return principal


def require_device(principal: Annotated[Principal, Depends(_needs(DEVICE))]) -> str:
    """Let devices through; return the device's id."""
    if principal.device_id is None:
        raise Forbidden("This token is not a device's; join the device with `pruneloop agent join`.")
    return principal.device_id


def require_own_device(request: Request, device_id: Annotated[str, Depends(require_device)]) -> str:
    """Let a device through to its own rows only."""
    if request.path_params.get("device_id") != device_id:
        raise Forbidden("A device's token reaches that device's own rows only.", code="not_your_device")
    return device_id


def require_admin_or_own_device(request: Request, principal: Annotated[Principal, Depends(require_any)]) -> Principal:
    """Let people through, and a device to itself."""
    if ADMIN not in principal.scopes and principal.device_id != request.path_params.get("device_id"):
        raise Forbidden("A device's token reaches that device's own rows only.", code="not_your_device")
    return principal


JoinToken = Annotated[str, Depends(bearer_token)]
AdminPrincipal = Annotated[Principal, Depends(require_admin)]
AnyPrincipal = Annotated[Principal, Depends(require_any)]
DeviceId = Annotated[str, Depends(require_device)]
OwnDeviceId = Annotated[str, Depends(require_own_device)]


def _refuse_foreign_origin(request: Request) -> None:
    """Refuse a changing verb that a browser sends on behalf of another site.

    Source: CVE-2026-27482, where a browser's cross-site DELETE reached a job API.
    """
    origin = request.headers.get("origin")
    if origin is None or request.method in SAFE_METHODS:
        return
    if urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Forbidden("A page of another site may not change anything here.", code="foreign_origin")
