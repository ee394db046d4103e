"""Everything that is installed for us is pinned: what `make sbom` lists and `make audit` asks about is what runs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)")
OF_PIP = {"pip", "setuptools", "wheel"}  # what installs, not what is installed


def pins() -> dict[str, str]:
    lines = (PIN.match(line) for line in CONSTRAINTS.read_text().splitlines())
    return {canonicalize_name(found["name"]): found["version"] for found in lines if found}


def installed(extra: str) -> dict[str, str]:
    """Return name -> version of everything that one of our extras brings along here."""
    found: dict[str, str] = {}
    todo = [Requirement(f"pruneloop[{extra}]")]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        try:
            known = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # for another system
        name = canonicalize_name(wanted.name)
        if name != "pruneloop":
            found[name] = known.version.partition("+")[0]
        for of_extra in ("", *wanted.extras):
            if (name, of_extra) in seen:
                continue
            seen.add((name, of_extra))
            for line in known.requires or ():
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": of_extra}):
                    todo.append(requirement)
    return found


def test_whatever_the_tests_install_is_pinned_to_what_is_installed() -> None:
    pinned = pins()
    there = {name: version for name, version in installed("dev").items() if name not in OF_PIP}
    assert len(there) > 60
    loose = {name: version for name, version in there.items() if pinned.get(name) != version}
    assert not loose, "pin these in constraints.txt"


def test_no_pin_stands_there_twice() -> None:
    names = [
        canonicalize_name(found["name"]) for line in CONSTRAINTS.read_text().splitlines() if (found := PIN.match(line))
    ]
    assert len(names) == len(set(names))
