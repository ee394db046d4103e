"""Make a converter's environment: a virtual environment beside ours, and in it the exact versions of the list beside this file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from domain.errors import Unavailable
from pruning.converters import FORMATS, ConverterSettings

__all__ = ["Environment", "environments", "install"]


@dataclass(frozen=True)
class Environment:
    """A format's environment: its Python, and whether it is there."""

    format: str
    python: Path
    is_there: bool


def environments(settings: ConverterSettings) -> tuple[Environment, ...]:
    """Return every format's environment."""
    pythons = {format: settings.python_of(format) for format in FORMATS}
    return tuple(Environment(format, python, python.is_file()) for format, python in pythons.items())


def pins_of(format: str) -> Path:
    """Return the list of exact versions of a format's environment."""
    return Path(__file__).with_name(f"{format}.txt")


def install(format: str, settings: ConverterSettings) -> Environment:
    """Make a format's environment, or make it anew; what pip says goes to standard error.

    Raises:
        Unavailable: ``install_failed``; what was there before is then gone, and nothing half-made is left.
    """
    folder = settings.converters_dir / format
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(pins_of(format)),
    ]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, stdout=sys.stderr)
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(
            f"The environment of {format} was not made at {folder}: {error}. It needs two gigabytes and a Python of a version that"
            f" the wheels in {pins_of(format).name} are made for; PRUNELOOP_CONVERTERS_DIR says where it goes.",
            code="install_failed",
        ) from error
    return Environment(format, python, python.is_file())
