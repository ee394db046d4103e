"""Quiet between real processes: nobody builds while somebody measures, no stream of batches starves a measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domain.errors import Unavailable
from workers.agent import quiet

ROOT = Path(__file__).resolve().parents[3]

HOLD = """
import sys, time
from pathlib import Path
from workers.agent import quiet
with quiet.{side}(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

BATCHES = """
import sys, time
from pathlib import Path
from workers.agent import quiet
print("held", flush=True)
while True:
    with quiet.building(Path(sys.argv[1])):
        time.sleep(0.03)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "quiet.lock"


@pytest.fixture
def start(lock: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_builders_work_side_by_side(lock: Path) -> None:
    with quiet.building(lock), quiet.building(lock):
        pass


def test_a_measurement_waits_for_the_batch_and_tells_how_long(lock: Path, start: Start) -> None:
    builder = start(HOLD.format(side="building"))
    with pytest.raises(Unavailable, match="No quiet") as caught, quiet.measuring(lock, timeout_s=0.2):
        pass
    assert caught.value.code == "quiet_timeout"
    builder.kill()
    with quiet.measuring(lock, timeout_s=5) as waited_s:
        assert 0 <= waited_s < 5


@pytest.mark.parametrize("side", ["measuring", "building"])
def test_a_hold_dies_with_its_holder(lock: Path, start: Start, side: str) -> None:
    holder = start(HOLD.format(side=side))
    os.kill(holder.pid, signal.SIGKILL)
    with quiet.measuring(lock, timeout_s=5):
        pass


def test_a_builder_waits_while_somebody_measures(lock: Path, start: Start) -> None:
    measurer = start(HOLD.format(side="measuring"))
    waiting = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(side="building"), str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.6)
        measurer.kill()
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "held\n"
    finally:
        waiting.kill()
        waiting.communicate()


def test_builders_that_never_pause_do_not_starve_a_measurement(lock: Path, start: Start) -> None:
    for _ in range(3):
        start(BATCHES)
    for _ in range(5):
        with quiet.measuring(lock, timeout_s=10) as waited_s:
            assert waited_s < 2  # a batch lasts 0.03 s; the rest is a busy machine
        time.sleep(0.02)


def test_only_one_measures(lock: Path, start: Start) -> None:
    start(HOLD.format(side="measuring"))
    with pytest.raises(Unavailable), quiet.measuring(lock, timeout_s=0.1):
        pass


def test_waiting_ends_when_cancelled(lock: Path, start: Start) -> None:
    start(HOLD.format(side="building"))
    with pytest.raises(Unavailable) as caught, quiet.measuring(lock, is_cancelled=lambda: True):
        pass
    assert caught.value.code == "quiet_cancelled"


def test_an_error_inside_gives_the_quiet_back(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), quiet.measuring(lock):
        raise ZeroDivisionError
    with quiet.measuring(lock, timeout_s=0):
        pass


def test_a_planted_link_is_not_followed(lock: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    for existing in (False, True):
        if existing:
            target.write_text("keep me")
        lock.unlink(missing_ok=True)
        lock.symlink_to(target)
        with pytest.raises(Unavailable) as caught, quiet.measuring(lock, timeout_s=1):
            pass
        assert caught.value.code == "quiet_unsafe"
    assert target.read_text() == "keep me"


def test_a_folder_or_a_pipe_in_its_place_is_refused(lock: Path) -> None:
    lock.mkdir()
    with pytest.raises(Unavailable), quiet.building(lock):
        pass
    lock.rmdir()
    os.mkfifo(lock)
    with pytest.raises(Unavailable), quiet.building(lock):
        pass


def test_a_lock_file_that_was_cleaned_away_is_made_anew(lock: Path) -> None:
    with quiet.building(lock):
        lock.unlink()
    with quiet.measuring(lock, timeout_s=1):
        assert lock.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_another_user_may_take_part() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)  # as the system's temp folder is
        lock = folder / "shared.lock"
        old = os.umask(0o077)
        try:
            with quiet.building(lock):
                pass
        finally:
            os.umask(old)
        become_nobody = "import fcntl, os; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        take = f"fcntl.flock(os.open({str(lock)!r}, os.O_RDONLY | os.O_NOFOLLOW), fcntl.LOCK_EX)"
        subprocess.run([sys.executable, "-c", become_nobody + take], check=True, cwd="/")
