"""What the previous release said is understood, and what this one says on top of it is ignored there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from domain import messages
from domain.errors import Conflict
from domain.messages import OLDEST_PROTOCOL, PROTOCOL, check_protocol

PREVIOUS = json.loads((Path(__file__).parent / "previous.json").read_text())


@pytest.mark.parametrize("name", sorted(PREVIOUS["messages"]))
def test_a_message_of_the_previous_release_is_read_whole(name: str) -> None:
    model: type[BaseModel] = getattr(messages, name.partition("/")[0])
    said = PREVIOUS["messages"][name]
    read = model.model_validate(said).model_dump(mode="json")
    assert_keeps(read, said, name)


def assert_keeps(read: Any, said: Any, place: str) -> None:
    """Everything that was said is there with its value; what is there beyond has a default."""
    if isinstance(said, dict):
        for key, value in said.items():
            assert key in read, f"{place}.{key} is lost"
            assert_keeps(read[key], value, f"{place}.{key}")
    elif isinstance(said, list):
        assert len(read) == len(said), place
        for number, (one, other) in enumerate(zip(read, said, strict=True)):
            assert_keeps(one, other, f"{place}[{number}]")
    else:
        assert read == said, place


@pytest.mark.parametrize("name", sorted(PREVIOUS["messages"]))
def test_fields_of_a_release_to_come_are_ignored(name: str) -> None:
    model: type[BaseModel] = getattr(messages, name.partition("/")[0])
    said = {**PREVIOUS["messages"][name], "of_the_next_release": {"anything": [1]}}
    assert "of_the_next_release" not in model.model_validate(said).model_dump()


def test_who_tells_no_protocol_speaks_the_first() -> None:
    joining = messages.JoinRequest.model_validate(PREVIOUS["messages"]["JoinRequest"])
    assert joining.protocol == PREVIOUS["protocol"] == 1
    check_protocol(joining.protocol, "agent")


@pytest.mark.parametrize("theirs", range(OLDEST_PROTOCOL, PROTOCOL + 2))
def test_one_number_apart_is_understood(theirs: int) -> None:
    check_protocol(theirs, "agent")
    check_protocol(theirs, "server")


def test_further_apart_is_refused_with_which_side_to_update() -> None:
    with pytest.raises(Conflict, match="update the server first") as refused:
        check_protocol(PROTOCOL + 2, "agent")
    assert refused.value.code == "protocol_too_new"
    with pytest.raises(Conflict, match="update the agent first"):
        check_protocol(PROTOCOL + 2, "server")
    with pytest.raises(Conflict, match="update the agent") as refused:
        check_protocol(OLDEST_PROTOCOL - 1, "agent")
    assert refused.value.code == "protocol_too_old"
