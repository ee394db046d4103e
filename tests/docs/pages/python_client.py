"""docs/reference/python-client.md: what ``from client import ...`` gives."""

from __future__ import annotations

import inspect
import re
from typing import Any

import client
from tests.docs.pages.markdown import page

WIDTH = 78
HEAD = """
```sh
python -c "from client import Client; print([device.name for device in Client().devices()])"
```

Synchronous and typed. It finds the server as the command line does: its arguments, then `PRUNELOOP_URL` and
`PRUNELOOP_TOKEN`, then `~/.config/pruneloop/config.toml`, then `.pruneloop` in this folder. Errors are those of the
server, with its `code`: [error codes](errors.md). What is safe to do twice is tried again where the connection breaks:
reads, and submitting and cloning, which carry an idempotency key. Other calls raise `Unavailable` at once.
"""


def text() -> str:
    return page("Python client", HEAD, *(_class(getattr(client, name)) for name in client.__all__))


def _class(found: type) -> str:
    parts = [f"## {found.__name__}", _shown(f"{found.__name__}{_signature(found.__init__)}")]
    parts.append(_prose(inspect.getdoc(found) or ""))
    for name, member in vars(found).items():
        if name.startswith("_"):
            continue
        value = member.fget if isinstance(member, property) else member
        if not callable(value):
            continue
        text = inspect.getdoc(value) or ""
        shown = f".{name}" if isinstance(member, property) else f".{name}{_signature(value)}"
        parts.append(f"### {found.__name__}.{name}\n\n{_shown(shown)}\n\n{_prose(text)}".rstrip())
    return "\n\n".join(parts)


def _shown(signature: str) -> str:
    """Return a signature as a block that is not run, a parameter a line where it is long."""
    name, _, rest = signature.partition("(")
    inside, _, gives = rest.rpartition(")")
    if len(signature) > WIDTH:
        parameters = re.split(r", (?![^\[]*\])", inside)
        signature = f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){gives}"
    return f"<!-- a signature -->\n```python\n{signature}\n```"


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [one for name, one in signature.parameters.items() if name != "self"]
    text = str(signature.replace(parameters=parameters))
    return text.replace("'", "").replace(" -> None", "") if function.__name__ == "__init__" else text.replace("'", "")


def _prose(text: str) -> str:
    """Return a Google-style docstring as Markdown: its sections as lists, its examples as code."""
    lines: list[str] = []
    section, is_example = "", False
    for line in text.replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Source|Yields):", line):
            section = line.removesuffix(":")
            lines += ["", f"*{section}*", ""]
        elif section and line.startswith("    "):
            item = re.fullmatch(r" {4}(\w+): (.*)", line)
            lines.append(
                f"- `{item[1]}`: {item[2]}" if item else f"  {line.strip()}" if lines[-1] else f"- {line.strip()}"
            )
        else:
            section = section if line.strip() == "" else ""
            is_example = line.startswith("    ")
            lines.append(line)
    del is_example
    return "\n".join(lines).strip()
