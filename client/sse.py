"""Server-sent events, read line by line.

Source: WHATWG HTML, section "Parsing an event stream".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream; ``id`` is empty where the server sent none."""

    id: str
    event: str
    data: str


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """Yield the events of a stream of lines without their ends; an event cut off by the stream's end is dropped."""
    last_id, event = "", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Message(id=last_id, event=event or "message", data="\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value
