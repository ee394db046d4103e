"""An application in this process as a transport of httpx: what the client talks to in tests, without a socket."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI


class AppTransport(httpx.BaseTransport):
    """Runs an ASGI application in an event loop of its own; answers are read whole before they are given."""

    def __init__(self, app: FastAPI) -> None:
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()
        # A crash must look as it does on the wire: a 500, not an exception in the caller.
        self._transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._handle, request)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        whole = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        response = await self._transport.handle_async_request(whole)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=content, request=request)

    def close(self) -> None:
        self._portal_context.__exit__(None, None, None)

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self
