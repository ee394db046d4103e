"""What a change costs, told roughly: on part of val, without recovery, in the precision of calibration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from domain.ports import Hold
from pruning.accuracy import predict
from pruning.dense import Dense
from pruning.recovery import reestimate_batch_norm


@dataclass(frozen=True)
class Rough:
    """Scores changed copies of a dense model beside the dense model itself, which is run once.

    Args:
        dense: The job's dense model.
        samples: Samples of val, and half as many of the calibration samples.
        hold: Entered round every batch.
    """

    dense: Dense
    samples: int
    hold: Hold

    @cached_property
    def whole(self) -> Tensor:
        """The dense model's outputs, ``(samples, values)``."""
        return self.outputs(self.dense.model)

    def outputs(self, model: nn.Module) -> Tensor:
        """Return a model's outputs as it is, ``(samples, values)``."""
        inputs = self.dense.splits.val[0][: self.samples]
        return predict(model, inputs, self.dense.compute, hold=self.hold, is_rough=True)

    def lost(self, model: nn.Module) -> float:
        """Re-estimate a model's batch norms, in place, and return the accuracy it has less than the dense model."""
        calibration = self.dense.calibration()[0]
        reestimate_batch_norm(model, calibration, self.dense.compute, hold=self.hold, samples=self.samples // 2)
        labels = self.dense.labels("val", self.hold)[: self.samples]
        return round(self.dense.score(self.whole, labels) - self.dense.score(self.outputs(model), labels), 6)
