"""Parameters decode to candidates that a device likes."""

from __future__ import annotations

import math
import random
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.candidate import BlockInfo, GroupInfo
from domain.job import RecoverySpec
from domain.network import LayerInfo
from search import latency_model, loss_model
from search.knapsack import allowed_widths, fastest_of, narrowest_of
from search.latency_model import LatencyModel
from search.loss_model import MAX_SPARSITY, MIN_CEILING, LossModel, ceiling, curve, probed
from search.models import Models
from search.network import Network
from search.recipe import LONGEST_STRETCH, NEUTRAL_RATE, SLOW
from search.space import BEYOND_USUAL, LEAST_RANGE, SearchSpace
from search.widths import kept_width, widths_of
from tests.unit.search.surfaces import FEW, MANY, group

sparsities = st.floats(0.0, 0.95, allow_nan=False)


def space_of(groups: tuple[GroupInfo, ...], **changes: object) -> tuple[SearchSpace, Models]:
    network = Network(groups)
    space = SearchSpace(network, RecoverySpec(), **changes)  # type: ignore[arg-type]
    latency = {precision: latency_model.fit(network, []) for precision in space.precisions}
    return space, Models(network, latency, loss_model.fit(network, []))


@st.composite
def groups_of(draw: st.DrawFn, least: int = 1, most: int = 12) -> tuple[GroupInfo, ...]:
    count = draw(st.integers(least, most))
    return tuple(
        group(
            f"g{index}",
            draw(st.integers(1, 512)),
            stage=draw(st.integers(0, 3)),
            residual=draw(st.booleans()),
            fragile=draw(st.floats(0.0, 0.3)),
        )
        for index in range(count)
    )


@st.composite
def params_of(draw: st.DrawFn, space: SearchSpace) -> dict[str, float]:
    return {
        name: draw(st.floats(distribution.low, distribution.high)) for name, distribution in space.distributions.items()
    }


@given(st.integers(1, 2048), sparsities)
def test_a_width_is_aligned_or_dense(channels, sparsity):
    width = kept_width(group("g", channels), sparsity)
    assert 1 <= width <= channels
    assert width == channels or width % 8 == 0 or (width <= 16 and width % 4 == 0)


@given(st.integers(1, 2048), sparsities, sparsities)
def test_more_sparsity_never_keeps_more_channels(channels, one, other):
    low, high = sorted((one, other))
    assert kept_width(group("g", channels), high) <= kept_width(group("g", channels), low)


@pytest.mark.parametrize(
    ("channels", "sparsity", "width"), [(64, 0.5, 32), (64, 0.6, 24), (20, 0.5, 12), (20, 0.05, 20), (6, 0.5, 4)]
)
def test_widths_by_hand(channels, sparsity, width):
    assert kept_width(group("g", channels), sparsity) == width


@settings(deadline=None)
@given(st.data())
def test_every_point_of_the_space_decodes_to_a_candidate_that_can_be_built(data):
    groups = data.draw(groups_of())
    space, models = space_of(groups)
    candidate = space.decode(data.draw(params_of(space)), models)
    for info in groups:
        width = candidate.widths[info.name]
        assert 1 <= width <= info.channels
        assert width in widths_of(info)
        assert 0.0 <= candidate.sparsity[info.name] <= MAX_SPARSITY + 1e-9
    mix = candidate.importance
    assert mix.l2 + mix.taylor + mix.activation == pytest.approx(1.0, abs=1e-3)
    assert 0 < candidate.recovery.epochs <= LONGEST_STRETCH


@settings(deadline=None)
@given(st.data())
def test_a_faster_network_asked_is_narrower_or_the_same_everywhere(data):
    groups = data.draw(groups_of(least=2))
    space, models = space_of(groups)
    params = data.draw(params_of(space))
    faster = {**params, "speedup": params["speedup"] * 1.7}
    narrow = space.decode(faster, models).widths
    assert all(narrow[name] <= width for name, width in space.decode(params, models).widths.items())


@pytest.mark.parametrize("groups", [FEW, MANY])
@pytest.mark.parametrize("speedup", [1.3, 2.0, 3.0])
def test_the_speed_up_asked_is_the_one_predicted_to_within_a_step(groups, speedup):
    space, models = space_of(groups)
    candidate = space.decode({**space.neutral, "speedup": speedup}, models)
    assert speedup <= 1 / models.latency["fp32"].predict(space.row_of(candidate)) <= 1.35 * speedup


def test_few_groups_get_a_parameter_each_and_many_do_not():
    assert {f"m_{index}" for index in range(3)} <= set(space_of(FEW)[0].distributions)
    many = space_of(MANY)[0].distributions
    assert {"speedup", "m_stage_0", "m_stage_2", "m_outer", "trust", "learning_rate"} <= set(many)
    assert len(many) <= 16


def test_without_recovery_there_is_no_learning_rate_to_search():
    assert "learning_rate" not in SearchSpace(Network(FEW), RecoverySpec(epochs=0)).distributions


