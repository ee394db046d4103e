"""What an agent is told by its environment, and what it remembers between starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from domain.errors import NotFound, Unavailable
from domain.logs import LogFormat
from domain.messages import BrokerAddress

IDENTITY_FILE = "agent.json"
STATE_DIR_VARIABLE = "PRUNELOOP_AGENT_STATE_DIR"


def default_state_dir() -> Path:
    """Return the folder the XDG rules give a user's state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "pruneloop-agent"


class AgentSettings(BaseSettings):
    """The agent's processes, from ``PRUNELOOP_AGENT_*``."""

    model_config = SettingsConfigDict(env_prefix="PRUNELOOP_AGENT_", frozen=True, extra="ignore", populate_by_name=True)

    state_dir: Path = Field(
        default_factory=default_state_dir, description="Identity, cached artifacts, outcomes that wait for the server."
    )
    server_url: str | None = Field(default=None, description="Where the API is now; default: where it was joined.")
    join_token_file: Path | None = Field(
        default=None,
        description="`run` joins with the token in it, where this device has not joined yet: for containers and services.",
    )
    name: str = Field(default="", max_length=200, description="Shown to people where `run` joins; default: the host's.")
    labels: dict[str, str] = Field(default_factory=dict, description="JSON object, of a device that `run` joins.")
    ca_file: Path | None = Field(default=None, description="Certificates to trust, where the system's do not do.")
    cache_max_bytes: int = Field(
        default=2 * 1024**3, gt=0, description="Artifacts kept by digest, least used go first."
    )
    quiet_file: Path | None = Field(
        default=None, description="Lock file of the host's quiet; default: in the temp folder."
    )
    interpreter: tuple[str, ...] = Field(
        default=(sys.executable,), min_length=1, description="JSON list: how the measuring child runs Python."
    )
    memory_limit_bytes: int | None = Field(
        default=None, gt=0, description="Of the measuring child; default: 80 % of what is free."
    )
    start_timeout_s: float = Field(default=60.0, gt=0, description="Until the measuring child has imported everything.")
    stage_timeout_s: float = Field(default=120.0, gt=0, description="Longest silence of the child between two stages.")
    keep_spare: bool = Field(default=True, description="Keep a child ready that has imported everything.")
    wake_s: float = Field(
        default=60.0, gt=0, description="One wake claims work for at most this long, then wakes anew."
    )
    health_every: int = Field(
        default=100,
        ge=0,
        description="Measurements between two checks of the golden model; 0: at start and after trouble.",
    )
    presence_s: float = Field(default=5.0, gt=0, description="An idle agent says that it is there this often.")
    task_time_limit_s: float = Field(default=3600.0, gt=0, description="Backstop: a wake is killed after this.")
    replay: str | None = Field(
        default=None,
        min_length=1,
        description="Measure nothing: the path of a recording to play back, or `synthetic`. The device's only runtime is replay.",
    )
    record_file: Path | None = Field(default=None, description="Append every outcome to this recording, as JSON lines.")
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: LogFormat = Field(
        default=LogFormat.TEXT,
        validation_alias=AliasChoices("PRUNELOOP_AGENT_LOG_FORMAT", "PRUNELOOP_LOG_FORMAT"),
        description="json: an object a line, for a log store.",
    )
    health_file: Path | None = Field(
        default=None,
        description="Touched every few seconds while the agent hears the broker: the age tells its health.",
    )
    root: Path = Field(default=Path("/"), description="What /proc and /sys hang under.")
    drain_file: Path | None = Field(
        default=None,
        validation_alias="PRUNELOOP_DRAIN_FILE",
        description="Once it exists, no new work is begun. Set by the agent's main process for its children.",
    )


class Identity(BaseModel):
    """Who this device is: given once by the server when it joined."""

    model_config = ConfigDict(frozen=True)

    server_url: str
    device_id: str
    name: str
    device_token: SecretStr
    broker: BrokerAddress

    def save(self, state_dir: Path) -> None:
        """Write it whole or not at all, readable by its owner only."""
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self.model_dump(mode="json") | {"device_token": self.device_token.get_secret_value()}
        text = json.dumps(known, indent=2)
        handle, name = tempfile.mkstemp(dir=state_dir)  # 0600 from its first byte on
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(state_dir / IDENTITY_FILE)

    @classmethod
    def load(cls, state_dir: Path) -> Identity:
        """Read what ``save`` wrote.

        Raises:
            NotFound: ``not_joined``.
            Unavailable: ``identity_unreadable``.
        """
        path = state_dir / IDENTITY_FILE
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError as error:
            raise NotFound(
                f"This device has not joined a server (no {path}); run `pruneloop agent join --server URL --token TOKEN`.",
                code="not_joined",
            ) from error
        except (OSError, ValidationError) as error:
            raise Unavailable(
                f"{path} cannot be read ({type(error).__name__}); join again.", code="identity_unreadable"
            ) from error
