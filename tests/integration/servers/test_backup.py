"""A data folder saved while it works, lost, and brought back: the same jobs, the same bytes, and work that goes on."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from db.artifacts import FileArtifactStore
from db.engine import make_engine, schema_is_current, upgrade
from db.store import SqlJobStore
from domain.artifact import ArtifactKind
from domain.errors import Conflict, Invalid, NotFound
from tests.integration.db.samples import LEASE_S, Seeds, measured
from workers.servers.backup import DUMP, restore, save
from workers.servers.folders import ServerFolders, prepare_folders
from workers.servers.postgres import find_postgres, start_postgres, stop_postgres

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def places() -> Iterator[tuple[ServerFolders, ServerFolders, Path]]:
    """A data folder, a second one, and a place for backups."""
    root = Path(tempfile.mkdtemp(prefix="pl-"))
    root.chmod(0o755)
    first, second = (prepare_folders(root / name) for name in ("first", "second"))
    for folders in (first, second):
        folders.data_dir.chmod(0o755)
    yield first, second, root / "backup"
    for folders in (first, second):
        stop_postgres(folders)
        shutil.rmtree(folders.postgres_dir, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)


def test_a_lost_folder_is_brought_back_whole(places: tuple[ServerFolders, ServerFolders, Path]) -> None:
    first, second, place = places
    url = start_postgres(first)
    upgrade(url)
    engine = make_engine(url)
    store, files = SqlJobStore(engine), FileArtifactStore(first.data_dir / "artifacts")
    seeds = Seeds(store)
    job, lease = seeds.job("kept")
    box, row = seeds.device(), seeds.measurement(lease)
    done, waiting = row, seeds.measurement(lease)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, box.id, claim.attempt, measured())
    refs = [files.put_bytes(bytes([n]) * 1000, ArtifactKind.ONNX) for n in range(5)]
    for ref in refs:
        store.record_artifact(ref)
    (first.data_dir / "admin-token").write_text("pl_admin_secret\n")
    assert save(first, place) == 5
    refs.append(files.put_bytes(b"later", ArtifactKind.ONNX))
    store.record_artifact(refs[-1])
    assert save(first, place) == 1, "what is there is not copied again"
    assert find_postgres(first) is not None, "it works on"
    assert stat.S_IMODE((place / DUMP).stat().st_mode) == 0o600
    before = store.snapshot(job.id)
    events = store.events(job.id)
    engine.dispose()
    stop_postgres(first)
    shutil.rmtree(first.postgres_dir)
    shutil.rmtree(first.data_dir / "artifacts")

    assert restore(place, second) == 6
    engine = make_engine(start_postgres(second))
    store = SqlJobStore(engine)
    assert schema_is_current(engine)
    assert store.snapshot(job.id) == before
    assert store.events(job.id) == events
    assert store.measurement(done.id).outcome is not None
    restored = FileArtifactStore(second.data_dir / "artifacts")
    for ref in refs:
        assert store.artifact(ref.digest) == ref
        restored.read(ref.digest)
    assert (second.data_dir / "admin-token").read_text() == "pl_admin_secret\n"
    # The state machines, too, came back, and the work goes on where it was.
    with pytest.raises(Exception, match="may not move"), engine.begin() as connection:
        connection.execute(text("UPDATE measurement SET state = 'pending' WHERE state = 'done'"))
    again = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert again is not None and again.measurement_id == waiting.id
    engine.dispose()


def test_nothing_is_overwritten_and_nothing_is_made_up(places: tuple[ServerFolders, ServerFolders, Path]) -> None:
    first, second, place = places
    with pytest.raises(NotFound):
        save(first, place)
    with pytest.raises(Invalid):
        restore(place, second)
    upgrade(start_postgres(first))
    command = [sys.executable, "-m", "client", "backup", str(place), "--data-dir", str(first.data_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "saved" in done.stdout
    with pytest.raises(Conflict) as caught:
        restore(place, first)
    assert caught.value.code == "not_empty"
