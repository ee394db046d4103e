"""A front in the unit of the user's metric: an error is better when it is smaller, and the search need not know."""

from __future__ import annotations

import pytest

from client.render import front_table, make_console
from search.front import build_front
from search.loop import SearchLoop
from search.service import JobService
from tests.unit.search.fakes import FakeLauncher, MemoryArtifacts, World, make_spec
from tests.unit.search.surfaces import FEW, SPREAD
from tests.unit.search.test_service import CAN


@pytest.mark.parametrize("metric", ["accuracy", "rmse"])
def test_a_front_tells_the_metric_in_its_own_unit(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    world, artifacts, launcher = World(groups=FEW), MemoryArtifacts(), FakeLauncher()
    can = CAN.__class__(**{**CAN.__dict__, "metrics": ("accuracy", "rmse")})
    service = JobService(world, artifacts, launcher, can)
    spec = make_spec(objective={"metric": metric, "max_drop": 0.02}, budget={"trials": 12, "wall_s": 900})
    job, _ = service.create_job(spec)
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, launcher, artifacts).run(lease, until=lambda: False)
    front = build_front(world.snapshot(job.id), 0)
    assert front.is_final and len(front.items) > 1
    dense = front.dense[0]
    for point in (*front.items, dense):
        assert point.metric == metric and point.accuracy is not None and point.metric_value is not None
        own = (1 - point.accuracy) * SPREAD if metric == "rmse" else point.accuracy
        assert point.metric_value == pytest.approx(own)
    assert dense.metric_value is not None
    within = [point for point in front.items if point.within_max_drop]
    assert within
    for point in within:
        assert point.metric_value is not None
        lost = point.metric_value - dense.metric_value if metric == "rmse" else dense.metric_value - point.metric_value
        assert lost <= 0.02 * (SPREAD if metric == "rmse" else 1) + 1e-9
    values = [point.metric_value for point in front.items]
    assert values == sorted(values, reverse=metric == "rmse")  # fastest first, and so worst first
    make_console().print(front_table(front, job.spec))
    shown = capsys.readouterr().out
    assert metric in shown and f"{dense.metric_value:.4f}" in shown
    assert ("less is better" in shown) == (metric == "rmse")
