from __future__ import annotations

from typing import Any

import pytest

from domain.device import DeviceState, LostRuntime, QuarantineCause
from domain.errors import Unavailable
from domain.work import LEASE_S
from tests.unit.api.conftest import World
from tests.unit.api.fakes import DEVICE_TOKEN, OTHER_DEVICE_TOKEN
from tests.unit.api.messages import CANDIDATE, FAILED, candidate, measured, measurement, timing
from tests.unit.api.test_access import JOINING


def join_token(world: World) -> str:
    return str(world.ask("POST", "/v1/join_tokens").json()["token"])


def claimed(world: World) -> dict[str, Any]:
    world.store.measurements_by_id["m1"] = measurement("m1")
    answer = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN)
    return dict(answer.json()["claim"])


def test_a_join_token_comes_with_the_line_to_run(world: World) -> None:
    answer = world.ask("POST", "/v1/join_tokens", json={"expires_in_s": 60, "uses": 2, "labels": {"a": "b"}})
    assert answer.status_code == 201
    token = answer.json()["token"]
    steps = answer.json()["command"].split(" && ")
    assert steps[0].startswith("python3 -m venv ") and "/bin/pip install " in steps[1]
    assert steps[2].endswith(f"pruneloop agent join --server http://server.example:8420 --token {token}")
    assert steps[3].endswith("pruneloop agent run")
    assert answer.json()["expires_at"] == "2026-11-01T12:01:00Z"


def test_a_device_joins_once_with_a_token(world: World) -> None:
    token = join_token(world)
    answer = world.ask("POST", "/v1/devices", token=token, json=JOINING)
    assert answer.status_code == 201
    joined = answer.json()
    assert joined["name"] == "box"
    assert joined["broker"]["queue"] == joined["device_id"]
    own = world.ask("GET", f"/v1/devices/{joined['device_id']}", token=joined["device_token"])
    assert own.status_code == 200
    again = world.ask("POST", "/v1/devices", token=token, json=JOINING)
    assert (again.status_code, again.json()["code"]) == (401, "bad_join_token")


def test_two_devices_never_get_the_same_secrets(world: World) -> None:
    answers = [world.ask("POST", "/v1/devices", token=join_token(world), json=JOINING).json() for _ in range(2)]
    assert answers[0]["device_token"] != answers[1]["device_token"]
    assert answers[0]["broker"]["url"] != answers[1]["broker"]["url"]


def test_a_broker_that_is_away_does_not_cost_the_token(world: World) -> None:
    token = join_token(world)
    world.is_broker_there = False
    assert world.ask("POST", "/v1/devices", token=token, json=JOINING).status_code == 503
    world.is_broker_there = True
    assert world.ask("POST", "/v1/devices", token=token, json=JOINING).status_code == 201


def test_a_broker_that_goes_away_meanwhile_leaves_no_half_device(world: World) -> None:
    world.launcher.failure = Unavailable("The broker is away.")
    answer = world.ask("POST", "/v1/devices", token=join_token(world), json=JOINING)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert world.store.devices_by_id["dev3"].state is DeviceState.REMOVED


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("drain", "draining"), ("resume", "active")])
def test_a_device_is_steered_with_a_note(world: World, verb: str, state: str) -> None:
    answer = world.ask("POST", f"/v1/devices/dev1/{verb}", json={"note": "new fan"})
    assert (answer.json()["state"], answer.json()["note"]) == (state, "new fan")
    assert world.launcher.woken == (["dev1"] if verb == "resume" else [])


def test_a_removed_device_loses_its_broker_user(world: World) -> None:
    assert world.ask("DELETE", "/v1/devices/dev1").status_code == 204
    assert world.store.devices_by_id["dev1"].state is DeviceState.REMOVED
    assert world.launcher.dismissed == ["dev1"]


def test_nothing_to_do_says_so(world: World) -> None:
    answer = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()
    assert answer == {"claim": None, "reason": "nothing waits for this device", "check_health": False, "protocol": 2}


def test_a_paused_device_gets_nothing_and_hears_why(world: World) -> None:
    world.store.measurements_by_id["m1"] = measurement("m1")
    world.ask("POST", "/v1/devices/dev1/pause", json={"note": "new fan"})
    answer = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()
    assert answer == {"claim": None, "reason": "this device is paused: new fan", "check_health": False, "protocol": 2}


