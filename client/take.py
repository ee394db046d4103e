"""Bring a front's files to this machine, under names that say what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from client.api import PruneloopClient
from domain.formats import FORMATS
from domain.front import Front, Point, PointArtifact


def points_of(front: Front, *, trial: int | None = None) -> list[Point]:
    """Return the points whose files are wanted: one trial's, or the front with the dense model beside it."""
    if trial is None:
        return [*front.dense, *front.items]
    return [point for point in front.items if point.trial == trial]


def fetch_points(
    client: PruneloopClient, points: Sequence[Point], folder: Path, *, format: str | None = None
) -> dict[str, Path]:
    """Download the points' artifacts; return digest -> path..

    Raises:
        Unavailable: ``artifact_corrupt`` where bytes do not match their digest.
    """
    taken: dict[str, Path] = {}
    for point in points:
        for artifact in _wanted(point.artifacts, format):
            if artifact.digest not in taken:
                path = folder / file_name(point, artifact)
                taken[artifact.digest] = client.download(artifact.digest, path)
    return taken


def file_name(point: Point, artifact: PointArtifact) -> str:
    """Return a point's file name: ``t0-trial-007-int8.onnx``, ``t0-dense-fp32.onnx``."""
    who = "dense" if point.trial is None else f"trial-{point.trial:03d}"
    known = FORMATS.get(artifact.format)
    extension = known.suffix if known else re.sub(r"[^a-z0-9]", "", artifact.format.lower()) or "bin"
    return f"t{point.target}-{who}-{point.precision}.{extension}"


def _wanted(artifacts: Iterable[PointArtifact], format: str | None) -> list[PointArtifact]:
    return [artifact for artifact in artifacts if format is None or artifact.format == format]
