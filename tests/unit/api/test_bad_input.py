"""A corpus of bodies nobody should send: each is refused by name, and never a 500."""

from __future__ import annotations

import pytest

from api.body import MAX_DEPTH, MAX_JSON_BYTES
from tests.unit.api.conftest import World

GOOD = '{"model": {"name": "resnet8"}, "data": {"name": "mnist-5k"}, "targets": [{}]}'
DEEP = 5000

MALFORMED = {
    "nothing": b"",
    "not JSON": b"{model: x}",
    "cut short": GOOD[:-5].encode(),
    "two values": (GOOD + GOOD).encode(),
    "NaN": b'{"seed": NaN}',
    "Infinity": b'{"seed": Infinity}',
    "minus Infinity": b'{"seed": -Infinity}',
    "a key twice": b'{"name": "a", "name": "b"}',
    "latin-1": '{"name": "é"}'.encode("latin-1"),
    "UTF-16": GOOD.encode("utf-16"),
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "just too deep": b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
    "number of ten thousand digits": b'{"seed": ' + b"9" * 10_000 + b"}",
    "nul bytes": b"\x00\x00\x00",
}


def spec(**changes: str) -> str:
    parts = {"model": '{"name": "resnet8"}', "data": '{"name": "mnist-5k"}', "targets": "[{}]", **changes}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in parts.items()) + "}"


