"""Settings of the server's processes, one frozen class a role, read from ``PRUNELOOP_*`` once at the entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from domain.webhook import secret_of
from domain.work import SEARCH_SLICE_S


class CoreSettings(BaseSettings):
    """What every server process needs: the database, the broker, the artifacts."""

    model_config = SettingsConfigDict(env_prefix="PRUNELOOP_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = Field(description="SQLAlchemy URL of PostgreSQL: postgresql+psycopg://...")
    broker_url: SecretStr = Field(description="Celery URL of Valkey or Redis: redis://... or redis+socket:///path")
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
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    drain_file: Path | None = Field(
        default=None, description="Set by a worker's parent process; once the file exists, children hand work back."
    )


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
    admin_token_file: Path | None = Field(default=None, description="Made at first start where absent, mode 0600.")


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
