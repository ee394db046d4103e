"""docs/reference/settings.md: what each process reads from its environment."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from client.config import ClientConfig
from settings import ApiSettings, BuildSettings, CoreSettings, ReaperSettings, SearchSettings
from tests.docs.pages.markdown import code, default_of, limits_of, page, table, type_text
from workers.agent.settings import AgentSettings

SERVER: tuple[type[BaseSettings], ...] = (CoreSettings, ApiSettings, SearchSettings, BuildSettings, ReaperSettings)

HEAD = """
Environment variables, read once when a process starts. `pruneloop up` sets those of the database, the broker and the
folders itself. Lists are JSON. Times are in seconds, sizes in bytes, as their names say.
"""
CLIENT = """
## The command line and the Python client

`~/.config/pruneloop/config.toml`; `XDG_CONFIG_HOME` moves it, `PRUNELOOP_CONFIG` names another file. An option on the
command line wins over the environment (`PRUNELOOP_URL`, `PRUNELOOP_TOKEN`), the environment over this file.
"""


def text() -> str:
    parts = [HEAD]
    for settings in SERVER:
        base = settings.__mro__[1]
        inherited = set(base.model_fields) if issubclass(base, CoreSettings) else set()
        parts.append(
            f"## {settings.__name__.removesuffix('Settings')}\n\n{settings.__doc__}\n\n{_table(settings, inherited)}"
        )
    parts.append(f"## Agent\n\n{AgentSettings.__doc__}\n\n{_table(AgentSettings, set())}")
    rows = [
        (code(name), type_text(field.annotation), default_of(field), field.description or "")
        for name, field in ClientConfig.model_fields.items()
    ]
    parts.append(f"{CLIENT}\n\n{table(('key', 'is', 'default', 'meaning'), rows)}")
    return page("Settings", *parts)


def _table(settings: type[BaseSettings], inherited: set[str]) -> str:
    prefix = settings.model_config.get("env_prefix", "")
    rows = []
    for name, field in settings.model_fields.items():
        if name in inherited:
            continue
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"{prefix}{name}".upper()
        kind, bounds = type_text(field.annotation), limits_of(field)
        rows.append(
            (code(variable), kind + (f"; {bounds}" if bounds else ""), default_of(field), field.description or "")
        )
    return table(("variable", "is", "default", "meaning"), rows)