INVALID = {
    "not an object": ("[1, 2]", "body"),
    "no model": ('{"data": {"name": "x"}, "targets": [{}]}', "model"),
    "no targets": (spec(targets="[]"), "targets"),
    "unknown field": (spec(modle="{}"), "modle"),
    "speed-up of one": (spec(targets='[{"speedup": 1.0}]'), "targets.0.speedup"),
    "negative latency": (spec(targets='[{"latency_ms": -1}]'), "targets.0.latency_ms"),
    "a number as a truth": (spec(recovery='{"distill": 0}'), "recovery.distill"),
    "number as infinity": (spec(targets='[{"latency_ms": 1e999}]'), "targets.0.latency_ms"),
    "unknown precision": (spec(targets='[{"precision": ["fp4"]}]'), "targets.0.precision.0"),
    "onnx without artifact": (spec(model='{"source": "onnx"}'), "model"),
    "bad digest": (spec(model='{"source": "onnx", "artifact": "sha256:zz"}'), "model.artifact"),
    "drop above one": (spec(objective='{"max_drop": 1.5}'), "objective.max_drop"),
    "no trials": (spec(budget='{"trials": 0}'), "budget.trials"),
    "NUL in a text": (spec(name='"a\\u0000b"'), "name"),
    "half a surrogate": (spec(name='"a\\ud800b"'), "name"),
    "NUL deep in parameters": (spec(model='{"name": "x", "params": {"a": ["\\u0000"]}}'), "model.params.a.0"),
    "NUL in a key": (spec(model='{"name": "x", "params": {"\\u0000": 1}}'), "model.params"),
    "huge number": (spec(model='{"name": "x", "params": {"a": 99999999999999999999}}'), "model.params.a"),
    "long name": (spec(name='"' + "x" * 201 + '"'), "name"),
    "text for a number": (spec(seed='"many"'), "seed"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_400_and_says_so(world: World, body: bytes) -> None:
    answer = world.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed_json"
    assert not world.store.jobs_by_id


@pytest.mark.parametrize(("body", "field"), INVALID.values(), ids=INVALID.keys())
def test_invalid_input_names_the_field(world: World, body: str, field: str) -> None:
    answer = world.ask("POST", "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_input"
    assert field in [error["field"] for error in problem["errors"]]
    assert all(error["message"] for error in problem["errors"])
    assert not world.store.jobs_by_id


def test_every_failing_field_is_named_at_once(world: World) -> None:
    body = spec(seed="-1", budget='{"trials": 0}', targets='[{"batch": 0, "threads": 0}]')
    problem = world.ask("POST", "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"}).json()
    found = {error["field"] for error in problem["errors"]}
    assert found == {"seed", "budget.trials", "targets.0.batch", "targets.0.threads"}


def test_the_input_is_never_echoed(world: World) -> None:
    body = spec(seed='"my-secret-value"')
    answer = world.ask("POST", "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"})
    assert "my-secret-value" not in answer.text


MALFORMED_YAML = {
    "unclosed": b"model: {name: x",
    "tab": b"model:\n\t- x",
    "alias bomb": b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",
    "python object": b"model: !!python/object/apply:os.system ['true']",
    "a key twice": b"name: a\nname: b",
    "a number as key": b"1: a",
    "infinite": b"[" * 1500,
    "two documents": b"a: 1\n---\nb: 2",
    "control characters": b"name: \x01\x02",
    "not UTF-8": b"name: \xff\xff\xff",
}


@pytest.mark.parametrize("body", MALFORMED_YAML.values(), ids=MALFORMED_YAML.keys())
def test_malformed_yaml_is_400(world: World, body: bytes) -> None:
    answer = world.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed_yaml"


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_yaml_numbers_must_be_finite(world: World, number: str) -> None:
    body = f"model: {{name: x}}\ndata: {{name: y}}\ntargets: [{{latency_ms: {number}}}]"
    answer = world.ask("POST", "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "targets.0.latency_ms"


def test_a_date_in_yaml_stays_the_text_it_is(world: World) -> None:
    body = b"name: 2026-11-01\nmodel: {name: x}\ndata: {name: y}\ntargets: [{precision: fp32}]"
    answer = world.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201
    assert answer.json()["name"] == "2026-11-01"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_media_type_is_415(world: World, media_type: str) -> None:
    answer = world.ask("POST", "/v1/jobs", content=GOOD.encode(), headers={"Content-Type": media_type})
    assert answer.status_code == 415
    assert answer.json()["code"] == "unsupported_media_type"


def test_yaml_is_for_jobs_only(world: World) -> None:
    answer = world.ask("POST", "/v1/join_tokens", content=b"uses: 1", headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 415


def test_a_body_of_more_than_a_mebibyte_is_413(world: World) -> None:
    body = b'{"name": "' + b"x" * MAX_JSON_BYTES + b'"}'
    answer = world.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_large_body_without_a_length_is_413_too(world: World) -> None:
    blocks = (b" " * 65536 for _ in range(40))
    answer = world.ask("POST", "/v1/jobs", content=blocks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


BAD_REQUESTS = {
    "negative page size": ("GET", "/v1/jobs?page_size=-1", "page_size"),
    "page size in words": ("GET", "/v1/jobs?page_size=ten", "page_size"),
    "unknown state": ("GET", "/v1/jobs?state=DONE", "state.0"),
    "job id with NUL": ("GET", "/v1/jobs/a%00b", "job_id"),
    "job id with a quote": ("GET", "/v1/jobs/a'--", "job_id"),
    "job id of a kilobyte": ("GET", "/v1/jobs/" + "a" * 1000, "job_id"),
    "device id with spaces": ("GET", "/v1/devices/a%20b", "device_id"),
    "not a digest": ("GET", "/v1/artifacts/sha256:abc", "digest"),
    "negative target": ("GET", "/v1/jobs/job1/front?target=-1", "target"),
    "target beyond any job": ("GET", "/v1/jobs/job1/front?target=32", "target"),
    "page token with a newline": ("GET", "/v1/jobs?page_token=a%0Ab", "page_token"),
}


@pytest.mark.parametrize(("method", "path", "field"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_paths_and_queries_name_the_parameter(world: World, method: str, path: str, field: str) -> None:
    answer = world.ask(method, path)
    assert answer.status_code == 422
    assert field in [error["field"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("header", "value"), [("Idempotency-Key", "x" * 256), ("Idempotency-Key", "tab\there"), ("Idempotency-Key", "")]
)
def test_a_bad_idempotency_key_is_422(world: World, header: str, value: str) -> None:
    headers = {"Content-Type": "application/json", header: value}
    answer = world.ask("POST", "/v1/jobs", content=GOOD.encode(), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"


def test_an_unknown_path_is_a_problem_too(world: World) -> None:
    answer = world.ask("GET", "/v2/anything")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_wrong_method_is_405_with_what_is_allowed(world: World) -> None:
    answer = world.ask("PATCH", "/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


def test_a_crash_hides_its_cause_and_names_the_log_entry(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.store.crash = RuntimeError("password=hunter2")
    answer = world.ask("GET", "/v1/jobs/job1/events")
    assert answer.status_code == 500
    problem = answer.json()
    assert problem["code"] == "internal"
    assert "hunter2" not in answer.text
    assert problem["metadata"]["error_id"] in caplog.text
