"""Settings of the server's processes, one frozen class a role, read from ``PRUNELOOP_*`` once at the entry point.

A secret may come from a file instead: ``PRUNELOOP_DATABASE_PASSWORD_FILE=/run/secrets/...``. A variable is shown by ``ps e``,
``docker inspect`` and crash reports; a file is not.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from domain.errors import Invalid
from domain.logs import LogFormat
from domain.webhook import secret_of
from domain.work import SEARCH_SLICE_S

PREFIX = "PRUNELOOP_"
PASSWORDS = {"database_url": "database_password", "broker_url": "broker_password"}


class SecretFiles(PydanticBaseSettingsSource):
    """Reads ``PRUNELOOP_<SECRET>_FILE`` for every secret field of a class."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variable = f"{PREFIX}{field_name}_FILE".upper()
        path = os.environ.get(variable) if _is_secret(field) else None
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise Invalid(
                f"{variable} names {path}, which cannot be read ({error.strerror}); "
                "make the file, readable by the user this process runs as.",
                code="bad_settings",
            ) from error

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class CoreSettings(BaseSettings):
    """What every server process needs: the database, the broker, the artifacts."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    database_url: SecretStr = Field(description="SQLAlchemy URL of PostgreSQL: postgresql+psycopg://...")
    database_password: SecretStr | None = Field(default=None, description="Put into the URL, where that names none.")
    broker_url: SecretStr = Field(description="Celery URL of Valkey or Redis: redis://... or redis+socket:///path")
    broker_password: SecretStr | None = Field(default=None, description="Put into the URL, where that names none.")
    broker_public_url: str | None = Field(
        default=None, description="How devices reach the broker, without credentials; default: as the server does."
    )
    artifact_dir: Path = Field(description="Folder of content-addressed files; with a bucket: of copies of them.")
    artifact_url: str | None = Field(
        default=None,
        description="Keep artifacts in a bucket instead: s3://bucket/prefix?endpoint_url=...&region=...; needs the extra `s3`.",
    )
    artifact_cache_bytes: int = Field(
        default=20 * 1024**3, gt=0, description="With a bucket: what the copies may take."
    )
    names_dir: Path | None = Field(
        default=None,
        description="Where workers keep their names, so that a restarted one gets its leases back; default: the temp folder.",
    )
    datasets_dir: Path | None = Field(
        default=None,
        description="Folder whose files jobs may name by `data.path`; default: uploads only. Builders read it.",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: LogFormat = Field(default=LogFormat.TEXT, description="json: an object a line, for a log store.")
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Collector that traces are sent to; wants the extra `otel`. Its further settings are OpenTelemetry's own.",
    )
    health_file: Path | None = Field(
        default=None, description="A worker touches it every few seconds while it works and hears the broker."
    )
    drain_file: Path | None = Field(
        default=None, description="Set by a worker's parent process; once the file exists, children hand work back."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What a caller says wins over the environment, the environment over the files it names."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _put_passwords_into_urls(cls, data: dict[str, Any]) -> dict[str, Any]:
        for url, password in PASSWORDS.items():
            if data.get(url) and data.get(password):
                data = {**data, url: with_password(_text(data[url]), _text(data[password]))}
        return data


class ApiSettings(CoreSettings):
    """The API process."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8420, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    public_url: str | None = Field(
        default=None, description="URL that devices and browsers use; default: host and port."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Further names this server may be called by: JSON list. Addresses, single words, this machine's names and "
        "the host of public_url are known.",
    )
    max_upload_bytes: int = Field(default=2 * 1024**3, gt=0, description="Of one artifact.")
    api_workers: int = Field(default=1, ge=1, description="Processes that answer on the one port.")
    admin_token_file: Path | None = Field(default=None, description="Made at first start where absent, mode 0600.")
    tls_cert_file: Path | None = Field(default=None, description="PEM: the server's certificate, then its chain.")
    tls_key_file: Path | None = Field(default=None, description="PEM: the key of the certificate.")

    @property
    def url(self) -> str:
        """Where the server is reached, as far as it knows itself."""
        return f"{'https' if self.tls_cert_file else 'http'}://{reachable_name(self.host)}:{self.port}"

    @model_validator(mode="after")
    def _certificate_and_key_are_a_pair(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise Invalid("TLS needs both --tls-cert and --tls-key; give the other one too.", code="bad_settings")
        for file in filter(None, (self.tls_cert_file, self.tls_key_file)):
            if not os.access(file, os.R_OK):
                raise Invalid(f"{file} cannot be read; TLS needs it.", code="bad_settings")
        return self


class SearchSettings(CoreSettings):
    """The search worker."""

    slice_s: float = Field(
        default=SEARCH_SLICE_S, gt=0, description="A job's loop gives way to a waiting one after this long."
    )
    search_sampler: Literal["tpe", "gp", "nsga2", "random"] = Field(
        default="tpe", description="Which of Optuna's samplers asks, once the chain of seeds has ended."
    )
    search_without: tuple[str, ...] = Field(
        default=(),
        description="Parts of the search to leave out, to see what they are worth: JSON list, see search/options.py.",
    )


class BuildSettings(CoreSettings):
    """The build worker."""

    threads: int = Field(default=0, ge=0, description="torch threads; 0: all of up to three cores, else all but one.")
    checkpoint_s: float = Field(
        default=10.0,
        gt=0,
        description="Trainings note how far they are this often, in artifact_dir; a killed build goes on from there.",
    )
    quiet_file: Path | None = Field(
        default=None,
        description="Lock file of the host's quiet, shared with the agent of the same host; default: in the temp folder.",
    )


class WebhookSettings(BaseModel):
    """One webhook of the operator's."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(pattern=r"^https?://[^\s]+$")
    secret: SecretStr

    @field_validator("secret")
    @classmethod
    def _is_a_secret(cls, secret: SecretStr) -> SecretStr:
        secret_of(secret.get_secret_value())
        return secret


class ReaperSettings(CoreSettings):
    """The reaper."""

    interval_s: float = Field(default=1.0, gt=0, description="Between two rounds.")
    retention_days: float = Field(
        default=0.0,
        ge=0,
        description="Delete raw samples and files of jobs that ended so long ago, never what a front refers to; 0: keep all.",
    )
    webhooks: dict[str, WebhookSettings] = Field(
        default={},
        description='Told of every job\'s end: JSON, {"ops": {"url": "https://...", "secret": "whsec_..."}}.',
    )
    audit_days: int = Field(default=400, ge=0, description="Entries of the audit log are kept so long; 0: for ever.")


def reachable_name(host: str) -> str:
    """Return what others may call a server that listens on an address: one that means all addresses is none to call."""
    return socket.gethostname() if host in {"", "0.0.0.0", "::"} else host


def with_password(url: str, password: str) -> str:
    """Return a URL with a password in it; one that has a password already is left as it is.

    Raises:
        Invalid: ``bad_settings`` where the URL names no user whose password it could be.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        return url
    user, sign, place = parts.netloc.rpartition("@")
    if not sign:
        raise Invalid(
            f"A password is given for {url}, but no user; write the user's name before the host: {parts.scheme}://USER@HOST...",
            code="bad_settings",
        )
    return parts._replace(netloc=f"{user.removesuffix(':')}:{quote(password, safe='')}@{place}").geturl()


def _text(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)
