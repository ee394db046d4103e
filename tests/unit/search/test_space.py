"""Parameters decode to candidates that a device likes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.candidate import GroupInfo
from domain.job import RecoverySpec
from search.seeds import loss_at
from search.space import (
    MAX_SPARSITY,
    MIN_CEILING,
    SearchSpace,
    ceiling,
    kept_width,
    macs_fraction,
    robustness,
    widths_of,
)
from tests.unit.search.fakes import FEW, MANY, group

sparsities = st.floats(0.0, 0.95, allow_nan=False)


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
def test_a_width_is_aligned_or_dense_and_within_one_step_and_all(channels, sparsity):
    width = kept_width(channels, sparsity)
    assert 1 <= width <= channels
    assert width == channels or width % 4 == 0
    assert width == channels or channels <= 16 or width == 8 or width % 16 == 0


@given(st.integers(1, 2048), sparsities, sparsities)
def test_more_sparsity_never_keeps_more_channels(channels, one, other):
    low, high = sorted((one, other))
    assert kept_width(channels, high) <= kept_width(channels, low)


@given(st.integers(17, 2048), st.floats(0.0, 0.9))
def test_the_width_is_the_nearest_there_is(channels, sparsity):
    wanted = channels * (1 - sparsity)
    width = kept_width(channels, sparsity)
    if wanted >= 8:
        assert abs(width - wanted) <= 8.0 + 1e-9


@pytest.mark.parametrize(
    ("channels", "sparsity", "width"), [(64, 0.5, 32), (64, 0.6, 32), (20, 0.5, 8), (20, 0.05, 20), (6, 0.5, 4)]
)
def test_widths_by_hand(channels, sparsity, width):
    assert kept_width(channels, sparsity) == width


@given(st.data())
def test_every_point_of_the_space_decodes_to_a_candidate_that_can_be_built(data):
    groups = data.draw(groups_of())
    space = SearchSpace(groups, RecoverySpec())
    candidate = space.decode(data.draw(params_of(space)))
    for info in groups:
        width = candidate.widths[info.name]
        assert 1 <= width <= info.channels
        assert width in widths_of(info.channels)
        assert 0.0 <= candidate.sparsity[info.name] <= MAX_SPARSITY
    mix = candidate.importance
    assert mix.l2 + mix.taylor + mix.activation == pytest.approx(1.0, abs=1e-3)


@given(st.data())
def test_more_global_sparsity_narrows_or_keeps_every_group(data):
    groups = data.draw(groups_of(least=7))
    space = SearchSpace(groups, RecoverySpec())
    params = data.draw(params_of(space))
    more = {**params, "s_global": data.draw(st.floats(params["s_global"], MAX_SPARSITY))}
    less_kept = space.decode(more).widths
    assert all(less_kept[name] <= width for name, width in space.decode(params).widths.items())


def test_few_groups_get_a_parameter_each_and_many_do_not():
    assert {f"s_{index}" for index in range(3)} <= set(SearchSpace(FEW, RecoverySpec()).distributions)
    many = SearchSpace(MANY, RecoverySpec()).distributions
    assert {"s_global", "m_stage_0", "m_stage_2", "m_inner", "m_outer", "temp", "learning_rate"} <= set(many)
    assert len(many) <= 16


def test_without_recovery_there_is_no_learning_rate_to_search():
    assert "learning_rate" not in SearchSpace(FEW, RecoverySpec(epochs=0)).distributions


def test_the_neutral_point_is_the_dense_model():
    for groups in (FEW, MANY):
        space = SearchSpace(groups, RecoverySpec())
        assert space.decode(space.neutral).is_dense(list(groups))


def test_a_sensitive_group_gets_a_lower_ceiling_where_its_loss_crosses_the_tolerance():
    tame, wild = group("tame", fragile=0.01), group("wild", fragile=0.2)
    assert ceiling(tame, tolerance=0.3) == MAX_SPARSITY
    assert ceiling(wild, tolerance=0.3) == pytest.approx(
        0.5 + 0.25 * (0.3 - loss_at(wild, 0.5)) / (loss_at(wild, 0.75) - loss_at(wild, 0.5))
    )
    assert ceiling(group("hopeless", fragile=5.0), tolerance=0.1) == MIN_CEILING


def test_temp_moves_sparsity_from_sensitive_to_robust_groups():
    groups = tuple(group(f"g{index}", 256, fragile=0.001 * (index + 1)) for index in range(8))
    space = SearchSpace(groups, RecoverySpec())
    params = {**space.uniform(0.4), "temp": 1.0}
    sparsity = space.decode(params).sparsity
    assert sparsity["g0"] > 0.4 > sparsity["g7"]
    assert set(space.decode(space.uniform(0.4)).sparsity.values()) == {0.4}


def test_equal_sensitivities_are_treated_equally():
    assert set(robustness([group("a"), group("b"), group("c")]).values()) == {1.0}


@given(st.data())
def test_widths_of_a_small_model_survive_projection_below_their_ceilings(data):
    groups = tuple(group(f"g{i}", data.draw(st.sampled_from([12, 16, 20, 64, 96]))) for i in range(4))
    space = SearchSpace(groups, RecoverySpec())
    widths = {g.name: kept_width(g.channels, data.draw(st.floats(0.0, ceiling(g)))) for g in groups}
    if all(1 - widths[g.name] / g.channels <= ceiling(g) for g in groups):
        assert space.decode(space.project(widths)).widths == widths


def test_a_projection_onto_a_large_model_lies_in_the_space():
    space = SearchSpace(MANY, RecoverySpec())
    widths = {g.name: kept_width(g.channels, 0.2 * g.stage) for g in MANY}
    params = space.project(widths)
    for name, distribution in space.distributions.items():
        assert distribution.low <= params[name] <= distribution.high
    sparsity = space.decode(params).sparsity
    assert sparsity["layer0.1"] < sparsity["layer2.1"]


def test_a_perturbed_point_stays_in_the_space_and_moves():
    space = SearchSpace(MANY, RecoverySpec())
    params = space.uniform(0.5)
    moved = space.perturb(params, dice=random.Random(1), scale=0.3)
    assert moved != params
    for name, distribution in space.distributions.items():
        assert distribution.low <= moved[name] <= distribution.high


def test_half_the_channels_everywhere_is_about_a_quarter_of_the_work():
    assert macs_fraction(MANY, {g.name: g.channels // 2 for g in MANY}) == pytest.approx(0.25)
    assert macs_fraction(MANY, {g.name: g.channels for g in MANY}) == pytest.approx(1.0)
