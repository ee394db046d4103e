from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from domain.logs import LogFormat, configure_logging, current_ids, log_context, scrub

log = logging.getLogger("pruneloop.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Give the root logger back as it was: pytest's own handlers hang there."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_carries_the_ids_of_what_is_worked_on() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, "build", always={"device_id": "d1"}, stream=stream)
    log.info("before")
    with log_context(job_id="j1", trial=0, measurement_id=None):
        with log_context(build_id="b1"):
            log.warning("in %s", "it")
        log.info("after")
    first, second, third = lines_of(stream)
    assert first["role"] == "build" and first["device_id"] == "d1" and "job_id" not in first
    assert {second["level"], second["message"], second["job_id"], second["trial"], second["build_id"]} == {
        "WARNING", "in it", "j1", 0, "b1",
    }  # fmt: skip
    assert str(second["time"]).endswith("+00:00") and "measurement_id" not in second
    assert third["job_id"] == "j1" and "build_id" not in third


def test_a_thread_takes_the_ids_along_only_where_it_is_told() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, "build", stream=stream)

    def speak(ids: dict[str, str | int]) -> None:
        with log_context(**ids):
            log.info("from a thread")

    with log_context(job_id="j1"):
        for ids in (dict(current_ids()), {}):
            thread = threading.Thread(target=speak, args=(ids,))
            thread.start()
            thread.join()
    assert [line.get("job_id") for line in lines_of(stream)] == ["j1", None]


def test_one_line_whatever_is_in_it_and_an_exception_too() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.JSON, "api", stream=stream)
    try:
        raise ValueError("two\nlines redis://u:topsecret@host/0")
    except ValueError:
        log.exception("it\nbroke")
    (line,) = lines_of(stream)
    assert line["message"] == "it\nbroke" and "Traceback" in str(line["exception"])
    assert "topsecret" not in stream.getvalue()


def test_text_is_for_people_and_has_the_ids_at_its_end() -> None:
    stream = io.StringIO()
    configure_logging("info", LogFormat.TEXT, "api", stream=stream)
    with log_context(job_id="j1"):
        log.info("done")
    log.info("quiet")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("INFO pruneloop.test done [job_id=j1]") and second.endswith("quiet")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Connected to redis://pruneloop:s3cr%21t@broker:6379/0", "s3cr%21t"),
        ("postgresql+psycopg://u:p!x@h/db", "p!x"),
        ("token pld_AbCdEfGhIjKlMnOpQrStUv is bad", "AbCdEfGhIjKlMnOpQrStUv"),
        ("plj_AbCdEfGhIjKlMnOpQrStUv", "AbCdEfGhIjKlMnOpQrStUv"),
        ("pl_admin_AbCdEfGhIjKlMnOpQrStUv", "AbCdEfGhIjKlMnOpQrStUv"),
        ("headers: {'Authorization': 'Bearer abc.def'}", "abc.def"),
    ],
)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    assert secret in text and secret not in scrub(text)


@pytest.mark.parametrize("text", ["http://host:8420/v1/jobs", "plan_of_sixteen_characters_and_more", "a@b.example"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert scrub(text) == text
