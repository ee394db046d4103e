"""Defaults of the command line from a file, for those who would type the same options every day.

``~/.config/pruneloop/config.toml`` (``XDG_CONFIG_HOME``; ``PRUNELOOP_CONFIG`` names another file)::

    url = "https://prune.lan"
    token_file = "~/.config/pruneloop/token"   # a file with the token in it; or token = "..."
    ca_file = "~/.config/pruneloop/ca.pem"     # where the server's certificate is signed by a CA of your own
    data_dir = "/srv/pruneloop"                # of a server on this machine
    out = "models"                             # where `download` puts files
    watch = true                               # `submit` shows progress until the job is over

An option on the command line wins over the environment, the environment over this file.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain.errors import Invalid

READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH


class ClientConfig(BaseModel):
    """What the file may say; nothing is required."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str | None = Field(default=None, description="The server.")
    token: str | None = Field(default=None, description="Bearer token; the file must then be mode 0600.")
    token_file: str | None = Field(default=None, description="A file with the token in it, instead of `token`.")
    ca_file: str | None = Field(default=None, description="Certificates to trust instead of the system's.")
    data_dir: str | None = Field(default=None, description="Data folder of a server on this machine.")
    out: str | None = Field(default=None, description="Where `download` puts files.")
    watch: bool = Field(default=False, description="`submit` shows progress until the job is over.")

    def read_token(self) -> str | None:
        """Return the token; None where the file names none. Raises Invalid where its file cannot be read."""
        if self.token_file is None:
            return self.token
        path = Path(self.token_file).expanduser()
        try:
            return path.read_text().strip()
        except OSError as error:
            raise Invalid(
                f"The token file {path} cannot be read ({error.strerror}); mend `token_file` in {config_path()}.",
                code="bad_config",
            ) from error


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the file is looked for."""
    if named := environment.get("PRUNELOOP_CONFIG"):
        return Path(named).expanduser()
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "pruneloop" / "config.toml"


def load_config(path: Path | None = None) -> ClientConfig:
    """Return the file's defaults; none where there is no file.

    Raises:
        Invalid: ``bad_config`` where the file is not TOML, says what nobody knows, or shows a token to others.
    """
    path = path or config_path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ClientConfig()
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}).", code="bad_config") from error
    try:
        config = ClientConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path} is not TOML: {error}.", code="bad_config") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(ClientConfig.model_fields)
        raise Invalid(f"{path}: `{name}`: {first['msg']}. It may hold {known}.", code="bad_config") from error
    if config.token is not None and stat.S_IMODE(path.stat().st_mode) & READ_BY_OTHERS:
        raise Invalid(f"{path} holds a token and others may read it; run: chmod 600 {path}", code="bad_config")
    return config
