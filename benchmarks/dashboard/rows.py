"""A job of a thousand trials and sixty groups, put into PostgreSQL row by row, as a search would have left it."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from datetime import UTC, datetime, timedelta

import numpy as np
from optuna.distributions import FloatDistribution, distribution_to_json
from sqlalchemy import Engine, insert

from db.ids import new_id
from db.models import build, job, measurement, measurement_sample, trial
from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef
from domain.build import (
    AccuracyReport,
    BuildKind,
    BuildResult,
    BuiltArtifact,
    CandidateRequest,
    PrepareRequest,
)
from domain.candidate import Candidate, GroupInfo
from domain.device import Inventory, RuntimeInfo
from domain.job import JobSpec, JobState, Stage
from domain.measurement import (
    CandidateTiming,
    FileTiming,
    Measured,
    MeasuredFile,
    MeasurementRequest,
    Verdict,
)
from domain.network import LayerInfo
from domain.ports import Registration
from domain.trial import TrialState, TrialValues

CHANNELS = (16, 32, 64, 128)
DENSE_MS, DENSE_ACCURACY, PAIRS = 4.0, 0.94, 60
SPREAD_S = 6.0


def seed_job(engine: Engine, *, trials: int, groups: int, seed: int = 0) -> str:
    """Write the job with its builds, measurements and raw samples; return its id."""
    rng = random.Random(seed)
    store = SqlJobStore(engine)
    device_id = _device(store)
    spec = JobSpec.model_validate(
        {
            "name": f"{trials} trials of {groups} groups",
            "model": {"name": "resnet56"},
            "data": {"name": "mnist-5k"},
            "targets": [{"speedup": 2.0}],
            "objective": {"max_drop": 0.02},
            "budget": {"trials": trials, "wall_s": 86400},
        }
    )
    job_id = new_id("job")
    found = [_group(index) for index in range(groups)]
    start = datetime.now(UTC) - timedelta(seconds=trials * SPREAD_S + 60)
    prepared = _result(BuildKind.PREPARE, _ref("dense"), {}, 1.0, DENSE_ACCURACY).model_copy(
        update={"groups": tuple(found), "layers": tuple(_layer(group) for group in found)}
    )
    prepare = PrepareRequest(model=spec.model, data=spec.data)
    builds = [_work(job_id, "prepare", prepare, prepared, start, kind="prepare", owner="build@bench:1")]
    measurements, samples, rows = [], [], []
    baseline = _measured(_ref("dense"), 1.0, rng)
    measurements.append(
        _measurement(job_id, "baseline:0", _ref("dense"), baseline, start + timedelta(seconds=30), device_id)
    )
    for number in range(trials):
        at = start + timedelta(seconds=60 + number * SPREAD_S)
        ambition = rng.random()
        keep = {g.name: max(1, round(g.channels * (1 - ambition * rng.random()) / 4) * 4) for g in found}
        share = sum(keep[g.name] / g.channels for g in found) / groups
        ratio = 0.1 + 0.9 * share**1.6 + rng.gauss(0, 0.01)
        accuracy = DENSE_ACCURACY - 0.25 * (1 - share) ** 2.5 - abs(rng.gauss(0, 0.004))
        candidate = Candidate(sparsity={g.name: round(1 - keep[g.name] / g.channels, 4) for g in found}, widths=keep)
        file = _ref(f"trial-{number}")
        request = CandidateRequest(model=spec.model, data=spec.data, weights=_ref("weights"), candidate=candidate)
        result = _result(BuildKind.CANDIDATE, file, keep, share, accuracy)
        builds.append(_work(job_id, f"c{number}", request, result, at, kind="candidate", owner="build@bench:1"))
        outcome = _measured(file, ratio, rng)
        measured = _measurement(job_id, f"m{number}", file, outcome, at + timedelta(seconds=4), device_id)
        measurements.append(measured)
        samples.append({"measurement_id": measured["id"], "position": 0, "pairs": PAIRS, "data": _raw(ratio, rng)})
        values = TrialValues(error=1 - accuracy, latency_ratio=ratio, constraints={"valid": -1.0})
        rows.append(
            {
                "id": f"trial_{job_id[4:]}_{number}",
                "job_id": job_id,
                "number": number,
                "target": 0,
                "study_number": number,
                "state": TrialState.SUCCEEDED,
                "params": {f"s_{g.name}": round(1 - keep[g.name] / g.channels, 4) for g in found},
                "distributions": {
                    f"s_{g.name}": json.loads(distribution_to_json(FloatDistribution(0.0, 1.0))) for g in found
                },
                "candidate": candidate.model_dump(mode="json"),
                "build_id": builds[-1]["id"],
                "measurement_id": measured["id"],
                "told": values.model_dump(mode="json"),
                "created_at": at,
                "finished_at": at + timedelta(seconds=5),
            }
        )
    over = {"state": JobState.STOPPED, "stage": Stage.DONE, "ended_by": "user", "finished_at": datetime.now(UTC)}
    with engine.begin() as connection:
        # Over from the first moment on, or a search worker would take it.
        connection.execute(
            insert(job).values(
                id=job_id, name=spec.name, spec=spec, created_at=start, started_at=start, trials_asked=trials, **over
            )
        )
        connection.execute(insert(build), builds)
        connection.execute(insert(measurement), measurements)
        connection.execute(insert(measurement_sample), samples)
        connection.execute(insert(trial), rows)
    return job_id


def _device(store: SqlJobStore) -> str:
    mark = new_id("bench")
    store.create_join_token(f"join-{mark}", expires_in=timedelta(hours=1), uses=1, labels={})
    inventory = Inventory(
        hostname="bench", machine="x86_64", cpu="a CPU", cores=4, memory_bytes=8 * 1024**3, os="Linux", kernel="6", python="3.11",
        agent_version="0.1.0", runtimes=(RuntimeInfo(name="onnxruntime", available=True, version="1", formats=("onnx",)),),
    )  # fmt: skip
    registration = Registration(
        name="bench", labels={}, inventory=inventory, device_token=f"device-{mark}", broker_secret=f"secret-{mark}"
    )
    return store.register_device(f"join-{mark}", registration).id


def _group(index: int) -> GroupInfo:
    stage = index * len(CHANNELS) // 60 if index < 60 else len(CHANNELS) - 1
    return GroupInfo(
        name=f"stage{stage + 1}.{index}.conv",
        channels=CHANNELS[stage],
        stage=stage,
        is_residual=index % 3 == 0,
        topology=f"s{stage}",
        members=(f"stage{stage + 1}.{index}.conv",),
        params=CHANNELS[stage] ** 2 * 9,
        macs=2_000_000,
    )


def _layer(group: GroupInfo) -> LayerInfo:
    return LayerInfo(
        name=group.name,
        macs=group.macs,
        positions=64,
        out_channels=group.channels,
        in_channels=group.channels,
        out_groups={group.name: 1},
    )


def _ref(name: str) -> ArtifactRef:
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return ArtifactRef(digest=digest, size_bytes=400_000, kind=ArtifactKind.ONNX)


def _result(kind: BuildKind, file: ArtifactRef, widths: dict[str, int], share: float, accuracy: float) -> BuildResult:
    return BuildResult(
        kind=kind,
        accuracy=AccuracyReport(search=accuracy),
        macs=int(120e6 * share),
        params=int(850e3 * share),
        widths=widths,
        weights=_ref("weights"),
        artifacts=(BuiltArtifact(format="onnx", artifact=file, check=_ref("check"), accuracy_search=accuracy),),
        stages_s={"prune": 0.1, "recover": 3.2, "export": 0.3},
    )


def _measured(file: ArtifactRef, ratio: float, rng: random.Random) -> Measured:
    speedup = 1 / ratio
    low, high = speedup * 0.993, speedup * 1.007
    latency = DENSE_MS / speedup
    own = {"load_ms": 5.0, "first_ms": 7.0, "runs": 400}
    timing = CandidateTiming(
        digest=file.digest,
        timing=FileTiming(latency_ms=latency, **own),
        latency_ms=latency,
        latency_ci_ms=(DENSE_MS / high, DENSE_MS / low),
        speedup=speedup,
        speedup_ci=(low, high),
        verdict=Verdict.FASTER if low > 1 else Verdict.TIE,
        pairs=PAIRS,
    )
    return Measured(
        baseline=FileTiming(latency_ms=DENSE_MS, latency_ci_ms=(3.98, 4.02), **own),
        candidates=(timing,),
        conditions={
            "device": "bench",
            "runtime": "onnxruntime",
            "threads": 1,
            "clock_mhz": 2400,
            "temperature_c": 48.0,
        },
        stages_s={"measure": 1.1},
    )


def _raw(ratio: float, rng: random.Random) -> bytes:
    rows = [(DENSE_MS + rng.gauss(0, 0.05), DENSE_MS * ratio + rng.gauss(0, 0.02), i * 0.02) for i in range(PAIRS)]
    return zlib.compress(np.array(rows, dtype="<f4").tobytes())


def _work(job_id: str, key: str, request: object, outcome: object, at: datetime, **more: object) -> dict[str, object]:
    return {
        "id": f"build_{job_id[4:]}_{key}",
        "job_id": job_id,
        "key": key,
        "request": request,
        "state": "done",
        "attempt": 1,
        "outcome": outcome,
        "created_at": at,
        "started_at": at + timedelta(seconds=0.2),
        "finished_at": at + timedelta(seconds=3.8),
        **more,
    }


def _measurement(
    job_id: str, key: str, file: ArtifactRef, outcome: Measured, at: datetime, device_id: str
) -> dict[str, object]:
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=MeasuredFile(artifact=_ref("dense")),
        candidates=(MeasuredFile(artifact=file),),
    )
    row = _work(job_id, key, request, outcome, at)
    return row | {
        "id": f"measurement_{job_id[4:]}_{key.replace(':', '_')}",
        "target": 0,
        "selector_labels": {},
        "runtime": "onnxruntime",
        "device_id": device_id,
    }
