"""An application in this process as a transport of httpx: the client talks to it as to a server, without a socket.

Answers stream: an event of a job reaches its reader when the application sends it, not when the answer ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import httpx
from anyio.from_thread import start_blocking_portal

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
END = None  # in a queue of messages: the application has returned


class AppTransport(httpx.BaseTransport):
    """Runs an ASGI application in an event loop of its own, which ``close`` ends."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        wait_s = request.extensions.get("timeout", {}).get("read")
        sent: queue.Queue[Message | None] = queue.Queue()
        future = self._portal.start_task_soon(self._run, _scope_of(request), request.read(), sent)
        try:
            start = sent.get(timeout=wait_s)
        except queue.Empty:
            future.cancel()
            raise httpx.ReadTimeout("the application did not answer in time", request=request) from None
        if start is None:
            # A crash must look as it does on the wire: a 500, not an exception in the caller.
            return httpx.Response(500, request=request)
        return httpx.Response(
            start["status"], headers=start["headers"], stream=_Body(sent, future, wait_s), request=request
        )

    async def _run(self, scope: Message, body: bytes, sent: queue.Queue[Message | None]) -> None:
        bodies = [body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await asyncio.Event().wait()  # a caller that leaves cancels the task
            raise AssertionError("nobody sets that event")

        async def send(message: Message) -> None:
            sent.put(message)

        try:
            with contextlib.suppress(Exception):  # told by the answer's end, as a server would
                await self._app(scope, receive, send)
        finally:
            sent.put(END)

    def close(self) -> None:
        self._portal_context.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()


class _Body(httpx.SyncByteStream):
    """The body of an answer, a piece at a time; closing it ends the application's work on it."""

    def __init__(self, sent: queue.Queue[Message | None], future: Future[None], wait_s: float | None) -> None:
        self._sent = sent
        self._future = future
        self._wait_s = wait_s

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                message = self._sent.get(timeout=self._wait_s)
            except queue.Empty:
                raise httpx.ReadTimeout("the application sent nothing in time") from None
            if message is END:
                return
            if message["type"] == "http.response.body":
                if piece := message.get("body", b""):
                    yield piece
                if not message.get("more_body", False):
                    return

    def close(self) -> None:
        self._future.cancel()


def _scope_of(request: httpx.Request) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
