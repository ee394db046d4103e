"""Every error as RFC 9457 problem+json. The only module that knows an HTTP status.

Source: RFC 9457; the shape (stable ``code`` beside the status, dynamic values in ``metadata``) follows Google AIP-193.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from domain.errors import (
    Conflict,
    FieldProblem,
    Forbidden,
    Invalid,
    NotFound,
    PruneloopError,
    RateLimited,
    Unauthorized,
    Unavailable,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2
MOST_FIELDS = 100  # failing fields that are named; ten thousand help nobody

STATUS_OF_ERROR: dict[type[PruneloopError], HTTPStatus] = {
    Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Codes whose status differs from that of their class.
STATUS_OF_CODE: dict[str, HTTPStatus] = {
    "malformed_json": HTTPStatus.BAD_REQUEST,
    "malformed_yaml": HTTPStatus.BAD_REQUEST,
    "malformed_body": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "unknown_host": HTTPStatus.MISDIRECTED_REQUEST,
}

CODE_OF_STATUS: dict[int, str] = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}

NEXT_STEP_OF_STATUS: dict[int, str] = {
    404: "No such page; GET /openapi.json lists every route.",
    405: "This path does not take that method; the Allow header lists those it does.",
    413: "The request body is too large for this route; files go to POST /v1/artifacts.",
}


class ProblemField(BaseModel):
    """One failing field of the input, by dotted path."""

    field: str
    message: str


class Problem(BaseModel):
    """Body of every answer that is not a success."""

    type: str = Field(description="`urn:pruneloop:problem:` and the code.")
    title: str
    status: int
    detail: str = Field(description="What is wrong and the next step, for a person.")
    instance: str
    code: str = Field(description="Stable; what a program goes by.")
    errors: list[ProblemField] = Field(default_factory=list)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


def install(app: FastAPI) -> None:
    """Answer every failure of the app with problem+json."""
    app.add_exception_handler(PruneloopError, on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_crash)


def field_problems(errors: Sequence[Mapping[str, object]], *, skip: int = 0) -> list[FieldProblem]:
    """Turn pydantic's errors into dotted paths and sentences; the input itself is never echoed."""
    found: list[FieldProblem] = []
    locations = [_parts(error)[skip:] for error in errors]
    for parts, error in zip(locations, errors, strict=True):
        if len(found) == MOST_FIELDS:
            break
        if error.get("type") == "too_short" and any(_is_within(other, parts) for other in locations):
            continue  # the list is short only because its items failed, and those are named
        message = str(error.get("msg", "invalid")).removeprefix("Value error, ")
        if error.get("type") == "extra_forbidden":
            message = "is not a known field; check its spelling or take it out"
        found.append(FieldProblem(field=".".join(parts) or "body", message=message))
    return found


def _is_within(parts: list[str], outer: list[str]) -> bool:
    return len(parts) > len(outer) and parts[: len(outer)] == outer


def _parts(error: Mapping[str, object]) -> list[str]:
    location = error.get("loc", ())
    return [str(part) for part in location] if isinstance(location, tuple | list) else []


def problem_response(
    request: Request,
    *,
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    metadata: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Render a problem."""
    problem = Problem(
        type=f"urn:pruneloop:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        errors=[ProblemField(field=item.field, message=item.message) for item in errors],
        metadata=jsonable_encoder(dict(metadata or {})),
    )
    # ensure_ascii, so that a lone surrogate taken from a path or a message cannot break the answer.
    body = json.dumps(problem.model_dump(mode="python"), ensure_ascii=True).encode()
    return Response(body, status_code=status, headers=dict(headers or {}), media_type="application/problem+json")


def status_of(error: PruneloopError) -> int:
    """Return the HTTP status of one of our errors."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    for kind in type(error).__mro__:
        if kind in STATUS_OF_ERROR:
            return STATUS_OF_ERROR[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def on_domain_error(request: Request, error: Exception) -> Response:
    """Render one of our errors."""
    assert isinstance(error, PruneloopError)
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return _on_crash(request, error)
    return problem_response(
        request,
        status=status,
        code=error.code,
        detail=error.message,
        errors=error.fields if isinstance(error, Invalid) else (),
        metadata=error.metadata,
        headers=_headers_of(error),
    )


def _headers_of(error: PruneloopError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        known = ', error="invalid_token"' if error.metadata.get("token_given") else ""
        return {"WWW-Authenticate": f'Bearer realm="pruneloop"{known}'}
    if isinstance(error, Forbidden):
        return {"WWW-Authenticate": 'Bearer realm="pruneloop", error="insufficient_scope"'}
    if isinstance(error, Unavailable) or "retry_after_s" in error.metadata:
        return {"Retry-After": str(error.metadata.get("retry_after_s", RETRY_AFTER_S))}
    return {}


def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The first part of a location says where the value stood: query, path or header.
    problems = field_problems(error.errors(), skip=1)
    return problem_response(
        request,
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        code="invalid_input",
        detail=sentence_of(problems),
        errors=problems,
    )


def sentence_of(problems: Sequence[FieldProblem]) -> str:
    """Return one sentence that names the failing fields."""
    names = ", ".join(dict.fromkeys(problem.field for problem in problems[:8]))
    return f"The request has {len(problems)} failing field(s): {names}; `errors` says how to mend each."


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request)) or headers.get("allow", "")
    return problem_response(
        request,
        status=status,
        code=CODE_OF_STATUS.get(status, HTTPStatus(status).name.lower()),
        detail=NEXT_STEP_OF_STATUS.get(status, str(error.detail)),
        headers=headers,
    )


def _methods_of(request: Request) -> list[str]:
    """Return every method of the request's path; the router's own header names those of one route only."""
    paths: Mapping[str, Mapping[str, object]] = request.app.openapi()["paths"]
    fitting = [operations for path, operations in paths.items() if compile_path(path)[0].match(request.url.path)]
    return sorted({method.upper() for operations in fitting for method in operations})


def _on_crash(request: Request, error: Exception) -> Response:
    """Hide what broke from the caller, and tie the answer to the log by an id."""
    error_id = uuid.uuid4().hex[:12]
    log.error("%s %s broke, error id %s", request.method, request.url.path, error_id, exc_info=error)
    return problem_response(
        request,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code="internal",
        detail=f"Something broke inside the server; its log has the cause under error id {error_id}.",
        metadata={"error_id": error_id},
    )
