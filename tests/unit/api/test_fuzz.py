"""The parsers of what comes from outside, for twenty seconds; `make fuzz` does it for an hour, guided by coverage.

What an hour found is kept in ``tests/fuzz/corpus`` and replayed here.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, run, seeds

CORPUS = Path(__file__).resolve().parents[2] / "fuzz" / "corpus"
SECONDS = 20 / len(TARGETS)
SLOW = {"onnx_reader"}


def test_every_target_has_seeds_and_a_corpus() -> None:
    assert set(seeds()) == set(TARGETS)
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_input_is_taken(name: str) -> None:
    assert any(run(TARGETS[name], data) for data in seeds()[name])


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before_is_no_crash(name: str) -> None:
    for path in sorted((CORPUS / name).iterdir()):
        run(TARGETS[name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_refused_in_our_words(name: str) -> None:
    """Bytes flipped, cut, doubled and joined, from a seed, for a second or so."""
    dice = random.Random(name)
    pool = seeds()[name] + [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    until = time.monotonic() + SECONDS
    tried = 0
    while time.monotonic() < until or tried < 20:
        run(TARGETS[name], mutated(dice, pool))
        tried += 1


def mutated(dice: random.Random, pool: list[bytes]) -> bytes:
    data = bytearray(dice.choice(pool))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1:
                del data[at : at + dice.randint(1, 16)]
            case 2:
                data[at:at] = data[at : at + dice.randint(1, 16)]
            case 3:
                data[at:at] = dice.choice([b"\x00", b"\xff" * 4, b"[" * 60, b"{", b"9" * 40, b"1e999", b"\xed\xa0\x80"])
            case 4:
                other = dice.choice(pool)
                data[at:] = other[dice.randrange(len(other) + 1) :]
            case _:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SLOW])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused_in_our_words(name: str, data: bytes) -> None:
    run(TARGETS[name], data)
