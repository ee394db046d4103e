from __future__ import annotations

from pathlib import Path

import pytest

from client.connection import token_of_environment
from domain.errors import Invalid, Unauthorized
from settings import ApiSettings, CoreSettings, with_password


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_DATABASE_URL", "postgresql+psycopg://pruneloop@postgres:5432/pruneloop")
    monkeypatch.setenv("PRUNELOOP_BROKER_URL", "redis://pruneloop@broker:6379/0")
    monkeypatch.setenv("PRUNELOOP_ARTIFACT_DIR", "/data/artifacts")


def test_passwords_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in (("database", "a/b@c:d"), ("broker", "plain")):
        (tmp_path / name).write_text(f"{secret}\n")
        monkeypatch.setenv(f"PRUNELOOP_{name.upper()}_PASSWORD_FILE", str(tmp_path / name))
    settings = CoreSettings()  # type: ignore[call-arg]
    assert settings.database_url.get_secret_value() == (
        "postgresql+psycopg://pruneloop:a%2Fb%40c%3Ad@postgres:5432/pruneloop"
    )
    assert settings.broker_url.get_secret_value() == "redis://pruneloop:plain@broker:6379/0"
    assert "plain" not in repr(settings) and "a%2F" not in repr(settings)


def test_a_whole_url_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://u:p@elsewhere/0")
    monkeypatch.delenv("PRUNELOOP_BROKER_URL")
    monkeypatch.setenv("PRUNELOOP_BROKER_URL_FILE", str(tmp_path / "url"))
    assert CoreSettings().broker_url.get_secret_value() == "redis://u:p@elsewhere/0"  # type: ignore[call-arg]


def test_a_secret_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_BROKER_PASSWORD_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match=r"PRUNELOOP_BROKER_PASSWORD_FILE names .*nowhere, which cannot be read"):
        CoreSettings()  # type: ignore[call-arg]


def test_only_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "level").write_text("DEBUG")
    monkeypatch.setenv("PRUNELOOP_LOG_LEVEL_FILE", str(tmp_path / "level"))
    assert CoreSettings().log_level == "INFO"  # type: ignore[call-arg]


def test_a_password_wants_a_user() -> None:
    assert with_password("redis://u:p@host", "q") == "redis://u:p@host"
    assert with_password("redis+socket://u@/a/b?virtual_host=0", "q") == "redis+socket://u:q@/a/b?virtual_host=0"
    with pytest.raises(Invalid, match="no user"):
        with_password("redis://host", "q")


def test_tls_wants_both_files(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.touch()
    with pytest.raises(Invalid, match="both --tls-cert and --tls-key"):
        ApiSettings(tls_cert_file=certificate)  # type: ignore[call-arg]
    with pytest.raises(Invalid, match="nowhere cannot be read"):
        ApiSettings(tls_cert_file=certificate, tls_key_file=tmp_path / "nowhere")  # type: ignore[call-arg]
    settings = ApiSettings(tls_cert_file=certificate, tls_key_file=certificate)  # type: ignore[call-arg]
    assert settings.url == "https://127.0.0.1:8420"


def test_the_clients_token_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNELOOP_TOKEN", raising=False)
    monkeypatch.setenv("PRUNELOOP_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(Unauthorized, match="cannot be read"):
        token_of_environment()
    (tmp_path / "token").write_text("secret\n")
    assert token_of_environment() == "secret"
    monkeypatch.setenv("PRUNELOOP_TOKEN", "other")
    assert token_of_environment() == "other"
