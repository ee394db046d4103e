"""The outermost layer: which names this server answers to, which pages may change anything, and what browsers are told.

Source: OWASP HTTP Headers Cheat Sheet; CVE-2026-27482, where a browser's cross-site DELETE reached a job API.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.deps import ApiDependencies
from api.errors import on_domain_error
from domain.errors import Forbidden, Invalid, PruneloopError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Scripts, styles, pictures and connections of this server only; nobody may put its pages into a frame.
HEADERS: dict[str, str] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it a browser sends `Origin: null` with this server's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
OVER_TLS = {"Strict-Transport-Security": "max-age=31536000"}


class Guard:
    """Wraps the whole application, its error pages too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._own_names = frozenset({socket.gethostname().lower(), socket.getfqdn().lower(), _mdns_name()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        extra = HEADERS | OVER_TLS if scope["scheme"] == "https" else HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in extra.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        try:
            self._check(request)
        except PruneloopError as error:
            await on_domain_error(request, error)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, request: Request) -> None:
        deps: ApiDependencies | None = getattr(request.app.state, "deps", None)
        public = urlsplit(deps.public_url) if deps is not None else urlsplit("")
        host = request.headers.get("host", "")
        name = name_of_host(host)
        known = {*self._own_names, (public.hostname or "").lower(), *(deps.allowed_hosts if deps is not None else ())}
        if not is_harmless(name) and name not in known:
            raise Invalid(
                "This server is not called by that name; the operator can add it to PRUNELOOP_ALLOWED_HOSTS.",
                code="unknown_host",
            )
        origin = request.headers.get("origin")
        if origin is None or request.method in SAFE_METHODS:
            return
        if netloc_of_origin(origin) not in {host.lower(), public.netloc.lower()} - {""}:
            raise Forbidden("A page of another site may not change anything here.", code="foreign_origin")


def is_harmless(name: str) -> bool:
    """Whether a name cannot be a foreign site's that was made to point here: an address, or one word without a dot.

    A browser names the site it believes to be on; a rebound name has a dot, as every public name has.
    """
    if name and "." not in name:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def netloc_of_origin(origin: str) -> str | None:
    """Return host and port of an Origin, None for ``null`` and what is no URL."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def name_of_host(host: str) -> str:
    """Return a Host header without its port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _mdns_name() -> str:
    return f"{socket.gethostname().partition('.')[0]}.local".lower()
