"""What every method prunes: models and data as a table, and the dense weights, trained once and the same for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.search_quality import fashion
from db.artifacts import FileArtifactStore
from domain.job import DataSpec, ModelSpec
from pruning.datasets import load_data
from pruning.datasets.npz import read_npz
from pruning.datasets.splits import as_splits
from pruning.dense import Dense, open_dense
from pruning.precision import choose_compute
from pruning.recovery import DENSE_RECIPE, Recipe, train
from pruning.weights import dump_weights, load_weights
from search.recipe import rate_of, stretch_of


@dataclass(frozen=True)
class Task:
    """A model on its data, and the recovery that every method ends with.

    The final recipe is common to all, with distillation from the dense model: ``final_epochs``, longer and at a higher rate for
    narrow networks, as ``search.recipe`` has it for ours. ``learning_rate`` is that of a peer's shorter trainings.
    """

    name: str
    model: str
    params: Mapping[str, Any]
    data: str = "mnist-5k"
    data_params: Mapping[str, Any] = field(default_factory=dict)
    dense_epochs: float = DENSE_RECIPE.epochs
    dense_learning_rate: float = DENSE_RECIPE.learning_rate
    final_epochs: float = 3.0
    learning_rate: float = 0.02

    def model_spec(self, weights: str | None = None) -> dict[str, Any]:
        """Return the job's ``model``; ``weights`` is a digest on the server."""
        return {"source": "builtin", "name": self.model, "params": dict(self.params), "weights": weights}

    @property
    def is_uploaded(self) -> bool:
        """Whether the data is a file that a job brings along."""
        return self.data == fashion.DATA

    def data_spec(self, upload: str | None = None) -> dict[str, Any]:
        """Return the job's ``data``; ``upload`` is a digest on the server."""
        if self.is_uploaded:
            return {"source": "npz", "artifact": upload}
        return {"source": "builtin", "name": self.data, "params": dict(self.data_params)}

    @property
    def missing(self) -> str | None:
        """What to install before it can be run; None where it can."""
        return fashion.missing() if self.is_uploaded else None

    @property
    def dense_recipe(self) -> Recipe:
        """How the dense weights are trained: once, and not on anybody's clock."""
        return replace(DENSE_RECIPE, epochs=self.dense_epochs, learning_rate=self.dense_learning_rate)

    @property
    def recipe_key(self) -> tuple[float, ...]:
        """The recipes in numbers: the rate on the way, then epochs and rate of the final one for some shares of the work."""
        finals = [self.final_recipe(0, share) for share in (1.0, 0.5, 0.25, 0.05)]
        return (self.learning_rate, *(round(x, 6) for one in finals for x in (one.epochs, one.learning_rate)))

    def recipe(self, seed: int, epochs: float) -> Recipe:
        """Return a recipe of so many epochs, for what a method trains on its way."""
        return Recipe(epochs=epochs, learning_rate=self.learning_rate, seed=seed)

    def final_recipe(self, seed: int, share: float) -> Recipe:
        """Return the common final recipe of a network of a share of the dense model's work."""
        return Recipe(epochs=stretch_of(share) * self.final_epochs, learning_rate=rate_of(share), seed=seed)


TASKS = {
    task.name: task
    for task in (
        Task("resnet", "resnet14", {"width": 32}),
        Task("resnet20", "resnet20", {"width": 32}),
        # The higher rate suits its narrow networks, whoever made them.
        Task("mobilenet", "mobilenet", {"width": 32}, learning_rate=0.05),
        Task("vit", "vit", {"dim": 64, "depth": 4, "heads": 4}, dense_epochs=15, dense_learning_rate=0.03),
        Task("fashion", "resnet20", {"width": 32}, data=fashion.DATA, final_epochs=2.0),
        Task("tiny", "resnet8", {"width": 16}, data="digits", final_epochs=1.0),  # to see that it works
    )
}
DEFAULT_TASKS = ("resnet", "mobilenet", "vit", "fashion")


@dataclass(frozen=True)
class DenseFiles:
    """Where a task's dense model lies. ``digest``: of the weights, part of the key of everything that starts from them."""

    weights: Path
    digest: str


def dense_files(task: Task, results: Path) -> DenseFiles:
    """Return the dense weights, trained first where they are not there yet."""
    told = {key: value for key, value in asdict(task).items() if key in {"model", "params", "data", "data_params"}}
    recipe = json.dumps([told, asdict(task.dense_recipe)], sort_keys=True)
    folder = results / "dense" / f"{task.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    path = folder / "weights.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        dense = _open(task, results, seed=0, weights=None)
        part = path.with_suffix(".part")
        part.write_bytes(dump_weights(dense.model))
        part.replace(path)
    return DenseFiles(path, hashlib.sha256(path.read_bytes()).hexdigest())


def open_task(task: Task, results: Path, seed: int) -> Dense:
    """Return the dense model with its data, calibrated in the order of a seed."""
    return _open(task, results, seed, dense_files(task, results).weights)


def data_file(task: Task, results: Path) -> Path:
    """Return the npz of a task whose data is uploaded, written first where it is not there."""
    return fashion.write_npz(results / "data" / f"{task.data}.npz")


def _open(task: Task, results: Path, seed: int, weights: Path | None) -> Dense:
    if task.is_uploaded:
        splits = as_splits(read_npz(data_file(task, results)))
    else:
        splits = load_data(DataSpec(**task.data_spec()), FileArtifactStore(results / "no-uploads"))
    compute = choose_compute(torch.device("cpu"), "auto")

    def fill(model: torch.nn.Module, dense: Dense) -> None:
        if weights is not None:
            load_weights(model, weights.read_bytes())
            return
        train(model, dense.training_set(distill=False, hold=nullcontext), task.dense_recipe, compute)

    return open_dense(ModelSpec(**task.model_spec()), splits, "accuracy", seed, compute, fill)