def test_a_narrow_network_is_recovered_for_longer_and_at_a_higher_rate():
    space, models = space_of(MANY)
    wide, narrow = (space.decode({**space.neutral, "speedup": ratio}, models).recovery for ratio in (1.2, 4.0))
    assert 1.0 < wide.epochs < narrow.epochs <= LONGEST_STRETCH
    for plan in (wide, narrow):
        assert plan.learning_rate == pytest.approx(NEUTRAL_RATE * plan.epochs**2, rel=0.02)


def test_a_model_that_is_slow_to_recover_is_trained_longer_at_the_same_rate():
    params = {**space_of(MANY)[0].neutral, "speedup": 2.0}
    usual, slow = (
        space.decode(params, models).recovery
        for space, models in (space_of(MANY), space_of(MANY, is_slow_to_recover=True))
    )
    assert slow.epochs == pytest.approx(SLOW * usual.epochs, abs=0.01) and slow.learning_rate == usual.learning_rate


def test_the_price_of_a_stage_bends_where_channels_go():
    space, models = space_of(MANY)
    params = {**space.neutral, "speedup": 2.0}

    def kept(stage: int, **bent: float) -> int:
        widths = space.decode({**params, **bent}, models).widths
        return sum(widths[g.name] for g in MANY if g.stage == stage)

    assert kept(2, m_stage_2=3.0) < kept(2) <= kept(2, m_stage_2=1 / 3)
    assert kept(0, m_stage_2=3.0) >= kept(0)


def test_a_fragile_group_is_spared():
    tame, wild = group("tame", fragile=0.001), group("wild", fragile=0.3)
    space, models = space_of((tame, wild))
    widths = space.decode({**space.neutral, "speedup": 1.5}, models).widths
    assert widths["tame"] < widths["wild"]


def test_what_trials_lost_moves_the_price_and_the_ceiling_of_the_group_to_blame():
    groups = tuple(group(f"g{index}", 64, fragile=0.15) for index in range(4))
    network = Network(groups)
    dice = random.Random(0)
    pairs = []
    for _ in range(40):
        row = np.array([dice.choice([16, 32, 48, 64]) for _ in groups])
        pairs.append((row, 0.02 + 0.1 * (1 - row[2] / 64)))
    model = loss_model.fit(network, pairs)
    assert model.factors["g2"] > 1.2 > max(model.factors[name] for name in ("g0", "g1", "g3"))
    assert model.ceiling(groups[2]) < min(model.ceiling(groups[index]) for index in (0, 1, 3))
    assert model.predict(network.row({"g2": 16})) > 2 * model.predict(network.row({"g1": 16}))
    # Its price has risen; how far it may be cut has not changed.
    assert model.ceiling(groups[2]) == LossModel(network, {}).ceiling(groups[2])


def test_a_sensitive_group_gets_a_lower_ceiling_where_its_loss_crosses_the_tolerance():
    tame, wild = group("tame", fragile=0.01), group("wild", fragile=0.2)
    assert ceiling(tame, tolerance=0.3) == MAX_SPARSITY
    assert ceiling(wild, tolerance=0.3) == pytest.approx(
        0.5 + 0.25 * (0.3 - probed(wild, 0.5)) / (probed(wild, 0.75) - probed(wild, 0.5))
    )
    assert ceiling(group("hopeless", fragile=5.0), tolerance=0.1) == MIN_CEILING


def test_loss_is_read_between_probes_and_carried_on_beyond_the_last():
    info = group("g", fragile=0.1)  # 0.02 at 0.25, 0.1 at 0.5, 0.4 at 0.75
    assert probed(info, 0.0) == 0.0
    assert abs(probed(info, 0.375) - 0.06) < 1e-9
    assert abs(probed(info, 0.85) - 0.52) < 1e-9
    assert curve(info, 64) == 0.0 < curve(info, 32, trust=0.0) < curve(info, 32, trust=1.0)


def test_a_projection_lies_in_the_space_and_has_the_latency_of_the_widths():
    space, models = space_of(MANY)
    row = space.uniform(0.5)
    params = space.project(row, models, "fp32")
    for name, distribution in space.distributions.items():
        assert distribution.low <= params[name] <= distribution.high
    assert 1 / params["speedup"] == pytest.approx(models.latency["fp32"].predict(row))


def test_a_perturbed_point_stays_in_the_space_and_moves():
    space, _ = space_of(MANY)
    params = {**space.neutral, "speedup": 2.0}
    moved = space.perturb(params, dice=random.Random(1), scale=0.3)
    assert moved != params
    for name, distribution in space.distributions.items():
        assert distribution.low <= moved[name] <= distribution.high


def test_a_large_network_is_decoded_in_a_moment():
    groups = tuple(group(f"g{i}", 512, stage=i % 4) for i in range(60))
    space, models = space_of(groups)
    before = time.process_time()
    space.decode({**space.neutral, "speedup": 4.0}, models)
    assert time.process_time() - before < 0.5


