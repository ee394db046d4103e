"""Where a search begins: a chain of ever faster networks, each cut from the one before."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from domain.build import CandidateRequest
from domain.candidate import GroupInfo
from domain.job import JobState
from domain.trial import TrialState
from search.chain import FIRST, MILD, chain_of, next_link
from search.inherit import inherited, lineage
from search.knapsack import fastest_of
from search.loop import SearchLoop
from search.models import fit_models, network_of
from search.options import Parts
from search.space import SearchSpace
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import MANY

TAME = tuple(
    one.model_copy(update={"sensitivity": {at: lost / 4 for at, lost in one.sensitivity.items()}}) for one in MANY
)


def run(
    trials: int = 40,
    *,
    parts: Parts | None = None,
    done: int | None = None,
    groups: tuple[GroupInfo, ...] = MANY,
    is_slow: bool = False,
    **spec: object,
) -> tuple[World, View]:
    world = World(groups=groups)
    world.builder.is_slow_to_recover = is_slow
    job, _ = world.create_job(make_spec(**{"budget": {"trials": trials}, "objective": {"max_drop": 0.1}, **spec}))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    loop = SearchLoop(world, FakeLauncher(), parts=parts or Parts())
    loop.run(lease, until=lambda: done is not None and len(world.trial_rows) >= done)
    return world, View(world.snapshot(job.id))


def start_of(view: View, number: int) -> CandidateRequest:
    build = view.builds_by_id[view.trials_by_number[number].build_id or ""]
    assert isinstance(build.request, CandidateRequest)
    return build.request


def test_each_link_is_cut_from_the_one_before_and_is_faster():
    _, view = run(groups=TAME, is_slow=True)
    links = chain_of(view, 0)
    assert len(links) >= 4
    for before, link in pairwise(links):
        start = start_of(view, link.number).start
        assert start is not None
        assert start.candidate.architecture == before.candidate.architecture
        assert all(link.candidate.widths[name] <= width for name, width in before.candidate.widths.items())
    ratios = [link.values.latency_ratio for link in links if link.values is not None]
    assert ratios == sorted(ratios, reverse=True)
    assert start_of(view, links[0].number).start is None


@pytest.mark.parametrize(("max_drop", "share"), [(0.15, 0.5), (0.3, 0.75)])
def test_from_a_bold_link_that_lost_more_than_was_allowed_the_chain_goes_part_of_the_way_back(max_drop, share):
    _, view = run(objective={"max_drop": max_drop})
    links = chain_of(view, 0)
    first, second = links[:2]
    assert first.values is not None and second.values is not None
    lost = first.values.error - (1.0 - view.dense_accuracy(0))
    assert max_drop < lost <= 3 * max_drop and (lost > 1.5 * max_drop) == (share == 0.5)
    assert start_of(view, second.number).start is None  # cut from the dense model again
    assert second.values.latency_ratio == pytest.approx(first.values.latency_ratio**share, rel=0.1)
    assert links[-1].values is not None and links[-1].values.latency_ratio < first.values.latency_ratio  # and past it


def test_the_next_link_waits_for_the_weights_of_the_last_and_the_device_does_not():
    world = World(groups=MANY)
    world.create_job(make_spec(budget={"trials": 40}, objective={"max_drop": 0.1}))
    seen: list[tuple[int, int]] = []

    def look(world: World) -> None:
        links = [t for t in world.trial_rows.values() if (t.seed_name or "").startswith("chain")]
        building = sum(t.state is TrialState.BUILDING for t in links)
        seen.append((building, sum(t.state is TrialState.MEASURING for t in links)))

    world.before_wait = look
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: len(world.trial_rows) >= 6)
    assert max(building for building, _ in seen) == 1
    assert (1, 1) in seen  # one is built while another is measured


def test_a_chain_goes_half_way_back_from_a_link_that_lost_too_much_and_ends_between():
    _, view = run(trials=200, objective={"max_drop": 0.002})
    links = chain_of(view, 0)
    lost = {t.number: view.dense_accuracy(0) - b.accuracy.search for t in links if (b := view.built(t)) is not None}
    ratios = {t.number: t.values.latency_ratio for t in links if t.values is not None}
    assert lost[links[0].number] > 0.03  # a bold first step
    going, least = 1.0, 0.0
    for before, link in pairwise(links):
        if lost[before.number] <= 0.03:
            going = ratios[before.number]
        else:
            least = max(least, ratios[before.number])
        assert least < ratios[link.number] < going, "between the fastest that is allowed and what lost too much"
    assert any(drop <= 0.03 for drop in lost.values())
    space = SearchSpace(network_of(view, 0), view.spec.recovery)
    assert next_link(space, view, 0, fit_models(view, 0), limit=100) is None


def test_a_chain_takes_bold_steps_while_nothing_is_lost_and_small_ones_near_the_limit():
    def second_step(max_drop: float) -> float:
        _, view = run(groups=TAME, is_slow=True, objective={"max_drop": max_drop}, done=6)
        first, second = (link.values for link in chain_of(view, 0)[:2])
        assert first is not None and second is not None
        return second.latency_ratio / first.latency_ratio

    assert second_step(0.5) < 0.65 < 0.7 < second_step(0.01)


def test_the_first_step_is_bold_where_a_model_is_not_slow_to_recover():
    def first_step(is_slow: bool) -> float:
        _, view = run(is_slow=is_slow, done=3)
        values = chain_of(view, 0)[0].values
        assert values is not None
        return values.latency_ratio

    assert first_step(True) == pytest.approx(MILD, rel=0.1)
    assert first_step(False) < 0.33


def test_a_first_link_that_lost_too_much_proves_little_and_the_chain_comes_to_it_again():
    _, view = run(trials=80, objective={"max_drop": 0.03}, groups=TAME)
    first, *later = (link.values for link in chain_of(view, 0))
    assert first is not None
    assert first.error - (1.0 - view.dense_accuracy(0)) > 0.09, "far more than a front has use for"
    assert min(values.latency_ratio for values in later if values is not None) < first.latency_ratio / 0.9


@pytest.mark.parametrize(("is_slow", "link", "share"), [(True, 1, 0.5), (False, 0, 0.75)])
def test_a_step_that_would_end_at_the_fastest_network_goes_part_of_the_way(is_slow, link, share):
    _, view = run(groups=TAME, is_slow=is_slow, objective={"max_drop": 0.5}, done=4)
    models = fit_models(view, 0)
    fastest = fastest_of(models.latency["fp32"], models.loss)
    ratios = [1.0, *(t.values.latency_ratio for t in chain_of(view, 0) if t.values is not None)]
    before, after = ratios[link], ratios[link + 1]
    full = 0.42 * before if link else FIRST
    assert full < before * (fastest / before) ** share, "a full step would end past it"
    assert after == pytest.approx(before * (fastest / before) ** share, rel=0.05)


def test_a_candidate_inherits_from_the_nearest_that_contains_it():
    _, view = run()
    for trial in view.snapshot.trials:
        if trial.build_id is None:
            continue
        start = start_of(view, trial.number).start
        if start is not None:
            assert all(trial.candidate.widths[name] <= width for name, width in start.candidate.widths.items())
    links = chain_of(view, 0)
    middle = links[2].candidate
    found = inherited(view, 0, middle)
    assert found is not None and found.candidate.architecture == middle.architecture
    wider_than_all = middle.model_copy(update={"widths": {g.name: g.channels for g in MANY}})
    assert inherited(view, 0, wider_than_all) is None


def test_a_link_whose_accuracy_is_no_number_went_too_far():
    world = World(groups=TAME)
    world.builder.mishap = lambda candidate: math.nan if candidate.widths["layer2.0"] < 40 else 0.0
    job, _ = world.create_job(make_spec(budget={"trials": 20}, objective={"max_drop": 0.1}))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    view = View(world.snapshot(job.id))
    states = [link.state for link in chain_of(view, 0)]
    assert TrialState.INFEASIBLE in states and TrialState.SUCCEEDED in states
    assert world.job(job.id).state is JobState.SUCCEEDED


def test_the_lineage_of_a_link_is_the_chain_before_it():
    _, view = run(groups=TAME, is_slow=True)
    links = chain_of(view, 0)
    assert lineage(view, links[-1]) == links
    assert lineage(view, links[0]) == links[:1]


def test_parts_switched_off_are_off():
    _, plain = run(parts=Parts.without(["seeds", "inheritance"]))
    assert plain.job.state is JobState.SUCCEEDED
    assert not chain_of(plain, 0)
    assert all(start_of(plain, t.number).start is None for t in plain.snapshot.trials if t.build_id)


def test_ranges_move_with_the_feedback_and_every_move_has_its_reason():
    _, view = run(trials=60, objective={"max_drop": 0.05})
    ranges = view.job.report["ranges"]
    assert isinstance(ranges, dict)
    entry = ranges["0"]
    assert isinstance(entry, dict) and isinstance(entry["moves"], list) and isinstance(entry["factors"], dict)
    assert set(entry["factors"]) == {g.name for g in MANY}
    for move in entry["moves"]:
        assert isinstance(move, dict)
        assert move["factor"][0] != move["factor"][1] and "trials that narrowed it" in move["reason"]  # type: ignore[index,operator]
    assert any(factor != 1.0 for factor in entry["factors"].values())


def test_the_predictor_is_held_against_what_came_later():
    _, view = run(trials=40)
    report = view.job.report["predictor"]
    assert isinstance(report, dict) and isinstance(report["0"], dict)
    assert 0 < report["0"]["error_median"] < 0.05  # type: ignore[operator]
