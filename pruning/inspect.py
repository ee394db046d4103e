"""A model's groups without a build: nothing is trained, exported or stored. Run in a child process by ``workers.inspecting``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from domain.job import JobSpec
from domain.plan import Network, PlannedGroup, Whole
from domain.ports import ArtifactStore
from pruning.blocks import find_blocks
from pruning.cost import count_macs, count_params
from pruning.datasets import load_data
from pruning.dense import Dense, open_dense
from pruning.precision import choose_compute, choose_device


def inspect_job(spec: JobSpec, artifacts: ArtifactStore, datasets_dir: Path | None = None) -> Network:
    """Build a job's model with fresh weights, on its data's shape, and return what could be pruned.

    Raises:
        Invalid, NotFound: As a prepare build would fail.
    """

    def leave_fresh(model: nn.Module, dense: Dense) -> None:
        """Structure does not depend on weights."""

    compute = choose_compute(choose_device("cpu"), "fp32")
    splits = load_data(spec.data, artifacts, folder=datasets_dir)
    # An uploaded file is converted right here: this process is the limited child already.
    dense = open_dense(spec.model, splits, spec.objective.metric, spec.seed, compute, leave_fresh, artifacts)
    groups = dense.groups()
    return Network(
        groups=tuple(PlannedGroup(name=group.name, channels=group.info.channels) for group in groups.groups),
        blocks=tuple(block.name for block in find_blocks(dense.model, groups, dense.example)),
        unprunable=tuple(Whole(name=layer.name, reason=layer.reason) for layer in groups.unprunable),
        macs=count_macs(dense.model, dense.example),
        params=count_params(dense.model),
        source="traced",
    )
