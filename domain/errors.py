"""One root error. Every leaf has a stable ``code`` that clients may rely on; HTTP status lives in ``api/errors.py`` only.

    PruneloopError
    ├── Invalid        input that can be mended by its sender; names the failing fields
    ├── NotFound       no such thing
    ├── Conflict       the thing exists, but its state forbids the verb (``wrong_state``, ``stale_attempt``, ...)
    ├── Unauthorized   no token, or one nobody knows
    ├── Forbidden      a known token without the scope
    ├── RateLimited    too much too fast; ``metadata.retry_after_s`` says when to come back
    └── Unavailable    something this needs is away; try again

A failed measurement or build is *not* an error: it is a value, ``domain.outcome.Failed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldProblem:
    """One failing input field: dotted ``field`` path, what is wrong, and how to mend it."""

    field: str
    message: str


class PruneloopError(Exception):
    """Root of everything Pruneloop raises on purpose.

    Args:
        message: One sentence for a person, with the next step.
        code: Stable machine-readable code, snake_case.
        metadata: Every dynamic value of the message, JSON-friendly.
    """

    default_code = "internal"

    def __init__(self, message: str, *, code: str | None = None, metadata: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.metadata: dict[str, object] = dict(metadata or {})


class Invalid(PruneloopError):
    """Input that its sender can mend; ``fields`` names every failing field."""

    default_code = "invalid_input"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        fields: Sequence[FieldProblem] = (),
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message, code=code, metadata=metadata)
        self.fields = tuple(fields)


class NotFound(PruneloopError):
    default_code = "not_found"


class Conflict(PruneloopError):
    default_code = "conflict"


class Unauthorized(PruneloopError):
    default_code = "unauthorized"


class Forbidden(PruneloopError):
    default_code = "forbidden"


class RateLimited(PruneloopError):
    default_code = "rate_limited"


class Unavailable(PruneloopError):
    default_code = "unavailable"


class WrongState(Conflict):
    """A verb that the thing's state forbids."""

    default_code = "wrong_state"


class StaleAttempt(Conflict):
    """A write of a lease that has been given to somebody else; the work is kept apart for diagnosis, never counted."""

    default_code = "stale_attempt"
