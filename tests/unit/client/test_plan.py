"""What `submit --dry-run` shows."""

from __future__ import annotations

from client.plan import plan_block
from domain.device import DeviceState
from domain.job import JobSpec
from domain.plan import Cost, JobPlan, MatchedDevice, Network, Pace, PlannedGroup, PlannedTarget, QueuePlace, Whole
from tests.unit.client.test_render import SPEC, text_of


def plan(spec: JobSpec = SPEC, network: Network | None = None, ahead: int = 0) -> JobPlan:
    box = MatchedDevice(id="dev1", name="box", state=DeviceState.ACTIVE, is_online=False, queue_depth=0)
    return JobPlan(
        spec=spec,
        network=network,
        network_reason=None if network else "This server has no builder.",
        targets=(
            PlannedTarget(target=0, devices=(box,)),
            PlannedTarget(target=1, devices=(), reason="Target 1: no device matches labels class=phone."),
        ),
        cost=Cost(
            trials=4, finals=2, measurements=7, wall_budget_s=120, expected_s=90, pace=Pace(),
            queue=QueuePlace(ahead=ahead, searchers=1),
        ),
    )  # fmt: skip


def test_it_names_groups_devices_and_cost() -> None:
    network = Network(
        groups=(PlannedGroup(name="stem.0", channels=16),), blocks=("layers.1",), macs=904_000, params=56_600,
        unprunable=(Whole(name="classifier", reason="its channels are the outputs"),), source="traced",
    )  # fmt: skip
    text = text_of(plan_block(plan(network=network, ahead=3)))
    assert "56.6 k parameters, 904 k MACs, 1 groups" in text and "layers.1" in text
    assert "stem.0" in text and "classifier stays whole: its channels are the outputs" in text
    assert "target 0: box (offline)" in text
    assert "target 1: no device" in text and "class=phone" in text
    assert "about 1:30, 2:00 at most; up to 4 trials, 2 finals, 7 measurements" in text
    assert "3 before it" in text


def test_a_network_that_is_not_known_yet_is_no_error() -> None:
    assert "not known before it runs. This server has no builder." in text_of(plan_block(plan()))
