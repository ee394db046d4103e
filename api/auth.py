"""Who may do what: bearer tokens, sessions of the pages, and scopes. Open are the health routes, the schema, the front page,
the agent's wheel and opening a session only.

``admin``   everything a person does; ``submit``: jobs and files; ``read``: looking.
``device``  one device's own rows; the id in the path must be its own.
A join token is no principal: it is spent by ``POST /v1/devices`` in the transaction that inserts the device.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer

from api.deps import ApiDependencies, Deps
from api.guard import SAFE_METHODS
from domain.access import Principal, Scope
from domain.errors import Forbidden, Unauthorized

COOKIE = "pruneloop_session"

# Declare the schemes in the OpenAPI text; the headers are read here, so that every refusal has our shape.
bearer_scheme = HTTPBearer(auto_error=False, scheme_name="bearer", description="`Authorization: Bearer TOKEN`")
cookie_scheme = APIKeyCookie(
    name=COOKIE, auto_error=False, scheme_name="session", description="Set by `POST /v1/session`, for pages."
)


def address_of(request: Request) -> str:
    """Return where a request came from; requests over a unix socket all come from one place."""
    return request.client.host if request.client is not None else "local"


async def bearer_token(request: Request, _declared: Annotated[object, Security(bearer_scheme)]) -> str:
    """Return the bearer token of a request. Raises Unauthorized if there is none."""
    token = _bearer_of(request)
    if token is None:
        raise Unauthorized("Send the header `Authorization: Bearer TOKEN`; the admin token is in D/admin-token.")
    return token


def join_token(request: Request, deps: Deps, token: Annotated[str, Depends(bearer_token)]) -> str:
    """Return the join token of a request. Raises RateLimited where an address joins too often."""
    deps.limits.joining.take(address_of(request))
    return token


def current_principal(
    request: Request,
    deps: Deps,
    _bearer: Annotated[object, Security(bearer_scheme)],
    _cookie: Annotated[object, Security(cookie_scheme)],
) -> Principal:
    """Return whom the request's token, else its session, stands for.

    Raises:
        Unauthorized: There is neither, or nobody knows it.
        Forbidden: ``foreign_origin`` where a session is to change something and no Origin says that our own page asks.
        RateLimited: Too many that nobody knows came from that address.
    """
    token = _bearer_of(request)
    if token is not None:
        return recognise(request, deps, token, deps.store.principal)
    session = request.cookies.get(COOKIE)
    if session:
        # The guard has refused foreign origins; a browser that sends none with a changing verb is not to be trusted.
        if request.method not in SAFE_METHODS and "origin" not in request.headers:
            raise Forbidden("A session changes something only with an Origin header.", code="foreign_origin")
        return recognise(request, deps, session, deps.store.session_principal)
    raise Unauthorized("Send the header `Authorization: Bearer TOKEN`; the admin token is in D/admin-token.")


def recognise(
    request: Request, deps: ApiDependencies, secret: str, look_up: Callable[[str], Principal | None]
) -> Principal:
    """Return whom a secret stands for; count it against its address where that is nobody."""
    limits, address = deps.limits, address_of(request)
    if secret not in limits.known:
        limits.failing.look(address)
    principal = look_up(secret)
    if principal is None:
        limits.known.discard(secret)
        limits.failing.take(address)
        raise Unauthorized(
            "Nobody knows this token, or it has expired or been revoked; get a new one from the operator.",
            metadata={"token_given": True},
        )
    limits.known.add(secret)
    return replace(principal, address=address)


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


def _needs(*scopes: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(principal: CurrentPrincipal) -> Principal:
        if not principal.may(*scopes):
            raise Forbidden(
                f"This token may not do that; use one with the scope {' or '.join(scopes)}.",
                metadata={"needed_scopes": list(scopes)},
            )
        return principal

    return check


require_admin = _needs(Scope.ADMIN)
require_submit = _needs(Scope.SUBMIT)
require_read = _needs(Scope.READ)
require_any = _needs(Scope.READ, Scope.DEVICE)


async def require_device(principal: Annotated[Principal, Depends(_needs(Scope.DEVICE))]) -> str:
    """Let devices through; return the device's id."""
    if principal.device_id is None:
        raise Forbidden("This token is not a device's; join the device with `pruneloop agent join`.")
    return principal.device_id


async def require_own_device(request: Request, device_id: Annotated[str, Depends(require_device)]) -> str:
    """Let a device through to its own rows only."""
    if request.path_params.get("device_id") != device_id:
        raise Forbidden("A device's token reaches that device's own rows only.", code="not_your_device")
    return device_id


async def require_reader_or_own_device(
    request: Request, principal: Annotated[Principal, Depends(require_any)]
) -> Principal:
    """Let people through, and a device to itself."""
    if not principal.may(Scope.READ) and principal.device_id != request.path_params.get("device_id"):
        raise Forbidden("A device's token reaches that device's own rows only.", code="not_your_device")
    return principal


JoinToken = Annotated[str, Depends(join_token)]
AdminPrincipal = Annotated[Principal, Depends(require_admin)]
SubmitPrincipal = Annotated[Principal, Depends(require_submit)]
ReadPrincipal = Annotated[Principal, Depends(require_read)]
AnyPrincipal = Annotated[Principal, Depends(require_any)]
DeviceId = Annotated[str, Depends(require_device)]
OwnDeviceId = Annotated[str, Depends(require_own_device)]


def _bearer_of(request: Request) -> str | None:
    """Return the bearer token, None without the header. Raises Unauthorized for another scheme or an empty token."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("Send the header `Authorization: Bearer TOKEN`; the admin token is in D/admin-token.")
    return token
