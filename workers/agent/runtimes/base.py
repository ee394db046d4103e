"""What a runtime is: something that loads a file of a format and runs it on inputs already in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from domain.device import RuntimeInfo
from domain.errors import Invalid, Unavailable

Array = NDArray[Any]


class UnreadableArtifact(Invalid):
    """The file is not what its format says, or this runtime cannot take it."""

    default_code = "unreadable_artifact"


class RuntimeMissing(Unavailable):
    """The runtime is not installed or does not work here; the message says what to install."""

    default_code = "runtime_missing"


@dataclass(frozen=True)
class TensorSpec:
    """An input: name, shape with None where any size goes, numpy dtype name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@runtime_checkable
class RuntimeSession(Protocol):
    """A loaded file. ``run`` computes synchronously on what ``bind`` put into memory, and moves no data it need not."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def conditions(self) -> Mapping[str, JsonValue]:
        """Version, provider and every option that changes speed, for the record."""
        ...

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """Put inputs where ``run`` finds them. Raises UnreadableArtifact if the file cannot take them."""
        ...

    def run(self) -> None: ...

    def outputs(self) -> dict[str, Array]:
        """Return copies of what the last ``run`` gave, by output name."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """One way to execute files. Cheap to make: whatever it stands on is imported in ``probe`` and ``load``, not before."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[str, ...]:
        """Artifact kinds it can load, as in ``domain.artifact.ArtifactKind``."""
        ...

    def probe(self) -> RuntimeInfo:
        """Say whether it works here. Never raises: what is missing is named in ``detail``."""
        ...

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> RuntimeSession:
        """Load a file.

        Raises:
            UnreadableArtifact: If the file is corrupt or uses what this runtime cannot do.
            RuntimeMissing: If the runtime itself does not work.
        """
        ...


def random_feeds(inputs: tuple[TensorSpec, ...], *, batch: int, seed: int = 0) -> dict[str, Array]:
    """Make inputs for a file that came without a check: normal values, none of them zero or denormal.

    A free first axis is the batch; any other free axis is 1.

    Raises:
        UnreadableArtifact: If the file is fixed to another batch: it would be timed at one batch and told of at another.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        if len(spec.shape) > 1 and spec.shape[0] not in {None, batch}:
            raise UnreadableArtifact(
                f"Input {spec.name} is fixed to a batch of {spec.shape[0]}, asked is {batch}; "
                f"measure with batch {spec.shape[0]} or export the file with batch {batch}."
            )
        shape = tuple(size if size is not None else (batch if axis == 0 else 1) for axis, size in enumerate(spec.shape))
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            values = rng.standard_normal(shape)
            feeds[spec.name] = np.where(np.abs(values) < 1e-3, 1e-3, values).astype(dtype)
        elif dtype.kind == "b":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[spec.name] = rng.integers(1, 3, shape).astype(dtype)
    return feeds