def test_a_claim_carries_the_attempt_that_fences_every_write(world: World) -> None:
    claim = claimed(world)
    assert (claim["measurement_id"], claim["attempt"]) == ("m1", 1)
    assert claim["request"]["candidates"][0]["artifact"]["digest"] == CANDIDATE


def test_an_accepted_outcome_wakes_the_search(world: World) -> None:
    claimed(world)
    body = {"attempt": 1, "outcome": measured()}
    assert world.ask("PUT", "/v1/measurements/m1/outcome", token=DEVICE_TOKEN, json=body).status_code == 204
    assert world.store.outcomes == [("m1", "dev1", 1)]
    assert world.launcher.searches == 1


def test_a_failure_is_an_outcome_too(world: World) -> None:
    claimed(world)
    body = {"attempt": 1, "outcome": FAILED}
    assert world.ask("PUT", "/v1/measurements/m1/outcome", token=DEVICE_TOKEN, json=body).status_code == 204


@pytest.mark.parametrize(("token", "attempt"), [(OTHER_DEVICE_TOKEN, 1), (DEVICE_TOKEN, 2)])
def test_an_outcome_of_a_lost_lease_is_409_and_wakes_nobody(world: World, token: str, attempt: int) -> None:
    claimed(world)
    body = {"attempt": attempt, "outcome": measured()}
    answer = world.ask("PUT", "/v1/measurements/m1/outcome", token=token, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_attempt")
    assert world.launcher.searches == 0


LIES = {
    "no candidate": (measured(candidates=[]), "outcome.candidates"),
    "another file": (measured(candidates=[candidate(digest="sha256:" + "c" * 64)]), "outcome.candidates"),
    "negative latency": (measured(candidates=[candidate(latency_ms=-1.0)]), "outcome.candidates.0.latency_ms"),
    "latency of nothing": (measured(baseline=timing(0.0)), "outcome.baseline.latency_ms"),
    "nothing timed": (measured(baseline=timing(runs=0)), "outcome.baseline.runs"),
    "speed-up of a billion": (measured(candidates=[candidate(speedup=1e9)]), "outcome.candidates.0.speedup"),
    "interval upside down": (measured(candidates=[candidate(speedup_ci=[3, 1])]), "outcome.candidates.0.speedup_ci"),
    "no pairs": (measured(candidates=[candidate(pairs=0)]), "outcome.candidates.0.pairs"),
}


@pytest.mark.parametrize(("outcome", "field"), LIES.values(), ids=LIES.keys())
def test_an_outcome_that_cannot_be_true_is_refused(world: World, outcome: dict[str, Any], field: str) -> None:
    claimed(world)
    body = {"attempt": 1, "outcome": outcome}
    answer = world.ask("PUT", "/v1/measurements/m1/outcome", token=DEVICE_TOKEN, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "implausible_outcome")
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert not world.store.outcomes


def test_nan_never_reaches_a_front(world: World) -> None:
    claimed(world)
    content = b'{"attempt": 1, "outcome": {"status": "measured", "latency_ms": NaN}}'
    headers = {"Content-Type": "application/json"}
    answer = world.ask("PUT", "/v1/measurements/m1/outcome", token=DEVICE_TOKEN, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


def test_raw_samples_may_be_larger_than_other_bodies(world: World) -> None:
    claimed(world)
    samples = {"pairs": 30, "data": "A" * (2 * 1024 * 1024)}
    body = {"attempt": 1, "outcome": measured(candidates=[candidate(samples=samples)])}
    assert world.ask("PUT", "/v1/measurements/m1/outcome", token=DEVICE_TOKEN, json=body).status_code == 204


def test_a_heartbeat_extends_the_lease_or_cancels(world: World) -> None:
    claimed(world)
    beat = {"measurement_id": "m1", "attempt": 1, "clock": "2026-11-01T12:00:00Z"}
    held = world.ask("POST", "/v1/devices/dev1/heartbeat", token=DEVICE_TOKEN, json=beat).json()
    assert (held["action"], held["lease_s"]) == ("continue", LEASE_S)
    lost = world.ask("POST", "/v1/devices/dev1/heartbeat", token=DEVICE_TOKEN, json={**beat, "attempt": 9}).json()
    assert lost["action"] == "cancel"


def test_a_draining_device_is_told_so(world: World) -> None:
    world.ask("POST", "/v1/devices/dev1/drain")
    assert world.ask("POST", "/v1/devices/dev1/heartbeat", token=DEVICE_TOKEN).json()["action"] == "drain"


def test_an_agent_of_a_later_release_is_understood(world: World) -> None:
    beat = {"something_new": {"a": 1}}
    assert world.ask("POST", "/v1/devices/dev1/heartbeat", token=DEVICE_TOKEN, json=beat).status_code == 200


def test_a_measurement_handed_back_waits_again(world: World) -> None:
    claimed(world)
    path = "/v1/measurements/m1/release"
    assert world.ask("POST", path, token=OTHER_DEVICE_TOKEN, json={"attempt": 1}).status_code == 409
    assert world.ask("POST", path, token=DEVICE_TOKEN, json={"attempt": 1}).status_code == 204
    assert world.store.measurements_by_id["m1"].state == "pending"


GOOD_CHECK = {
    "runtime": "onnxruntime",
    "runtime_version": "1.26",
    "golden": "sha256:" + "0" * 64,
    "trigger": "start",
    "timing": {"latency_ms": 0.3, "yardstick_ms": 0.1, "ratio": 3.0, "ratio_ci": [2.9, 3.1]},
}


def test_a_device_tells_its_own_health_only_and_people_read_it(world: World) -> None:
    answer = world.ask("POST", "/v1/devices/dev1/health", token=DEVICE_TOKEN, json=GOOD_CHECK)
    assert (answer.status_code, answer.json()["verdict"], answer.json()["state"]) == (200, "learning", "active")
    assert world.ask("POST", "/v1/devices/dev1/health", token=OTHER_DEVICE_TOKEN, json=GOOD_CHECK).status_code == 403
    assert world.ask("POST", "/v1/devices/dev1/health", json=GOOD_CHECK).status_code == 403
    (record,) = world.ask("GET", "/v1/devices/dev1/health").json()["items"]
    assert record["check"]["timing"]["ratio"] == 3.0
    assert world.ask("GET", "/v1/devices/dev1/health", token=OTHER_DEVICE_TOKEN).status_code == 403


def test_a_check_without_sense_is_refused(world: World) -> None:
    wrong = {**GOOD_CHECK, "timing": {**GOOD_CHECK["timing"], "ratio": -1}}  # type: ignore[dict-item]
    assert world.ask("POST", "/v1/devices/dev1/health", token=DEVICE_TOKEN, json=wrong).status_code in {400, 422}


def test_a_quarantined_device_gets_no_work_and_hears_why_and_whether_to_check_again(world: World) -> None:
    world.store.measurements_by_id["m1"] = measurement("m1")
    wrong = {**GOOD_CHECK, "timing": None, "code": "wrong_output", "reason": "y differs"}
    answer = world.ask("POST", "/v1/devices/dev1/health", token=DEVICE_TOKEN, json=wrong).json()
    assert answer["state"] == "quarantined"
    told = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()
    assert told["claim"] is None and "y differs" in told["reason"] and told["check_health"] is False
    world.store.is_check_due = True
    assert world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()["check_health"] is True


def test_a_device_that_lost_a_runtime_is_asked_to_check_it_once_it_has_nothing_to_do(world: World) -> None:
    lost = {"openvino": LostRuntime(cause=QuarantineCause.LATENCY, reason="it crashed")}
    world.store.devices_by_id["dev1"] = world.store.device("dev1").model_copy(update={"lost_runtimes": lost})
    seen = world.ask("GET", "/v1/devices/dev1").json()
    assert seen["lost_runtimes"] == {"openvino": {"cause": "latency", "reason": "it crashed"}}
    world.store.is_check_due = True
    world.store.measurements_by_id["m1"] = measurement("m1")
    busy = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()
    assert busy["claim"] is not None and busy["check_health"] is False
    idle = world.ask("POST", "/v1/devices/dev1/claim", token=DEVICE_TOKEN).json()
    assert idle["claim"] is None and idle["check_health"] is True
