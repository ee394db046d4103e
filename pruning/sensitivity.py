"""What each group is worth: found by narrowing it alone, once a job."""

from __future__ import annotations

from domain.candidate import Candidate, GroupInfo
from pruning.accuracy import predict
from pruning.dense import Dense
from pruning.groups import Group
from pruning.recovery import reestimate_batch_norm
from pruning.stopwatch import Stopwatch

SPARSITIES = (0.75, 0.5)  # the next is asked only where this one lost more than so much accuracy
LEAST_LOSS = 0.01


def score_groups(dense: Dense, watch: Stopwatch, *, samples: int) -> tuple[GroupInfo, ...]:
    """Narrow one group at a time, re-estimate batch norm, and note what accuracy is lost.

    A group that hardly loses by three quarters is not asked what it loses by half: a search that begins a second earlier is worth
    more than a number next to nothing.

    Args:
        dense: The job's dense model.
        watch: Told the fraction done; its hold is entered round every batch.
        samples: Samples of val, and half as many of the calibration samples.
    """
    inputs = dense.splits.val[0][:samples]
    labels = dense.labels("val", watch.hold)[:samples]
    calibration = dense.calibration()[0]
    base = dense.score(predict(dense.model, inputs, dense.compute, hold=watch.hold, is_rough=True), labels)
    mix = Candidate(sparsity={}, widths={}).importance

    def lost(group: Group, sparsity: float) -> float:
        model = dense.prune({group.name: max(1, round(group.channels * (1 - sparsity)))}, mix, watch.hold)
        reestimate_batch_norm(model, calibration, dense.compute, hold=watch.hold, samples=samples // 2)
        outputs = predict(model, inputs, dense.compute, hold=watch.hold, is_rough=True)
        return round(base - dense.score(outputs, labels), 6)

    infos = []
    groups = dense.groups().groups
    for number, group in enumerate(groups):
        losses: dict[str, float] = {}
        for sparsity in SPARSITIES:
            if all(loss > LEAST_LOSS for loss in losses.values()):
                losses[str(sparsity)] = lost(group, sparsity)
        infos.append(group.info.model_copy(update={"sensitivity": losses}))
        watch.tell((number + 1) / len(groups))
    return tuple(infos)
