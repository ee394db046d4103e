"""docs/reference/command-line.md: every command, argument and option of ``pruneloop``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from client.__main__ import make_app
from client.commands.shared import EXIT_CODES, DataDir, Json, Token, Url
from tests.docs.pages.markdown import code, page, table

COMMON = {
    name: shared.__metadata__[0].help  # type: ignore[attr-defined]
    for name, shared in (("--json", Json), ("--url", Url), ("--token", Token), ("--data-dir", DataDir))
}
HEAD = """
`pruneloop --help` and `pruneloop COMMAND --help` say the same. Every command that answers has `--json`; results go to
standard output, everything else to standard error. `pruneloop --install-completion` teaches your shell the commands,
options and ids of recent jobs.
"""


def text() -> str:
    root = typer.main.get_command(make_app())
    commands = [f"## {path}\n\n{_describe(command)}" for path, command in commands_of("pruneloop", root)]
    codes = table(("code", "meaning"), [(str(number), meaning) for number, meaning in EXIT_CODES.items()])
    common = table(("option", "meaning"), [(code(name), meaning) for name, meaning in COMMON.items()])
    parts = [HEAD, f"Commands that ask a server also take:\n\n{common}", *commands]
    return page("Command line", *parts, f"## Exit codes\n\n{codes}\n\nMore on them: [exit codes](exit-codes.md).")


def commands_of(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that can be called, with its words."""
    children = getattr(command, "commands", {})
    if not children or getattr(command, "invoke_without_command", False):
        yield path, command
    for name, child in children.items():
        yield from commands_of(f"{path} {name}", child)


def _describe(command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name in {"help", "install_completion", "show_completion"} or (
            COMMON.get(parameter.opts[0], "") == getattr(parameter, "help", None)
        ):
            continue
        is_option = parameter.param_type_name == "option"
        names = (
            [*parameter.opts, *parameter.secondary_opts]
            if is_option
            else [parameter.metavar or str(parameter.name).upper()]
        )
        default = "**required**" if parameter.required else _default(parameter)
        rows.append((", ".join(code(name) for name in names), default, getattr(parameter, "help", "") or ""))
    parts = [command.help or ""]
    if rows:
        parts.append(table(("", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or callable(value) or value is False or value == () or value == "":
        return ""
    return code(str(value).lower() if value is True else str(value))
