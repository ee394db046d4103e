"""The manifest that travels with a final artifact: what it is, what it promises, and how to check the promise. Pure."""

from __future__ import annotations

import json

from pydantic import JsonValue

from domain.build import BuildResult, FinalRequest
from domain.front import Point
from domain.ports import JobSnapshot
from search.inherit import lineage
from search.view import View


def build_manifest(snapshot: JobSnapshot, point: Point, dense: Point) -> bytes:
    """Return the manifest of a point's measured file as JSON, UTF-8, keys sorted: equal points give equal bytes.

    Args:
        snapshot: The job the point is of.
        point: A final point; for the dense model, ``dense`` itself.
        dense: The dense model in the same runtime and precision.
    """
    job = snapshot.job
    digest = point.artifacts[0].digest
    target = job.spec.targets[point.target]
    build = next(
        (
            b
            for b in snapshot.builds
            if isinstance(b.request, FinalRequest)
            and isinstance(b.outcome, BuildResult)
            and any(built.artifact.digest == digest for built in b.outcome.artifacts)
        ),
        None,
    )
    result = build.outcome if build is not None and isinstance(build.outcome, BuildResult) else None
    request = build.request if build is not None else None
    dense_digest = dense.artifacts[0].digest
    body = {
        "schema": "pruneloop.manifest/1",
        "artifact": point.artifacts[0].model_dump(mode="json"),
        "other_formats": [artifact.model_dump(mode="json") for artifact in point.artifacts[1:]],
        "job": {"id": job.id, "name": job.name, "seed": job.spec.seed},
        "trial": point.trial,
        "target": {"index": point.target, **target.model_dump(mode="json")},
        "model": job.spec.model.model_dump(mode="json"),
        "data": job.spec.data.model_dump(mode="json"),
        "build": request.model_dump(mode="json", exclude={"model", "data"}) if request is not None else None,
        "lineage": _lineage(snapshot, point),
        "versions": dict(result.versions) if result is not None else {},
        "precision": point.precision,
        "sparsity": point.candidate,
        "widths": point.widths,
        "macs": point.macs,
        "params": point.params,
        "accuracy": {
            "metric": point.metric,
            "metric_value": point.metric_value,
            "test": point.accuracy,
            "test_samples": point.test_samples,
            "search": point.accuracy_search,
            "dense_test": dense.accuracy,
        },
        "latency": {
            "latency_ms": point.latency_ms,
            "latency_ci_ms": point.latency_ci_ms,
            "speedup": point.speedup,
            "speedup_ci": point.speedup_ci,
            "baseline_latency_ms": dense.latency_ms,
            "baseline_digest": dense_digest,
            "is_noisy": point.is_noisy,
            "measured_at": point.measured_at.isoformat(),
        },
        "conditions": point.conditions,
        "reproduce": (
            f"pruneloop bench {file_name(point)} --against {file_name(dense)} "
            f"--runtime {target.runtime} --threads {target.threads}"
        ),
    }
    return json.dumps(body, sort_keys=True, indent=2).encode()


def _lineage(snapshot: JobSnapshot, point: Point) -> list[JsonValue]:
    """Return every recovery that led to a point's weights, the oldest first; the final recovery, in ``build``, comes after them."""
    view = View(snapshot)
    trial = view.trials_by_number.get(point.trial) if point.trial is not None else None
    if trial is None:
        return []
    return [
        {
            "trial": one.number,
            "epochs": one.candidate.recovery.epochs,
            "learning_rate": one.candidate.recovery.learning_rate,
        }
        for one in lineage(view, trial)
    ]


def file_name(point: Point) -> str:
    """Return the name that ``pruneloop download`` gives a point's measured file."""
    who = "dense" if point.trial is None else f"trial-{point.trial:03d}"
    return f"t{point.target}-{who}-{point.precision}.{point.artifacts[0].format}"
