"""Exit codes that scripts can trust, each from a real server, and each in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.__main__ import main
from client.commands.shared import EXIT_CODES, jobs_for_completion
from domain.device import DeviceState
from tests.integration.api.conftest import ADMIN, Live
from tests.integration.api.test_live import join
from tests.unit.api.messages import SPEC


def run(live: Live, monkeypatch: pytest.MonkeyPatch, *arguments: str, token: str = ADMIN) -> int:
    monkeypatch.setenv("PRUNELOOP_URL", live.url)
    monkeypatch.setenv("PRUNELOOP_TOKEN", token)
    monkeypatch.setenv("PRUNELOOP_CONFIG", "/nowhere/config.toml")
    monkeypatch.setattr("sys.argv", ["pruneloop", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_done_is_0_and_its_json_is_json(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(SPEC))
    assert run(live, monkeypatch, "submit", str(file), "--json") == 0
    job = json.loads(capsys.readouterr().out)
    for command in (["jobs"], ["front", job["id"]], ["report", job["id"]], ["devices"], ["pause", job["id"]]):
        assert run(live, monkeypatch, *command, "--json") == 0, command
        json.loads(capsys.readouterr().out)


def test_what_fails_is_1(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**SPEC, "seed": -1}))
    assert run(live, monkeypatch, "submit", str(file)) == 1
    assert run(live, monkeypatch, "front", "job_unknown") == 1
    assert run(live, monkeypatch, "submit", str(tmp_path / "absent.yaml")) == 1
    job = live.client.submit(SPEC)
    live.client.cancel(job.id)
    assert run(live, monkeypatch, "resume", job.id) == 1
    assert run(live, monkeypatch, "watch", job.id) == 1, "a cancelled job is no success"


def test_wrong_usage_is_2(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(live, monkeypatch, "jobs", "--nonsense") == 2


def test_no_access_is_3(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(live, monkeypatch, "jobs", token="guessed") == 3


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_job_that_still_runs_is_4(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    job = live.client.submit(SPEC)
    assert run(live, monkeypatch, "watch", job.id, "--timeout-s", "1", *form) == 4
    assert f"pruneloop watch {job.id}" in capsys.readouterr().err


def test_ctrl_c_is_130(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    job = live.client.submit(SPEC)
    monkeypatch.setattr("client.commands.jobs.follow", interrupt)
    assert run(live, monkeypatch, "watch", job.id) == 130


@pytest.mark.parametrize(("words", "wanted"), [("pruneloop fro", "front"), ("pruneloop watch ", None)])
def test_the_shell_completes_commands_and_job_ids(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, wanted: str | None
) -> None:
    wanted = wanted or live.client.submit(SPEC).id
    monkeypatch.setenv("_PRUNELOOP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    run(live, monkeypatch)
    assert wanted in capsys.readouterr().out


def test_a_shell_without_a_server_completes_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNELOOP_CONFIG", str(tmp_path / "absent.toml"))
    monkeypatch.delenv("PRUNELOOP_URL", raising=False)
    monkeypatch.delenv("PRUNELOOP_TOKEN", raising=False)
    assert jobs_for_completion("") == []
    assert capsys.readouterr() == ("", "")


def test_the_table_of_the_documentation_is_the_program_s() -> None:
    page = Path(__file__).resolve().parents[3] / "docs/reference/exit-codes.md"
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page.read_text()


def test_a_job_is_planned_and_cloned_by_command(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**SPEC, "labels": {"made-by": "clone-test"}}))
    assert run(live, monkeypatch, "submit", str(file), "--dry-run") == 0
    assert "nothing was stored" in capsys.readouterr().out
    assert run(live, monkeypatch, "jobs", "--label", "made-by=clone-test", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(live, monkeypatch, "submit", str(file), "--json") == 0
    job = json.loads(capsys.readouterr().out)
    assert run(live, monkeypatch, "clone", job["id"], "--set", "budget={trials: 3}", "--set", "seed=9", "--json") == 0
    clone = json.loads(capsys.readouterr().out)["spec"]
    assert (clone["budget"]["trials"], clone["seed"]) == (3, 9)
    assert run(live, monkeypatch, "clone", job["id"], "--set", "budget") == 2
    assert run(live, monkeypatch, "clone", job["id"], "--set", "sead=1") == 1
    assert "sead" in capsys.readouterr().err
    assert run(live, monkeypatch, "jobs", "--label", "made-by", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_device_is_paused_drained_and_removed_by_its_name(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = join(live)["device_id"]
    name = live.store.device(device).name
    for verb, state in (("pause", "paused"), ("resume", "active"), ("drain", "draining")):
        assert run(live, monkeypatch, "devices", verb, name, "--note", "new fan", "--json") == 0
        assert json.loads(capsys.readouterr().out)["state"] == state
    twin = join(live)["device_id"]
    assert run(live, monkeypatch, "devices", "pause", name) == 1
    assert twin in capsys.readouterr().err, "two of a name: the ids are told"
    assert run(live, monkeypatch, "devices", "remove", device) == 0
    assert "is removed" in capsys.readouterr().out
    assert live.store.device(device).state is DeviceState.REMOVED
    assert run(live, monkeypatch, "devices", "pause", "nobody") == 1
