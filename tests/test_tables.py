"""Tables: exact sums, optimal counts, rare escapes, and one refusal for every lie a file can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from example import NARROW_ROW, WIDE_ROW, Z_ROW, table_set
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcodec.bits.tables import (
    SCALES,
    TOTAL_BITS,
    TableSet,
    gaussian_tables,
    ideal_bits,
    nearest_scale_thresholds,
    quantise_pmf,
    tables_from_pmfs,
)

TOTAL = 2**24
GAUSSIAN = gaussian_tables()


def used(tables: TableSet, row: int) -> np.ndarray:
    return tables.counts[row, : tables.length[row]].astype(np.float64)


def test_scales_are_256_steps_of_equal_ratio_from_a_tenth_to_256():
    assert SCALES.shape == (256,)
    assert SCALES.dtype == np.float64
    assert SCALES[0] == pytest.approx(0.1, rel=1e-12)
    assert SCALES[-1] == pytest.approx(256, rel=1e-12)
    np.testing.assert_allclose(SCALES[1:] / SCALES[:-1], 2560 ** (1 / 255), rtol=1e-12)


def test_thresholds_choose_the_scale_nearest_in_log():
    thresholds = nearest_scale_thresholds()
    assert thresholds.shape == (255,)
    sigma = np.exp(np.random.default_rng(0).uniform(math.log(0.05), math.log(500), 1000))
    index = (thresholds[None] <= sigma[:, None]).sum(axis=1)
    np.testing.assert_array_equal(index, np.abs(np.log(SCALES)[None] - np.log(sigma)[:, None]).argmin(axis=1))


def test_quantise_exact_powers():
    np.testing.assert_array_equal(quantise_pmf(np.array([0.5, 0.25]), 0.25), [2**23, 2**22, 2**22])


def test_quantise_golden():
    counts = quantise_pmf(np.array([0.0, 1e-9, 0.1, 0.6, 0.2999]), 1e-4)
    np.testing.assert_array_equal(counts, [1, 1, 1677721, 10066328, 5031487, 1678])


def best_exchange(p: np.ndarray, counts: np.ndarray) -> float:
    """By how much, relatively, the best move of one count from one entry to another gains more than it loses."""
    gain = p * np.log1p(1 / counts)
    spare = counts > 1
    loss = -p[spare] * np.log1p(-1 / counts[spare])
    return gain.max() / loss.min() - 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40).filter(lambda p: sum(p) > 1e-3),
    st.floats(0, 1e-3),
)
def test_quantised_counts_are_a_table_that_no_exchange_improves(pmf, tail):
    counts = quantise_pmf(np.array(pmf), tail)
    assert counts.dtype == np.int32
    assert counts.shape == (len(pmf) + 1,)
    assert counts.min() >= 1
    assert int(counts.sum(dtype=np.int64)) == TOTAL
    assert best_exchange(np.array([*pmf, tail]), counts) <= 1e-6


def test_quantised_counts_of_long_pmfs_too_are_such_that_no_exchange_improves():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p = rng.random(rng.integers(2, 300)) ** rng.choice([1, 9, 99, 400])
        assert best_exchange(p, quantise_pmf(p[:-1], p[-1])) <= 1e-9


@pytest.mark.parametrize(
    ("pmf", "tail"),
    [([], 1), ([0.0], 0), ([-0.1, 1.1], 0), ([math.nan], 0.1), ([0.5], math.inf), ([0.5], -0.1), ([1e-6] * 65536, 0)],
)
def test_quantise_refuses_what_is_no_distribution(pmf, tail):
    with pytest.raises(ValueError, match=r"probabilities must|a table needs"):
        quantise_pmf(np.array(pmf), tail)


def test_gaussian_tables_are_symmetric_and_of_modest_size():
    assert GAUSSIAN.counts.nbytes < 3_000_000
    assert len(GAUSSIAN) == 256
    for row in range(256):
        reach = -int(GAUSSIAN.first[row])
        assert GAUSSIAN.length[row] == 2 * reach + 2
        body = used(GAUSSIAN, row)[:-1]
        assert np.abs(body - body[::-1]).max() <= 1


def test_gaussian_escapes_are_rarer_than_one_in_a_million_and_cost_what_the_estimate_says():
    for row, sigma in enumerate(SCALES):
        assert math.erfc((0.5 - GAUSSIAN.first[row]) / (sigma * math.sqrt(2))) < 1e-6
        price = 16 - math.log2(used(GAUSSIAN, row)[-1] / TOTAL)
        assert price < 30.01 if sigma >= 0.25 else price == 34


def test_a_million_zeros_of_the_narrowest_scale_cost_next_to_nothing():
    zeros = np.zeros(10**6, dtype=np.int32)
    assert ideal_bits(zeros, np.zeros_like(zeros), GAUSSIAN) < 10


def test_gaussian_tables_cost_next_to_nothing_above_the_entropy():
    for row in range(0, 256, 15):
        sigma, reach = SCALES[row], -int(GAUSSIAN.first[row])
        edges = [math.erf((s - 0.5) / (sigma * math.sqrt(2))) / 2 for s in range(-reach, reach + 2)]
        p = np.diff(edges)
        known = p > 0
        excess = p[known] @ np.log2(p[known] * TOTAL / used(GAUSSIAN, row)[:-1][known])
        assert -1e-6 < excess < 1.2e-4


def test_tables_of_a_mixture_hold_its_probabilities():
    tables = gaussian_tables((0.72, 0.28), (0.72, 1.46))
    for row in (0, 20, 100, 200, 255):
        deviations = [max(0.1, scale * SCALES[row]) * math.sqrt(2) for scale in (0.72, 1.46)]
        reach = -int(tables.first[row])
        narrow, wide = (
            np.diff([math.erf((s - 0.5) / d) / 2 for s in range(-reach, reach + 2)]) for d in deviations
        )
        body = used(tables, row)[:-1]
        assert np.abs(body / TOTAL - 0.72 * narrow - 0.28 * wide).max() < 1e-4
        assert np.abs(body - body[::-1]).max() <= 1
        assert math.erfc((reach + 0.5) / deviations[1]) < 1e-6


def test_gaussian_tails_keep_their_precision():
    row = int((nearest_scale_thresholds() <= 1.0).sum())
    scale = SCALES[row] * math.sqrt(2)
    five = (math.erfc(4.5 / scale) - math.erfc(5.5 / scale)) / 2 * TOTAL
    assert 40 < five < 80
    assert GAUSSIAN.counts[row, 5 - GAUSSIAN.first[row]] == pytest.approx(five, abs=1)


def test_pmfs_lose_their_negligible_ends_to_the_escape():
    x = np.arange(-300, 301)
    pmf = np.exp(-np.abs(x - 3.0))
    tables = tables_from_pmfs([(-300, pmf / pmf.sum()), (-5, np.array([0.25, 0.25, 0.25]))])
    assert -16 < tables.first[0] < -10
    assert 16 < tables.first[0] + tables.length[0] - 2 < 22
    assert used(tables, 0)[-1] == 1
    assert used(tables, 0).argmax() == 3 - tables.first[0]
    assert tables.first[1] == -5
    np.testing.assert_array_equal(used(tables, 1), [2**22] * 4)


@pytest.mark.parametrize("pmf", [[], [0.1, 0.2], [0.9, 0.2], [1.1, -0.1], [math.nan, 1.0], [[1.0]]])
def test_pmfs_that_are_none_are_refused(pmf):
    with pytest.raises(ValueError, match="a pmf must be"):
        tables_from_pmfs([(0, np.array(pmf))])


def test_pmfs_outside_the_symbol_range_are_refused():
    with pytest.raises(ValueError, match="outside ±32767"):
        tables_from_pmfs([(32767, np.array([0.5, 0.5]))])


def test_ideal_bits_by_hand():
    tables = table_set([Z_ROW, NARROW_ROW, WIDE_ROW])
    assert ideal_bits(np.array([0, 0]), np.array([0, 0]), tables) == pytest.approx(2.0)
    assert ideal_bits(np.array([7]), np.array([1]), tables) == pytest.approx(24 + 16)
    assert ideal_bits(np.array([[-3], [0]]), np.array([2]), tables) == pytest.approx(12 + 16 + 1)
    assert TOTAL_BITS == 24


GOOD = table_set([Z_ROW, WIDE_ROW])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("counts", GOOD.counts.astype(np.int64), "int32"),
        ("first", GOOD.first.astype(np.uint8), "int32"),
        ("counts", GOOD.counts[0], "shapes"),
        ("counts", GOOD.counts[:1], "shapes"),
        ("counts", GOOD.counts[:, :0], "length"),
        ("first", GOOD.first[:1], "shapes"),
        ("length", GOOD.length[:, None], "shapes"),
        ("length", np.array([4, 7], dtype=np.int32), "length"),
        ("length", np.array([1, 6], dtype=np.int32), "length"),
        ("length", np.array([3, 6], dtype=np.int32), "zeros behind"),
        ("length", np.array([5, 6], dtype=np.int32), "positive counts"),
        ("first", np.array([-32768, 0], dtype=np.int32), "outside"),
        ("first", np.array([0, 32764], dtype=np.int32), "outside"),
        ("first", np.array([0, 2**31 - 1], dtype=np.int32), "outside"),
        ("counts", np.where(GOOD.counts == 4096, 4097, GOOD.counts).astype(np.int32), "sum"),
        ("counts", np.where(GOOD.counts == 4096, -4096, GOOD.counts).astype(np.int32), "positive counts"),
    ],
)
def test_every_lie_of_a_table_is_refused(field, value, message):
    parts = {"counts": GOOD.counts, "first": GOOD.first, "length": GOOD.length, field: value}
    with pytest.raises(ValueError, match=message):
        TableSet(**parts)


def test_no_tables_are_refused():
    empty = np.zeros(0, dtype=np.int32)
    with pytest.raises(ValueError, match="shapes"):
        TableSet(np.zeros((0, 4), dtype=np.int32), empty, empty)
    with pytest.raises(ValueError, match="shapes"):
        tables_from_pmfs([])
