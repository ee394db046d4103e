"""Is the process alive, is it ready, and what is true of the product in numbers."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.auth import ReadPrincipal
from api.deps import ApiDependencies, Deps
from api.metrics import CONTENT_TYPE, render_metrics
from api.schemas.health import Health, Readiness
from domain.errors import PruneloopError, Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health", summary="The process is alive")
def health() -> Health:
    return Health()


@router.get(
    "/readyz",
    operation_id="readiness",
    summary="Database, its schema and the broker are there",
    description="503 names what is away.",
)
def readiness(deps: Deps) -> Readiness:
    checks = {"database": _database(deps), "broker": _broker(deps)}
    away = {name: state for name, state in checks.items() if state not in {"ok", "not checked"}}
    if away:
        what = "; ".join(f"{name} {state}" for name, state in away.items())
        raise Unavailable(f"Not ready: {what}.", code="not_ready", metadata={"checks": checks})
    return Readiness(checks=checks)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Product truth for Prometheus",
    response_class=PlainTextResponse,
    description="Wants a token with the scope read: give Prometheus one by `authorization.credentials_file`.",
)
def metrics(deps: Deps, _: ReadPrincipal) -> PlainTextResponse:
    return PlainTextResponse(render_metrics(deps.store.numbers()), media_type=CONTENT_TYPE)


def _database(deps: ApiDependencies) -> str:
    try:
        deps.store.now()
        is_current = deps.store.schema_is_current()
    except PruneloopError as error:
        return f"is away ({error.message})"
    return "ok" if is_current else "has another schema than this release; run `pruneloop db upgrade`"


def _broker(deps: ApiDependencies) -> str:
    if deps.broker_is_reachable is None:
        return "not checked"
    return "ok" if deps.broker_is_reachable() else "is away; start Valkey or look at PRUNELOOP_BROKER_URL"
