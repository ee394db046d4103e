"""Requests at a rate that does not wait for the answers: an open loop, and latencies counted from when each was due.

Source: Gil Tene, "How NOT to Measure Latency" (coordinated omission). The client is ours because a general one takes a core at the
rates asked for, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Request = tuple[str, bytes]
"""A name to count it under, and the bytes to send."""


@dataclass
class Tally:
    """Latencies in milliseconds by name, and what was not answered well."""

    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    size_bytes: int = 0

    def all_ms(self) -> list[float]:
        return [latency for latencies in self.latencies_ms.values() for latency in latencies]


def percentile(values: list[float], share: float) -> float:
    """Return the value that a share of the values lie at or below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def median(values: list[float]) -> float:
    return statistics.median(values)


def http_request(method: str, path: str, token: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def drive(
    port: int, rate_per_s: float, seconds: float, next_request: Callable[[], Request], *, lines: int = 48
) -> Tally:
    """Send requests at a rate for some seconds over some kept connections; return what came of them."""
    tally = Tally()
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(lines):
        free.put_nowait(await Connection.open(port))
    begin = time.perf_counter()
    tasks = []
    for number in range(int(rate_per_s * seconds)):
        due = begin + number / rate_per_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(free, due, next_request(), tally)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait().close()
    return tally


async def ask(port: int, requests: list[bytes]) -> list[float]:
    """Send requests one after another; return their latencies in milliseconds."""
    connection = await Connection.open(port)
    found = []
    for request in requests:
        began = time.perf_counter()
        status, _ = await connection.ask(request)
        assert status == 200, status
        found.append((time.perf_counter() - began) * 1000)
    connection.close()
    return found


async def _one(free: asyncio.Queue[Connection], due: float, request: Request, tally: Tally) -> None:
    name, data = request
    connection = await free.get()
    try:
        status, size_bytes = await connection.ask(data)
        tally.latencies_ms.setdefault(name, []).append((time.perf_counter() - due) * 1000)
        tally.size_bytes += size_bytes
        if status not in {200, 201, 304}:
            tally.errors.append(f"{name}: {status}")
    finally:
        free.put_nowait(connection)


@dataclass
class Connection:
    """One kept connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def ask(self, request: bytes) -> tuple[int, int]:
        """Return status and size of the body, which must come with its length."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        await self.reader.readexactly(length)
        return int(head[9:12]), length

    def close(self) -> None:
        self.writer.close()
