"""A worker's name is nobody else's while it lives, and its successor's at once when it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from domain.errors import Unavailable
from workers.names import dead_names, take_name

TAKE_AND_WAIT = """
import sys
from pathlib import Path
from workers.names import take_name
print(take_name("build", Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", TAKE_AND_WAIT, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[3]
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_a_killed_worker_leaves_its_name_to_the_next_and_a_stopped_one_keeps_it(tmp_path: Path) -> None:
    first, name = holder(tmp_path)
    second, other = holder(tmp_path)
    assert name.startswith("build@") and other != name
    first.send_signal(signal.SIGSTOP)
    third, another = holder(tmp_path)
    assert another not in {name, other}, "a stopped process may wake up and go on"
    end(first)
    heir, inherited = holder(tmp_path)
    assert inherited == name
    end(second, third, heir)


def test_who_died_is_seen_at_once_and_who_is_stopped_is_not(tmp_path: Path) -> None:
    (first, name), (second, _), (third, _) = holder(tmp_path), holder(tmp_path), holder(tmp_path)
    second.send_signal(signal.SIGSTOP)
    end(first)
    with dead_names(tmp_path) as dead:
        assert dead == [name]
        heir, other = holder(tmp_path)
        assert other != name, "nobody may begin under a name whose leases are being freed"
    end(second, third, heir)


def test_a_role_has_names_of_its_own_and_so_has_a_folder(tmp_path: Path) -> None:
    build, search = take_name("build", tmp_path), take_name("search", tmp_path)
    assert build.startswith("build@") and search.startswith("search@")
    elsewhere = take_name("build", tmp_path / "another host's")
    assert elsewhere.rpartition(":")[2] != build.rpartition(":")[2], "two containers may have one host name"


def test_a_folder_that_cannot_be_used_is_named_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "names").symlink_to(tmp_path)
    with pytest.raises(Unavailable) as caught:
        take_name("build", tmp_path / "names")
    assert caught.value.code == "names_unusable"
    assert "PRUNELOOP_NAMES_DIR" in caught.value.message
