"""The latency model: the formula, what it learns of a device, and the correction by neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from domain.candidate import BlockInfo
from domain.network import LayerInfo
from search import latency_model
from search.network import Ints, Network
from tests.unit.search.surfaces import FEW, MANY


def rows_of(network: Network, count: int, seed: int = 0) -> Ints:
    dice = np.random.default_rng(seed)
    return np.array(
        [[dice.choice([4, 8, 16, 24, 32, 48, 64][: 3 + n % 5]) for _ in network.names] for n in range(count)]
    )


def test_the_predictor_finds_the_law_it_was_fed_and_says_how_far_off_it_is():
    network = Network(FEW)
    rows = np.minimum(rows_of(network, 40), network.dense)
    truth = 0.2 + 0.5 * network.macs_share(rows, align=16) + 0.3 * network.shares(rows, aligns=(1,))[0][:, 2]
    model = latency_model.fit(network, [(row, y) for row, y in zip(rows[:25], truth, strict=False)])
    assert model.alignment == 16
    assert model.error_p90 < 0.02
    assert model.predict_rows(rows[25:]) == pytest.approx(truth[25:], rel=0.03)


def test_what_the_formula_misses_is_learnt_from_neighbours():
    network = Network(MANY)
    rows = np.minimum(rows_of(network, 60), network.dense)
    bump = np.where(rows[:, 5] <= 16, 0.7, 1.0)  # a kernel of its own below 16 channels of one group
    truth = bump * (0.3 + 0.7 * network.macs_share(rows))
    pairs = [(row, y) for row, y in zip(rows[:50], truth, strict=False)]
    model = latency_model.fit(network, pairs)
    plain = np.abs(model.formula(rows[50:]) / truth[50:] - 1)
    corrected = np.abs(model.predict_rows(rows[50:]) / truth[50:] - 1)
    assert np.median(corrected) < 0.75 * np.median(plain)


def test_widths_within_a_block_that_is_gone_do_not_set_two_networks_apart():
    inside = tuple(one.name for one in MANY if one.name.startswith("layer0."))
    block = BlockInfo(
        name="layer0", groups=inside, macs=1, params=1, weight_norm=1.0, output_change=0.1, sensitivity=0.1
    )
    network = Network(MANY, blocks=(block,))
    rows = np.minimum(np.hstack([rows_of(network, 40), np.ones((40, 1), dtype=int)]), network.dense)
    rows[::2, -1] = 0
    dice = np.random.default_rng(1)
    truth = (0.3 + 0.5 * network.macs_share(rows)) * np.exp(dice.normal(0, 0.1, len(rows)))
    model = latency_model.fit(network, list(zip(rows, truth, strict=True)))
    assert model.correction is not None
    other = rows.copy()
    other[:, : len(inside)] = np.where(rows[:, : len(inside)] == 4, 16, 4)
    before, after = model.predict_rows(rows), model.predict_rows(other)
    assert after[::2] == pytest.approx(before[::2], rel=1e-9)
    assert np.median(np.abs(after[1::2] / before[1::2] - 1)) > 0.05


def test_what_a_stem_writes_is_learnt_however_little_it_is_beside_the_blocks():
    stem = LayerInfo(
        name="stem", macs=1000, positions=49, out_channels=32, in_channels=1, out_groups={FEW[0].name: 1}, in_groups={}
    )
    rest = [
        LayerInfo(
            name=f"mlp{n}",
            macs=100_000,
            positions=49,
            out_channels=group.channels,
            in_channels=64,
            out_groups={group.name: 1},
            in_groups={},
            is_packed=False,
        )
        for n, group in enumerate(FEW[1:] * 8)
    ]
    network = Network(FEW, [stem, *rest])
    rows = np.minimum(rows_of(network, 40), network.dense)
    truth = 0.05 + 0.3 * rows[:, 0] / network.dense[0] + 0.65 * network.macs_share(rows)
    model = latency_model.fit(network, list(zip(rows[:30], truth, strict=False)))
    assert np.median(np.abs(model.formula(rows[30:]) / truth[30:] - 1)) < 0.03


def test_the_formula_never_rewards_width_whatever_it_was_told():
    network = Network(FEW)
    rows = np.minimum(rows_of(network, 12), network.dense)
    odd = latency_model.fit(network, [(row, 0.9 - 0.05 * n) for n, row in enumerate(rows)])
    assert min(odd.coefficients) >= 0.0
    nothing = latency_model.fit(network, [])
    assert nothing.predict_rows(network.dense[None]) == pytest.approx([1.0], rel=0.05)
    assert math.isnan(nothing.error_median)
