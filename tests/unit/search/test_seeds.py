"""Seeds: what a sensible engineer would try first."""

from __future__ import annotations

import time

from domain.job import RecoverySpec
from search.seeds import explicit_seed, greedy_chain, loss_at, starting_seeds
from search.space import SearchSpace, macs_fraction
from tests.unit.search.fakes import FEW, MANY, group


def test_seeds_are_distinct_none_is_dense_and_the_first_is_half_of_everything():
    for groups in (FEW, MANY):
        space = SearchSpace(groups, RecoverySpec())
        seeds = starting_seeds(space, limit=10)
        assert len({seed.candidate.architecture for seed in seeds}) == len(seeds) >= 6
        assert not any(seed.candidate.is_dense(list(groups)) for seed in seeds)
        assert seeds[0].name == "uniform-0.5"


def test_the_limit_holds():
    assert len(starting_seeds(SearchSpace(MANY, RecoverySpec()), limit=3)) == 3


def test_a_seed_without_a_mark_is_exactly_what_its_parameters_decode_to():
    for groups in (FEW, MANY):
        space = SearchSpace(groups, RecoverySpec())
        for seed in starting_seeds(space, limit=10):
            decoded = space.decode(seed.params)
            assert (decoded.widths == seed.candidate.widths) is not seed.name.endswith("~")


def test_the_greedy_chain_narrows_one_group_by_one_step_at_a_time_and_saves_work():
    chain = list(greedy_chain(MANY))
    before = {g.name: g.channels for g in MANY}
    for widths in chain:
        changed = [name for name in widths if widths[name] != before[name]]
        assert len(changed) == 1
        assert widths[changed[0]] < before[changed[0]]
        assert macs_fraction(MANY, widths) < macs_fraction(MANY, before)
        before = widths
    assert macs_fraction(MANY, before) < 0.1


def test_the_greedy_chain_takes_from_the_robust_group_first():
    tame, wild = group("tame", 64, fragile=0.001), group("wild", 64, fragile=0.3)
    halfway = next(w for w in greedy_chain((tame, wild)) if macs_fraction((tame, wild), w) <= 0.6)
    assert halfway["tame"] < halfway["wild"] == 64


def test_the_greedy_chain_of_a_large_network_is_ready_in_a_moment():
    groups = tuple(group(f"g{i}", 512, stage=i % 4) for i in range(50))
    before = time.process_time()
    assert len(list(greedy_chain(groups))) > 1000
    assert time.process_time() - before < 3.0


def test_an_explicit_seed_keeps_its_widths_even_where_the_space_cannot_say_them():
    space = SearchSpace(MANY, RecoverySpec())
    widths = {g.name: (4 if g.name == "layer0.1" else g.channels) for g in MANY}
    seed = explicit_seed(space, "odd", widths)
    assert seed.name == "odd~"
    assert seed.candidate.widths == widths


def test_loss_is_read_between_probes_and_carried_on_beyond_the_last():
    probed = group("g", fragile=0.1)  # 0.02 at 0.25, 0.1 at 0.5, 0.4 at 0.75
    assert loss_at(probed, 0.0) == 0.0
    assert abs(loss_at(probed, 0.375) - 0.06) < 1e-9
    assert abs(loss_at(probed, 0.85) - 0.52) < 1e-9
