"""What is old goes, and only that: nothing a living job names, nothing a front refers to, nothing used again meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text

from db.artifacts import FileArtifactStore
from db.models import measurement_sample, stale_outcome
from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef
from domain.build import PrepareRequest
from domain.errors import NotFound
from domain.job import JobVerb
from domain.measurement import MeasuredFile, MeasurementRequest
from domain.ports import NewMeasurement
from tests.integration.db.samples import LEASE_S, Seeds, built, measured, prepare
from workers.retention import DAY_S, Collected, collect

OLD_S = 30 * DAY_S


class Shelf:
    """Files that are stored and recorded, and made old at will."""

    def __init__(self, store: SqlJobStore, engine: Engine, root: Path) -> None:
        self._store, self._engine = store, engine
        self.files = FileArtifactStore(root)

    def put(self, data: bytes) -> ArtifactRef:
        ref = self.files.put_bytes(data, ArtifactKind.ONNX)
        self._store.record_artifact(ref)
        return ref

    def age(self, *refs: ArtifactRef) -> None:
        with self._engine.begin() as connection:
            for ref in refs:
                aged = "UPDATE artifact SET used_at = now() - interval '60 days' WHERE digest = :digest"
                connection.execute(text(aged), {"digest": ref.digest})
                os.utime(self.files.local_path(ref.digest), (time.time() - 60 * DAY_S,) * 2)

    def end_long_ago(self, job_id: str) -> None:
        self._store.apply_verb(job_id, JobVerb.CANCEL)
        with self._engine.begin() as connection:
            ended = "UPDATE job SET finished_at = now() - interval '60 days' WHERE id = :id"
            connection.execute(text(ended), {"id": job_id})

    def has(self, ref: ArtifactRef) -> bool:
        try:
            known = self._store.artifact(ref.digest) == ref
        except NotFound:
            known = False
        assert known == self.files.exists(ref.digest), "a row without its file, or a file without its row"
        return known


@pytest.fixture
def shelf(store: SqlJobStore, engine: Engine, tmp_path: Path) -> Shelf:
    return Shelf(store, engine, tmp_path)


def count(engine: Engine, table: object) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]


def measure(store: SqlJobStore, seeds: Seeds, dense: ArtifactRef, pruned: ArtifactRef) -> str:
    """A job that measured one file against another; it goes on."""
    job, lease = seeds.job()
    request = MeasurementRequest(
        runtime="onnxruntime", baseline=MeasuredFile(artifact=dense), candidates=(MeasuredFile(artifact=pruned),)
    )
    row = store.add_measurement(
        lease, NewMeasurement(key="m", target=0, selector=job.spec.targets[0].device, request=request)
    )
    box = seeds.device()
    store.claim_measurement(box.id, lease_s=0.0)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    with pytest.raises(Exception, match="no longer"):
        store.finish_measurement(row.id, box.id, claim.attempt - 1, measured())
    store.finish_measurement(row.id, box.id, claim.attempt, measured())
    return job.id


def test_files_of_living_and_young_jobs_stay_and_those_of_old_ones_go(
    store: SqlJobStore, seeds: Seeds, engine: Engine, shelf: Shelf
) -> None:
    refs = {
        name: shelf.put(name.encode()) for name in ("old", "shared", "living", "ended lately", "stray", "fresh stray")
    }
    old = measure(store, seeds, refs["shared"], refs["old"])
    measure(store, seeds, refs["shared"], refs["living"])
    lately = measure(store, seeds, refs["shared"], refs["ended lately"])
    store.apply_verb(lately, JobVerb.CANCEL)
    shelf.end_long_ago(old)
    shelf.age(*(ref for name, ref in refs.items() if name != "fresh stray"))
    samples, late = count(engine, measurement_sample), count(engine, stale_outcome)
    assert (samples > 0, late) == (True, 3)
    assert collect(store, shelf.files, older_than_s=OLD_S) == Collected(jobs=1, samples=samples // 3, files=2)
    assert {name for name, ref in refs.items() if shelf.has(ref)} == {"shared", "living", "ended lately", "fresh stray"}
    assert (count(engine, measurement_sample), count(engine, stale_outcome)) == (samples - samples // 3, 2)
    assert store.snapshot(old).measurements[0].outcome is not None, "the summary stays"
    assert collect(store, shelf.files, older_than_s=OLD_S) == Collected()


def test_what_a_collected_job_keeps_stays_with_its_samples(
    store: SqlJobStore, seeds: Seeds, engine: Engine, shelf: Shelf
) -> None:
    dense, point, loser = (shelf.put(name) for name in (b"dense", b"point", b"loser"))
    kept, lost = measure(store, seeds, dense, point), measure(store, seeds, dense, loser)
    samples = count(engine, measurement_sample)
    for job_id, digests in ((kept, {dense.digest, point.digest}), (lost, {dense.digest})):
        shelf.end_long_ago(job_id)
        store.collect_job(job_id, digests)
    shelf.age(dense, point, loser)
    collect(store, shelf.files, older_than_s=OLD_S)
    assert [shelf.has(ref) for ref in (dense, point, loser)] == [True, True, False]
    assert count(engine, measurement_sample) == samples // 2
    assert store.measurement(store.snapshot(kept).measurements[0].id).outcome is not None


def test_a_file_used_again_meanwhile_stays(store: SqlJobStore, seeds: Seeds, shelf: Shelf) -> None:
    ref = shelf.put(b"weights")
    shelf.age(ref)
    assert store.unused_files(older_than_s=OLD_S) == [ref.digest]
    shelf.put(b"weights")  # a build makes the same bytes again while we look
    assert not store.forget_file(ref.digest, older_than_s=OLD_S)
    assert not shelf.files.remove(ref.digest, unused_for_s=OLD_S)
    assert shelf.has(ref)


def test_a_collected_jobs_builds_are_not_adopted(store: SqlJobStore, seeds: Seeds, shelf: Shelf) -> None:
    job, lease = seeds.job()
    queued = store.add_build(lease, prepare())
    build = store.claim_build("builder", lease_s=LEASE_S)
    assert build is not None and isinstance(build.request, PrepareRequest)
    store.finish_build(build.id, build.attempt, built())
    found = store.find_build(queued.key)
    assert found is not None
    shelf.end_long_ago(job.id)
    collect(store, shelf.files, older_than_s=OLD_S)
    assert store.find_build(queued.key) is None
