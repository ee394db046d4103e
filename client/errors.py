"""Problems of the server, as the same errors the server raised."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx

from domain.errors import (
    Conflict,
    FieldProblem,
    Forbidden,
    Invalid,
    NotFound,
    PruneloopError,
    RateLimited,
    StaleAttempt,
    Unauthorized,
    Unavailable,
    WrongState,
)
from domain.trust import untrusted

CLASS_OF_CODE: dict[str, type[PruneloopError]] = {"wrong_state": WrongState, "stale_attempt": StaleAttempt}
CLASS_OF_STATUS: dict[int, type[PruneloopError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
UNREACHABLE = "server_unreachable"
CA_FILE_VARIABLE = "PRUNELOOP_CA_FILE"


def error_of(response: httpx.Response) -> PruneloopError:
    """Return the error that a read response that is not a success stands for."""
    problem = _problem(response)
    code = str(problem.get("code") or "") or None
    message = str(problem.get("detail") or "") or f"The server answered {response.status_code} to {response.url}."
    metadata = problem.get("metadata")
    details = {str(key): value for key, value in metadata.items()} if isinstance(metadata, Mapping) else {}
    kind = CLASS_OF_CODE.get(code or "") or CLASS_OF_STATUS.get(response.status_code, PruneloopError)
    if issubclass(kind, Invalid):
        return kind(message, code=code, fields=_fields(problem.get("errors")), metadata=details)
    return kind(message, code=code, metadata=details)


def unreachable(base_url: str, cause: Exception) -> Unavailable:
    """Return the error for a server that does not answer at all, or whose certificate is not to be trusted."""
    return untrusted(base_url, cause, CA_FILE_VARIABLE) or Unavailable(
        f"No answer from {base_url} ({cause}). Start it with `pruneloop up`, or set PRUNELOOP_URL to where it runs.",
        code=UNREACHABLE,
        metadata={"url": base_url},
    )


def _problem(response: httpx.Response) -> Mapping[str, object]:
    try:
        value = json.loads(response.content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _fields(errors: object) -> list[FieldProblem]:
    if not isinstance(errors, list):
        return []
    return [
        FieldProblem(field=str(item.get("field", "")), message=str(item.get("message", "")))
        for item in errors
        if isinstance(item, dict)
    ]
