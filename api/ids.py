"""Puts the ids that a request's path names, and an id of the request itself, into every log line written for it."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Receive, Scope, Send

from domain.logs import log_context

PLACES = {"jobs": "job_id", "devices": "device_id", "measurements": "measurement_id", "artifacts": "digest"}
IN_PATH = re.compile(rf"^/v1/(?P<place>{'|'.join(PLACES)})/(?P<id>[\w.:-]{{1,100}})")


class RequestIds:
    """ASGI middleware; routes in threads see the context, as anyio takes it along."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = IN_PATH.match(scope["path"])
        ids = {PLACES[found["place"]]: found["id"]} if found is not None else {}
        with log_context(**ids, request_id=secrets.token_hex(6)):
            await self._app(scope, receive, send)