def test_half_the_channels_everywhere_is_a_quarter_of_the_work():
    network = Network(MANY)
    rows = np.array([network.dense, network.dense // 2])
    assert network.macs_share(rows) == pytest.approx([1.0, 0.25])
    assert LossModel(network, {}).predict(network.dense) == 0.0


def test_where_it_is_to_come_close_no_block_is_dropped_that_goes_far_beyond():
    groups = tuple(group(f"stage{i}.conv", 64, stage=i, fragile=0.2) for i in range(2))
    free = BlockInfo(
        name="stage1", groups=("stage1.conv",), macs=1, params=1, weight_norm=1.0, output_change=0.1, sensitivity=0.0
    )
    network = Network(groups, blocks=(free,))
    space = SearchSpace(network, RecoverySpec())
    models = Models(network, {"fp32": latency_model.fit(network, [])}, loss_model.fit(network, []))
    asked = {**space.neutral, "speedup": 1.3, "trust": 1.0}
    far, close = (space.decode(asked, models, is_close=is_close) for is_close in (False, True))
    assert far.dropped == ("stage1",) and not close.dropped
    predict = models.latency["fp32"].predict
    assert predict(space.row_of(far)) < 0.85 / 1.3 < predict(space.row_of(close)) < 1.05 / 1.3
    further = space.decode({**asked, "speedup": 1.8}, models, is_close=True)
    assert further.dropped == ("stage1",)


def test_a_block_is_dropped_where_it_costs_less_than_narrowing():
    groups = tuple(group(f"stage{i}.conv", 64, stage=i, fragile=0.2) for i in range(3))
    cheap = BlockInfo(
        name="stage1",
        groups=("stage1.conv",),
        macs=640_000,
        params=1,
        weight_norm=1.0,
        output_change=0.1,
        sensitivity=0.0,
    )
    dear = cheap.model_copy(update={"name": "stage2", "groups": ("stage2.conv",), "sensitivity": 0.9})
    network = Network(groups, blocks=(cheap, dear))
    space = SearchSpace(network, RecoverySpec())
    models = Models(network, {"fp32": latency_model.fit(network, [])}, loss_model.fit(network, []))
    candidate = space.decode({**space.neutral, "speedup": 1.8}, models)
    assert candidate.dropped == ("stage1",)
    row = space.row_of(candidate)
    assert network.dropped_of(row) == ("stage1",)
    assert network.shares(row[None], aligns=(1,))[0][:, 0] == pytest.approx([2 / 3])
    assert models.loss.curves(row[None])[0, 1] == 0.0  # the group inside is gone: its width costs nothing any more
    whole = network.row(candidate.widths)
    assert models.latency["fp32"].predict(row) < models.latency["fp32"].predict(whole)


def test_the_fastest_network_is_not_the_narrowest_where_loose_channels_have_to_be_repacked():
    groups = tuple(group(f"g{index}", 64) for index in range(3))
    layers = [
        LayerInfo(name=one.name, macs=1000, positions=49, out_channels=64, in_channels=3, out_groups={one.name: 1})
        for one in groups
    ]
    network = Network(groups, layers)
    coefficients = np.array([0.01, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6])  # of arithmetic, and of repacking
    latency = LatencyModel(network, coefficients, 16, 1.0, 9, 0.0, 0.0)
    loss = LossModel(network, {})
    every = np.array(list(product(*(allowed_widths(one, MAX_SPARSITY) for one in groups))))
    fastest = float(latency.predict_rows(every).min())
    assert fastest < latency.predict(narrowest_of(loss)) / 2
    assert fastest_of(latency, loss) == pytest.approx(fastest)
    space = SearchSpace(network, RecoverySpec())
    assert space.reach(Models(network, {"fp32": latency}, loss)) == pytest.approx(1 / fastest)


@pytest.mark.parametrize("groups", [FEW, MANY])
def test_the_whole_range_ends_well_beyond_what_a_usual_target_reaches(groups):
    space, models = space_of(groups)
    assert space.distributions["speedup"].high == pytest.approx(BEYOND_USUAL * space.reach(models))


def test_the_range_of_speedups_can_be_narrower_but_always_leaves_room():
    space = SearchSpace(Network(MANY), RecoverySpec())
    whole = space.distributions["speedup"]
    assert (space.within(2.0, math.inf)["speedup"].low, space.within(2.0, math.inf)["speedup"].high) == pytest.approx(
        (2.0, whole.high), rel=1e-3
    )
    narrower = space.within(2.0, 4.0)
    assert (narrower["speedup"].low, narrower["speedup"].high) == (2.0, 4.0)
    assert {name: narrower[name] for name in narrower if name != "speedup"} == {
        name: space.distributions[name] for name in space.distributions if name != "speedup"
    }
    for low, high in ((1.0, 1.0), (1e9, math.inf), (3.0, 2.0), (1e9, 1.0)):
        one = space.within(low, high)["speedup"]
        assert whole.low <= one.low < one.high <= whole.high * 1.001
        assert one.high / one.low == pytest.approx(LEAST_RANGE, rel=0.01)
