"""A converter in an environment of its own is not trusted: whatever it does is a failure with a reason, and the next one works."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from domain.errors import Unavailable
from pruning.exporters import ExportFailed
from pruning.exporters.converter import Converter

READY = (
    """echo '{"versions": {}}'; read request; folder=$(echo "$request" | sed 's/.*"folder": "\\([^"]*\\)".*/\\1/')"""
)


def pretend(folder: Path, script: str) -> Converter:
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Converter("litert", program, step_s=1)


def test_a_file_comes_back_and_the_child_is_asked_again(tmp_path: Path) -> None:
    loop = f"""echo $$ >> {tmp_path}/started; echo '{{"versions": {{}}}}'
while read request; do folder=$(echo "$request" | sed 's/.*"folder": "\\([^"]*\\)".*/\\1/')
cat "$folder/given" > "$folder/made"; echo '{{"done": "convert"}}'; done"""
    converter = pretend(tmp_path, loop)
    assert converter.carry_out("convert", {"given": b"one"}, "made") == b"one"
    assert converter.carry_out("convert", {"given": b"two"}, "made") == b"two"
    assert len((tmp_path / "started").read_text().split()) == 1
    converter.end()
    assert converter.carry_out("convert", {"given": b"three"}, "made") == b"three"
    converter.end()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            f"""{READY}; echo '{{"error": "no lowering of aten.svd"}}'; read more""",
            "does not take the model: .*aten.svd",
        ),
        (f"{READY}; echo 'out of memory' >&2; kill -KILL $$", "ended .SIGKILL.: out of memory"),
        (f"{READY}; echo 'bad' >&2; exit 3", "ended .code 3.: bad"),
        (f"{READY}; echo nonsense; read more", "talks nonsense"),
        (f"""{READY}; echo '{{"done": "convert"}}'; read more""", "gives no made"),
    ],
)
def test_whatever_it_does_is_a_failure_with_a_reason(tmp_path: Path, script: str, reason: str) -> None:
    converter = pretend(tmp_path, script)
    with pytest.raises(ExportFailed, match=reason):
        converter.carry_out("convert", {}, "made")
    converter.end()


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    converter = pretend(tmp_path, f"{READY}; (while true; do date +%s%N > {alive}; sleep 0.05; done) & wait")
    with pytest.raises(ExportFailed, match="did not finish in 1 s") as caught:
        converter.carry_out("convert", {}, "made")
    assert caught.value.code == "export_timeout"
    last = alive.read_text()
    time.sleep(0.4)
    assert alive.read_text() == last


def test_an_environment_that_is_not_there_or_broken_is_told_with_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELOOP_CONVERTERS_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="run: pruneloop exporters install litert") as caught:
        Converter("litert").require()
    assert caught.value.code == "exporter_missing"
    with pytest.raises(Unavailable, match=r"No module named 'torch'.*exporters install litert"):
        pretend(tmp_path, "echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1").carry_out(
            "convert", {}, "made"
        )


def test_it_gets_none_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    converter = pretend(tmp_path, f"""{READY}; env > "$folder/made"; echo '{{"done": ""}}'; read more""")
    seen = converter.carry_out("convert", {}, "made").decode()
    converter.end()
    assert "secret" not in seen
    assert "PYTHONPATH" not in seen
    assert "OMP_NUM_THREADS=1" in seen
