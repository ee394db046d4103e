"""The wheel that the server makes of itself: whole, honest about its content, the same twice, and open without a token."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shlex
import shutil
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from api.agent_wheel import PARTS, ROOT, AgentWheel, agent_wheel
from api.routes.join_tokens import join_command
from tests.unit.api.conftest import World


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small server of which a wheel can be made."""
    for place, text in {
        "pyproject.toml": '[project]\nversion = "3.2.1"\nrequires-python = ">=3.11"\ndependencies = ["rich>=14"]\n'
        '[project.optional-dependencies]\nagent = ["celery[redis]>=5.7,<5.8", "psutil"]\nserver = ["sqlalchemy"]\n',
        "constraints.txt": "# said so\ncelery==5.7.3\nrich==15.0.1\n",
        "domain/noun.py": "x = 1\n",
        "domain/__pycache__/noun.pyc": "x",
        "workers/__init__.py": "",
        "workers/build.py": "import torch\n",
        "workers/agent/deep/tasks.py": "y = 1\n",
        "client/__main__.py": "",
        "db/store.py": "",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    return tmp_path


def opened(wheel: AgentWheel) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: AgentWheel) -> Message:
    (content,) = [content for name, content in opened(wheel).items() if name.endswith("/METADATA")]
    return message_from_bytes(content)


def test_it_holds_what_a_device_needs_and_nothing_else(root: Path) -> None:
    names = {name for name in opened(agent_wheel(root)) if ".dist-info/" not in name}
    assert names == {"domain/noun.py", "workers/__init__.py", "workers/agent/deep/tasks.py", "client/__main__.py"}


def test_its_record_tells_every_file_as_it_is(root: Path) -> None:
    files = opened(agent_wheel(root))
    (record,) = [name for name in files if name.endswith("/RECORD")]
    rows = list(csv.reader(files[record].decode().splitlines()))
    assert {row[0] for row in rows} == set(files)
    for name, told, size in rows:
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
            assert (told, size) == (f"sha256={digest}", str(len(files[name])))


def test_it_asks_for_the_versions_that_were_tested_where_they_are_known(root: Path) -> None:
    told = metadata(agent_wheel(root))
    assert told.get_all("Requires-Dist") == [
        "rich==15.0.1",
        'celery[redis]==5.7.3; extra == "agent"',
        'psutil; extra == "agent"',
    ]
    assert (told["Requires-Python"], told.get_all("Provides-Extra")) == (">=3.11", ["agent"])


def test_other_code_is_another_version_and_the_same_code_the_same_file(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    first, same = agent_wheel(root), agent_wheel(copy)
    assert first == same
    (copy / "workers/agent/deep/tasks.py").write_text("y = 2\n")
    agent_wheel.cache_clear()
    other = agent_wheel(copy)
    assert other.file_name != first.file_name
    assert metadata(first)["Version"].startswith("3.2.1+") and metadata(first)["Version"] in first.file_name


def test_an_installed_server_serves_what_its_distribution_says(root: Path) -> None:
    (root / "pyproject.toml").unlink()
    told = metadata(agent_wheel(root))
    required = told.get_all("Requires-Dist") or []
    assert any(one.startswith("onnxruntime") and 'extra == "agent"' in one for one in required)
    assert any(one.startswith("httpx") and "extra" not in one for one in required)
    assert not any("torch" in one or "sqlalchemy" in one for one in required)


def test_the_real_one_holds_the_whole_agent_with_its_golden_model() -> None:
    names = set(opened(agent_wheel()))
    assert {"workers/agent/__main__.py", "workers/agent/golden/golden.onnx", "client/__main__.py"} <= names
    assert not any(name.startswith(("db/", "search/", "pruning/", "workers/build", "api/routes")) for name in names)
    assert all(any(ROOT.glob(part)) for part in PARTS)
    assert len(agent_wheel().content) < 1_000_000


def test_it_is_open_under_its_name_only(world: World) -> None:
    wheel = agent_wheel()
    answer = world.ask("GET", f"/v1/agent/{wheel.file_name}", token=None)
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == wheel.sha256
    gone = world.ask("GET", "/v1/agent/pruneloop-0.0.1-py3-none-any.whl", token=None)
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
    assert "new join command" in gone.json()["detail"]


def test_the_token_stands_in_no_url_of_the_line() -> None:
    words = shlex.split(join_command("https://server.lan", "plj_secret", agent_wheel()))
    assert words.count("plj_secret") == 1
    assert not any("plj_secret" in word for word in words if "://" in word)
    (direct,) = [word for word in words if " @ " in word]
    assert direct.endswith(f"#sha256={agent_wheel().sha256}")


@pytest.mark.parametrize(
    ("url", "is_here_only"),
    [("http://127.0.0.1:8420", True), ("http://localhost:1", True), ("http://[::1]:1", True), ("http://box:1", False)],
)
def test_a_line_that_cannot_do_elsewhere_says_so(world: World, url: str, is_here_only: bool) -> None:
    world.say_public_url(url)
    answer = world.ask("POST", "/v1/join_tokens").json()
    assert ("PRUNELOOP_PUBLIC_URL" in answer["note"]) is is_here_only
    assert url in answer["command"]
