"""What pages say is so: commands are ours, jobs are jobs, code compiles; what no test can run is counted, with its reason.

The tutorial runs in every test run (test_tutorial.py), all other pages under `make test-docs`, on the system the tutorial leaves.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from client.__main__ import make_app
from client.files import with_uploads
from domain.job import JobSpec
from tests.docs.generated import DOCS, PAGES, ROOT
from tests.docs.reading import Block, blocks_of

ALL = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
BLOCKS = [block for page in ALL for block in blocks_of(page)]
OPERATORS = {"|", "&&", "||", ";", "&", ">", ">>", "<", "2>", "(", ")"}

# Why blocks are not run by any test, and how many: a new one has to be argued for here.
NOT_RUN = {
    "a Raspberry Pi": 4,
    "containers, on hosts of your own": 3,
    "systemd, on a host of your own": 3,
    "a PostgreSQL of your own": 2,
    "an NVIDIA GPU": 2,
    "another machine on a network": 2,
    "this is the test run; `make test-docs` does a short demo": 1,
    "a summary; the tutorial runs each": 1,
    "a file of a job of your own": 1,
    "agents that run for good; tests/unit/agent/test_replay.py runs all three": 1,
    "a second server beside the first": 1,
    "a server for a browser; `make test-trackers` starts it": 1,
    "packages of the extra `trackers`; `make test-trackers` runs both offline": 1,
    "it would end the devices the other pages use": 1,
    "names and certificates of your own": 1,
    # Libraries that Pruneloop does without, each with the test that has them installed.
    "in the environment that has TensorFlow, on a model of your own; `make test-keras` does it on the example": 1,
    "a library and weights of your own; `make test-zoo` prunes trained models of all three": 1,
    "it fetches a dataset from its hub; `make test-zoo` reads what `datasets` writes": 1,
    "packages of the extra `zoo`, and a class to be filled in; `make test-zoo` scores a detector so": 1,
}


def _id(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def test_what_cannot_run_here_is_counted_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = Counter(block.reason for block in BLOCKS if block.reason)
    with capsys.disabled():
        print(f"\nblocks of the pages: {sum(block.is_run for block in BLOCKS)} run, not run: {dict(found)}")  # noqa: T201
    assert found == NOT_RUN


def commands_in(script: str) -> list[list[str]]:
    """Return the words of every call of ``pruneloop`` in a script, up to the next operator of the shell."""
    script = re.sub(r"\\\n\s*", " ", script)
    found = []
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
        for index, word in enumerate(words):
            first = index == 0 or words[index - 1] in OPERATORS or re.match(r"\w+=", words[index - 1])
            if word.endswith("bin/pruneloop") or (word == "pruneloop" and first):
                rest = words[index + 1 :]
                end = next((i for i, one in enumerate(rest) if set(one) <= set("|&;<>()")), len(rest))
                found.append(rest[:end])
    return found


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh" and commands_in(one.code)], ids=_id)
def test_commands_are_those_of_the_command_line(block: Block) -> None:
    """Every command and option that a page names is one; nothing is run."""
    root = typer.main.get_command(make_app())
    for words in commands_in(block.code):
        command: Any = root
        context = command.make_context("pruneloop", [], resilient_parsing=True)
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
            context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
        try:
            command.make_parser(context).parse_args([re.sub(r"^\$.*", "1", word) for word in rest])
        except Exception as error:  # of the click that typer carries with it, which has no public name
            raise AssertionError(f"pruneloop {' '.join(words)}: {error}") from error


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh"], ids=_id)
def test_a_script_is_one_and_its_make_targets_are_there(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert not set(re.findall(r"^\s*make ([a-z][\w-]*)", block.code, flags=re.MULTILINE)) - targets


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "yaml"], ids=_id)
def test_a_job_on_a_page_is_a_job(block: Block) -> None:
    spec = yaml.safe_load(block.code)
    if isinstance(spec, dict) and {"model", "data", "targets"} <= set(spec):
        digests = with_uploads(spec, Path("/"), lambda *_: "sha256:" + "0" * 64, exists=lambda _: True)
        JobSpec.model_validate(digests or spec)


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if one.language == "python" and "reference/" not in _id(one)], ids=_id
)
def test_python_on_a_page_compiles(block: Block) -> None:
    compile(block.code, block.where, "exec")


def test_files_that_pages_name_are_there() -> None:
    """`pruning/rebuild.py` in a page is a file of the repository."""
    rooms = "api|benchmarks|client|db|docs|domain|examples|pruning|search|tests|workers"
    missing = {  # figures in docs/benchmarks are written by runs of hours
        f"{page.relative_to(ROOT)}: {name}"
        for page in ALL
        if str(page.relative_to(DOCS) if page.is_relative_to(DOCS) else "") not in PAGES
        for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)`", page.read_text())
        if not name.startswith("docs/benchmarks/") and not (ROOT / name).exists()
    }
    assert not missing


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_links_of_the_pages_beside_the_site_lead_to_files(page: Path) -> None:
    """MkDocs follows those of docs/ only."""
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert re.match(r"https?://", link) or (ROOT / link).exists(), f"{page.name}: {link}"
