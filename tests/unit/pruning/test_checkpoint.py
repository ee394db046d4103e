"""A training that is interrupted, however, ends with the very weights of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from domain.ports import BuildAbandoned
from pruning.checkpoint import Checkpoint, Checkpoints
from pruning.precision import Compute
from pruning.recovery import Recipe, TrainingSet, train

CPU = Compute(torch.device("cpu"))
RECIPE = Recipe(epochs=3.0, learning_rate=0.05, batch=16, seed=5)
STEPS = 3 * 6


class Killed(BaseException):
    """The process is gone: nobody cleans up."""


def make(kind: str) -> nn.Module:
    torch.manual_seed(1)
    norm: nn.Module = nn.BatchNorm2d(4) if kind == "sgd" else nn.Flatten(2)
    last: list[nn.Module] = [nn.LayerNorm(4 * 36)] if kind == "adam" else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), *last, nn.Dropout(0.3), nn.Linear(4 * 36, 3))


def data() -> TrainingSet:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(100, 1, 8, 8, generator=generator)
    return TrainingSet(inputs, torch.randint(0, 3, (100,), generator=generator), max_shift=1)


def trained(
    kind: str, checkpoint: Checkpoint | None, progress: Callable[[float], None] = lambda done: None
) -> dict[str, Tensor]:
    model = make(kind)
    train(model, data(), RECIPE, CPU, progress=progress, checkpoint=checkpoint)
    return dict(model.state_dict())


def stopper(at: int, error: type[BaseException]) -> tuple[Callable[[float], None], list[float]]:
    seen: list[float] = []

    def progress(done: float) -> None:
        seen.append(done)
        if len(seen) == at:
            raise error

    return progress, seen


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [(7,), (3, 5, 4)], ids=["once", "again-and-again"])
@pytest.mark.parametrize("error", [Killed, BuildAbandoned])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, kind: str, stop: tuple[int, ...], error: type[BaseException]
) -> None:
    whole = trained(kind, None)
    kept = Checkpoints(tmp_path, every_s=0.0)
    steps = 0
    for at in stop:
        progress, seen = stopper(at, error)
        with pytest.raises(error):
            trained(kind, kept.of("a build", "recover"), progress)
        steps += len(seen)
        assert len(list(tmp_path.iterdir())) == 1
    seen = []
    after = trained(kind, kept.of("a build", "recover"), seen.append)
    assert len(seen) == STEPS - steps, "work that was done was done again"
    assert after.keys() == whole.keys()
    assert all(torch.equal(after[name], whole[name]) for name in whole)
    assert list(tmp_path.iterdir()) == [], "one that is over is forgotten"


def test_a_short_training_writes_nothing_and_another_build_s_is_not_taken(tmp_path: Path) -> None:
    progress, _ = stopper(5, Killed)
    with pytest.raises(Killed):
        trained("sgd", Checkpoints(tmp_path, every_s=60.0).of("a build"), progress)
    assert list(tmp_path.iterdir()) == []
    progress, _ = stopper(5, Killed)
    with pytest.raises(Killed):
        trained("sgd", Checkpoints(tmp_path, every_s=0.0).of("a build"), progress)
    seen: list[float] = []
    trained("sgd", Checkpoints(tmp_path, every_s=60.0).of("another build"), seen.append)
    assert len(seen) == STEPS


@pytest.mark.parametrize("spoil", ["torn", "of another network"])
def test_what_cannot_be_read_is_no_checkpoint(tmp_path: Path, spoil: str) -> None:
    kept = Checkpoints(tmp_path, every_s=0.0)
    progress, _ = stopper(5, Killed)
    with pytest.raises(Killed):
        trained("adam" if spoil == "of another network" else "sgd", kept.of("a build"), progress)
    (path,) = tmp_path.iterdir()
    if spoil == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    seen: list[float] = []
    after = trained("sgd", kept.of("a build"), seen.append)
    assert len(seen) == STEPS
    whole = trained("sgd", None)
    assert all(torch.equal(after[name], whole[name]) for name in whole)


def test_what_was_chosen_then_is_known_again(tmp_path: Path) -> None:
    one = Checkpoints(tmp_path, every_s=0.0).of("a build")
    assert one.peek("precision") is None
    one.notes["precision"] = "bf16"
    progress, _ = stopper(2, Killed)
    with pytest.raises(Killed):
        trained("sgd", one, progress)
    assert Checkpoints(tmp_path).of("a build").peek("precision") == "bf16"
