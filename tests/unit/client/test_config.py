"""The configuration file: what it may say, what wins over it, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.config import ClientConfig, config_path, load_config
from client.connection import connect
from domain.errors import Invalid, Unauthorized


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    for name in ("PRUNELOOP_URL", "PRUNELOOP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRUNELOOP_CONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def test_no_file_means_no_defaults(config: Path) -> None:
    assert load_config() == ClientConfig()


def test_the_file_is_where_the_desktop_keeps_such_files(tmp_path: Path) -> None:
    assert config_path({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "pruneloop" / "config.toml"
    assert config_path({}).parts[-3:] == (".config", "pruneloop", "config.toml")


def test_the_environment_wins_over_the_file_and_an_option_over_both(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    config.write_text(f'url = "http://file.example"\ntoken_file = "{secret}"\n')
    assert connect().base_url == "http://file.example"
    monkeypatch.setenv("PRUNELOOP_URL", "http://environment.example")
    assert connect().base_url == "http://environment.example"
    assert connect("http://option.example").base_url == "http://option.example"


def test_a_folder_that_is_named_is_not_overruled_by_the_file(config: Path, tmp_path: Path) -> None:
    config.write_text('url = "http://file.example"\n')
    run = tmp_path / "here" / "run"
    run.mkdir(parents=True)
    (run / "server.json").write_text('{"url": "http://127.0.0.1:9"}')
    (tmp_path / "here" / "admin-token").write_text("local\n")
    assert connect(data_dir=tmp_path / "here").base_url == "http://127.0.0.1:9"


def test_a_server_without_a_token_names_the_next_step(config: Path) -> None:
    config.write_text('url = "http://file.example"\n')
    with pytest.raises(Unauthorized, match="token_file"):
        connect()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("url = ", "not TOML"),
        ('urll = "x"', "urll"),
        ("watch = 1", "watch"),
        ('token_file = "/nowhere/at/all"', "/nowhere/at/all"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(config: Path, text: str, told: str) -> None:
    config.write_text(text)
    with pytest.raises(Invalid) as caught:
        connect()
    assert told in caught.value.message
    assert caught.value.code == "bad_config"


def test_a_token_that_others_may_read_is_refused(config: Path) -> None:
    config.write_text('url = "http://file.example"\ntoken = "secret"\n')
    config.chmod(0o644)
    with pytest.raises(Invalid, match="chmod 600") as caught:
        connect()
    assert "secret" not in caught.value.message
    config.chmod(0o600)
    assert connect().base_url == "http://file.example"
