"""The FastAPI application, made from its dependencies; nothing is read from the environment here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from api import errors
from api.body import BODY_MODELS
from api.deps import ApiDependencies
from api.events import EventStreams
from api.guard import Guard
from api.ids import RequestIds
from api.routes import (
    agent,
    artifacts,
    audit,
    dashboard,
    devices,
    health,
    jobs,
    join_tokens,
    measurements,
    overview,
    plugins,
    session,
    tokens,
    webhooks,
)
from api.tracing import TELEMETRY

VERSION = "0.1.0"
THREADS = 8
TITLE = "Pruneloop"
DESCRIPTION = (
    "Prunes models in a loop with the devices they will run on. "
    "Every error is RFC 9457 problem+json with a stable `code`."
)


def create_app(deps: ApiDependencies) -> FastAPI:
    """Return the application, ready to serve.

    Args:
        deps: Stores, launcher, service and limits.
    """
    app = build_routes()
    stand_on(app, deps)
    return app


def stand_on(app: FastAPI, deps: ApiDependencies) -> None:
    """Give an application made by ``build_routes`` what it stands on."""
    app.state.deps = deps
    app.state.event_streams = EventStreams(deps.store, longest_s=deps.longest_stream_s)


@asynccontextmanager
async def _few_threads(_app: FastAPI) -> AsyncIterator[None]:
    """Let few routes run at once: they share one interpreter, and the more of them want it, the longer each one takes.

    At 200 reads a second forty threads (the default) had a p99 of 150 ms and more, these 40 ms.
    """
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def build_routes() -> FastAPI:
    """Return the application without what it stands on: enough for its OpenAPI text."""
    app = _App(
        title=TITLE,
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,  # their pages load scripts from a public host; this server may have no way out
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry=TELEMETRY,
        lifespan=_few_threads,
        responses={"default": {"model": errors.Problem, "description": "RFC 9457 problem"}},
    )
    errors.install(app)
    app.add_middleware(RequestIds)
    for router in (
        health.router,
        jobs.router,
        overview.router,
        artifacts.router,
        join_tokens.router,
        devices.router,
        measurements.router,
        plugins.router,
        tokens.router,
        session.router,
        audit.router,
        webhooks.router,
        agent.router,
        dashboard.router,
    ):
        app.include_router(router)
    return app


_ANY = {"$ref": "#/components/schemas/JsonValue"}
PLAIN_JSON: dict[str, Any] = {
    "description": "Any JSON; whole numbers fit in 64 bits.",
    "anyOf": [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "string"},
        {"type": "integer"},
        {"type": "number", "not": {"multipleOf": 1}},
        {"type": "array", "items": _ANY},
        {"type": "object", "additionalProperties": _ANY},
    ],
}


class _App(FastAPI):
    """FastAPI behind a guard, whose OpenAPI text also holds the bodies that ``api.body`` reads."""

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            models = sorted(BODY_MODELS, key=lambda model: model.__name__)
            _, bodies = models_json_schema(
                [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, body in bodies.get("$defs", {}).items():
                components.setdefault(name, body)
            for model in models:
                if model.model_config.get("extra") == "ignore":
                    # What is not known is passed over, and still read: it must be JSON that the rest of the body could be.
                    components[model.__name__]["additionalProperties"] = _ANY
            components["JsonValue"] = deepcopy(PLAIN_JSON)
            _bound_integers(components)
            for path in schema["paths"].values():
                for operation in path.values():
                    _use_problem_type(operation)
            self.openapi_schema = schema
        return self.openapi_schema


def _bound_integers(schema: Any) -> None:
    """Say of every whole number that has no bounds of its own that it fits in 64 bits: ``api.body`` refuses others."""
    if isinstance(schema, list):
        for item in schema:
            _bound_integers(item)
    elif isinstance(schema, dict):
        if schema.get("type") == "integer":
            if not {"maximum", "exclusiveMaximum"} & schema.keys():
                schema["maximum"] = 2**63 - 1
            if not {"minimum", "exclusiveMinimum"} & schema.keys():
                schema["minimum"] = 1 - 2**63
        for item in schema.values():
            _bound_integers(item)


def _use_problem_type(operation: dict[str, Any]) -> None:
    """Say that problems come as problem+json, and drop FastAPI's own 422, which this app never sends."""
    responses = operation.get("responses", {})
    responses.pop("422", None)
    if "default" in responses:
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
        responses["default"]["content"] = {"application/problem+json": problem}
