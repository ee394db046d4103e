"""What the API stands on: ports and services, handed in once by the composition root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Query, Request

from api.agent_wheel import AgentWheel, agent_wheel
from api.limits import Limits
from api.plugin_probe import InstalledPlugins
from api.schemas.plugins import PluginView
from domain.cursor import read_page_token, write_page_token
from domain.ports import ArtifactStore, JobStore, Launcher, Page
from search.service import JobService

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
LONGEST_STREAM_S = 1800.0  # a revoked token does not stream for ever


@dataclass(frozen=True)
class ApiDependencies:
    """Everything a route may need.

    Args:
        store: The tables.
        artifacts: Content-addressed files.
        launcher: Wakes search workers and devices; admits devices to the broker.
        service: Use cases of a job.
        max_upload_bytes: The largest file an upload may be.
        public_url: URL that devices and browsers reach this server by, without a slash at its end.
        plugins: What plug-ins are installed and which do not import.
        agent_wheel: What a fresh machine installs to become a device.
        allowed_hosts: Names this server may be called by, besides those it knows by itself.
        limits: Counts failing tokens and joins by address.
        longest_stream_s: After that a stream of events ends, and its reader comes back where it was.
        broker_is_reachable: Asked by ``/readyz`` and before a device is admitted; None: not checked.
    """

    store: JobStore
    artifacts: ArtifactStore
    launcher: Launcher
    service: JobService
    max_upload_bytes: int
    public_url: str
    broker_is_reachable: Callable[[], bool] | None = None
    plugins: Callable[[], Sequence[PluginView]] = field(default_factory=InstalledPlugins)
    agent_wheel: Callable[[], AgentWheel] = agent_wheel
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    longest_stream_s: float = LONGEST_STREAM_S


@dataclass(frozen=True)
class PageRequest:
    """Which slice of a list is asked for; the size is coerced down, never refused for being large."""

    size: int
    token: str


def slice_of(items: Sequence[T], page: PageRequest, list_name: str) -> Page[T]:
    """Return one page of a list that is made whole every time; its token holds how many were before."""
    start = (read_page_token(list_name, page.token, int) or (0,))[0]
    end = start + page.size
    return Page(tuple(items[start:end]), write_page_token(list_name, [end]) if end < len(items) else "")


# Coroutines, here and in `auth`: what waits for nothing needs no thread, and handing over to one costs more than its work.
async def _deps(request: Request) -> ApiDependencies:
    return cast(ApiDependencies, request.app.state.deps)


async def _page(
    page_size: Annotated[
        int, Query(ge=0, description=f"Items wanted; 0: the default; at most {MAX_PAGE_SIZE} are given.")
    ] = 0,
    page_token: Annotated[
        str, Query(max_length=500, pattern=r"^[\x21-\x7e]*$", description="`next_page_token` of the page before.")
    ] = "",
) -> PageRequest:
    return PageRequest(size=min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), token=page_token)


Deps = Annotated[ApiDependencies, Depends(_deps)]
Paging = Annotated[PageRequest, Depends(_page)]
