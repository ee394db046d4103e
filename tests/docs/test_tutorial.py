"""The tutorial, done from its first command to its last: own network, own data, a second device, a file that runs.

`make test-docs` does it in a fresh clone, where `make install` installs; here the working tree and this environment stand
for those.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.connection import local_server
from client.session import Client
from domain.job import JobState
from tests.docs.doing import Reader
from tests.docs.generated import DOCS, ROOT
from tests.docs.reading import Block, blocks_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

IS_FRESH = os.environ.get("PRUNELOOP_TEST_DOCS") == "1"
PAGE = DOCS / "tutorial.md"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    folder = Path(tempfile.mkdtemp(prefix="pl-docs-"))
    folder.chmod(0o755)  # as root, PostgreSQL's unprivileged user walks through it
    someone = Reader(folder, is_fresh=IS_FRESH)
    yield someone
    someone.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_tutorial_does_what_it_says(reader: Reader) -> None:
    blocks = blocks_of(PAGE)
    assert not [block.where for block in blocks if block.reason], "the tutorial has nothing that cannot run here"
    said = {block.code: reader.do(block) for block in blocks}

    server = local_server(reader.checkout / ".pruneloop")
    assert server is not None
    with Client(server.url, server.token) as pruneloop:
        (plan,) = [text for code, text in said.items() if "--dry-run" in code]
        assert "features.6" in plan and "nothing was stored" in plan
        (view,) = pruneloop.jobs()
        assert view.state is JobState.SUCCEEDED, view.reason
        edge = {device.id for device in pruneloop.devices() if device.labels == {"class": "edge"}}
        others = [device.id for device in pruneloop.devices() if device.id not in edge]
        assert len(edge) == 1 and len(others) == 1, "two devices: this machine, and the one that joined by the line"
        front = pruneloop.job(view.id).front()
        assert front.front.is_final and front.best is not None
        assert all(point.speedup_ci[0] > 1.0 for point in front)
    printed = re.search(r"trial-(\d+)-fp32.onnx: accuracy (\d\.\d{4})", said['python ../my-net/deploy.py "$best"\n'])
    assert printed is not None
    (point,) = [one for one in front if one.trial == int(printed[1])]
    assert point.accuracy == pytest.approx(float(printed[2]), abs=5e-5)


OTHER_PAGES = [
    page for page in sorted(DOCS.rglob("*.md")) if page != PAGE and any(one.is_run for one in blocks_of(page))
]


@pytest.mark.skipif(not IS_FRESH, reason="every other page's commands, ten minutes: `make test-docs`")
@pytest.mark.parametrize("page", OTHER_PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_does_what_it_says(reader: Reader, page: Path) -> None:
    """On the system that the tutorial leaves, in the same checkout."""
    for block in blocks_of(page):
        reader.do(block)


@pytest.mark.skipif(not IS_FRESH, reason="a demo of its own, minutes: `make test-docs`")
def test_the_demo_of_the_readme_prints_a_front(reader: Reader) -> None:
    said = reader.do(Block(PAGE, 0, "sh", "pruneloop demo --data-dir demo --trials 3\n"))
    assert "dense" in said and "speed-up" in said
    folder = re.search(r"^Files: (.+)$", said, re.MULTILINE)
    assert folder is not None
    kept = reader.checkout / folder[1]
    assert (kept / "t0-dense-fp32.onnx").is_file() and '"is_final": true' in (kept / "t0-front.json").read_text()


@pytest.mark.parametrize("block", [one for one in blocks_of(PAGE) if one.file], ids=lambda block: Path(block.file).name)
def test_a_file_of_the_tutorial_is_that_of_the_example(block: Block) -> None:
    assert block.file is not None
    assert block.code == (ROOT / "examples/digits_net" / Path(block.file).name).read_text()
