"""Where the converters' own environments lie."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

FORMATS = ("executorch", "litert")


class ConverterSettings(BaseSettings):
    """Read once by an exporter that needs an environment of its own."""

    model_config = SettingsConfigDict(env_prefix="PRUNELOOP_", frozen=True, extra="ignore")

    converters_dir: Path = Field(
        default=Path(sys.prefix) / "converters",
        description="Folder of the converters' environments, one a format: made by `pruneloop exporters install`.",
    )
    litert_python: Path | None = Field(
        default=None, description="Python with litert-torch; default: that of converters_dir/litert."
    )
    executorch_python: Path | None = Field(
        default=None, description="Python with executorch; default: that of converters_dir/executorch."
    )

    def python_of(self, format: str) -> Path:
        """Return the Python of a format's environment, whether or not it is there."""
        named: Path | None = getattr(self, f"{format}_python")
        return named or self.converters_dir / format / "bin" / "python"
