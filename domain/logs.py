"""Log lines of every role: text for a terminal, JSON for a log store, each with the ids of what is worked on.

Whoever takes up a job, a build or a measurement says so once (``with log_context(job_id=...)``); every line that is written
meanwhile, by us or by a library, carries the ids. Secrets are taken out of every line on its way: a token or a password in a
URL has no business in a log, whoever wrote it there.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

HIDDEN = "***"
# Our own tokens by how they begin, bearer headers, and the password of any URL.
SECRETS = (
    (re.compile(r"\b(pl[a-z]?_(?:[a-z]+_)?)[\w-]{16,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer )\S+"), rf"\1{HIDDEN}"),
    (re.compile(r"(://[^\s:/@]*:)[^\s/@]+(@)"), rf"\1{HIDDEN}\2"),
)
CHATTY = ("httpx", "httpcore")  # each of their requests would be a line

_ids: ContextVar[Mapping[str, str | int]] = ContextVar("log_ids", default={})  # noqa: B039 - never changed in place


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


@contextmanager
def log_context(**ids: str | int | None) -> Iterator[None]:
    """Put ids into every line written meanwhile in this thread, on top of those around; None leaves one out."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def current_ids() -> Mapping[str, str | int]:
    """Return the ids that lines carry now; a thread takes them along by ``log_context(**current_ids())``."""
    return _ids.get()


def scrub(text: str) -> str:
    """Return a text without the secrets in it."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, message, ids at the end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        ids = " ".join(f"{name}={value}" for name, value in _ids.get().items())
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


class JsonFormatter(logging.Formatter):
    """For log stores: one object a line, RFC 3339 time in UTC.

    Args:
        role: api, search, build, reaper or agent.
        always: Ids that every line of this process carries.
    """

    def __init__(self, role: str, always: Mapping[str, str | int] | None = None) -> None:
        super().__init__()
        self._head = {"role": role, **(always or {})}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": scrub(record.getMessage()),
            **self._head,
            **_ids.get(),
        }
        if record.exc_info:
            line["exception"] = scrub(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(
    level: str,
    log_format: LogFormat,
    role: str,
    *,
    always: Mapping[str, str | int] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send every line of this process to standard error, or a stream, in one format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role, always) if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
