"""Probability tables as integers: made once at export, saved with the weights, never rebuilt.

A table covers a run of consecutive integers and ends with one escape entry, which stands for every value outside the
run. Counts are probabilities in units of 2^-24. Values that escape are followed by 16 raw bits (see `coder`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcodec.symbols import SYMBOL_LIMIT

TOTAL_BITS = 24
"""Counts of one table sum to 2^TOTAL_BITS, the precision of constriction's default range coder."""

ESCAPE_BITS = 16
"""An escaped value is coded as value + 2^15 in this many raw bits."""

SCALES: NDArray[np.float64] = np.exp(np.linspace(math.log(0.1), math.log(256.0), 256))
"""Standard deviations of the Gaussian tables, equally spaced in log: index k of a latent means SCALES[k]."""

LARGEST_SET = 1024
"""Tables in a set: as many as there are scales, or channels of z."""

_TOTAL = 1 << TOTAL_BITS
_END_MASS = 0.5 / _TOTAL
_LEAST_REACH = 4
_ESCAPE_MASS, _NARROW, _NARROW_ESCAPE_MASS = 2.0**-14, 0.25, 2.0**-18


@dataclass(frozen=True, eq=False)
class TableSet:
    """n tables, one per row.

    counts: int32 (n, width); row i uses its first length[i] entries, each >= 1, summing to 2^24; the rest are zero.
    first: int32 (n,), the value that entry 0 of a row stands for.
    length: int32 (n,), used entries of a row, at least 2; the last used entry is the escape.

    Comes from files, so nothing in it is trusted: raises ValueError unless all of this holds and every value that a
    table covers lies within ±SYMBOL_LIMIT.
    """

    counts: NDArray[np.int32]
    first: NDArray[np.int32]
    length: NDArray[np.int32]

    def __post_init__(self) -> None:
        counts, first, length = self.counts, self.first, self.length
        if not counts.dtype == first.dtype == length.dtype == np.int32:
            raise ValueError("tables must be int32")
        if counts.ndim != 2 or counts.shape[0] < 1 or not first.shape == length.shape == counts.shape[:1]:
            raise ValueError(f"table shapes disagree: {counts.shape}, {first.shape}, {length.shape}")
        if length.min() < 2 or length.max() > counts.shape[1]:
            raise ValueError(f"a table's length lies outside 2..{counts.shape[1]}")
        last = first.astype(np.int64) + length - 2
        if first.min() < -SYMBOL_LIMIT or last.max() > SYMBOL_LIMIT:
            raise ValueError(f"a table covers values outside ±{SYMBOL_LIMIT}")
        used = np.arange(counts.shape[1]) < length[:, None]
        if counts.min() < 0 or not np.array_equal(counts > 0, used):
            raise ValueError("a table must have positive counts up to its length and zeros behind it")
        if not (counts.sum(axis=1, dtype=np.int64) == _TOTAL).all():
            raise ValueError(f"the counts of a table do not sum to 2^{TOTAL_BITS}")

    @classmethod
    def unpack(cls, counts: NDArray[np.int32], first: NDArray[np.int32], length: NDArray[np.int32]) -> TableSet:
        """From the used entries of all rows, one behind the other, int32 (sum of lengths,)."""
        if length.ndim != 1 or not length.size or length.min() < 2 or length.max() > 1 << 16:
            raise ValueError("the lengths of tables must lie within 2..65536")
        if len(length) > LARGEST_SET:
            raise ValueError(f"more than {LARGEST_SET} tables")
        if counts.shape != (int(length.sum(dtype=np.int64)),):
            raise ValueError(f"{counts.size} counts for tables of {int(length.sum())} entries")
        whole = np.zeros((len(length), int(length.max())), dtype=counts.dtype)
        whole[np.arange(whole.shape[1]) < length[:, None]] = counts
        return cls(whole, first, length)

    def packed(self) -> NDArray[np.int32]:
        """The counts as `unpack` takes them: most of a wide table of narrow rows is zeros."""
        return self.counts[np.arange(self.counts.shape[1]) < self.length[:, None]]

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def entries(
        self, symbols: NDArray[np.integer[Any]], rows: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Which entry of table `rows` (one for each) each symbol is, int32, and whether it escapes."""
        escape = self.length[rows] - 1
        entries = (symbols - self.first[rows]).astype(np.int32)
        escaped = (entries < 0) | (entries >= escape)
        return np.where(escaped, escape, entries), escaped

    def least_bits(self, sizes: NDArray[np.int64]) -> float:
        """Information in bits of sizes[row] symbols of every row if each were the likeliest one."""
        return float(sizes @ (TOTAL_BITS - np.log2(self.counts.max(axis=1))))


def nearest_scale_thresholds() -> NDArray[np.float64]:
    """float64 (255,): geometric midpoints of SCALES; the nearest scale in log is the number of thresholds <= σ."""
    return np.sqrt(SCALES[:-1] * SCALES[1:])


def quantise_pmf(pmf: NDArray[np.float64], tail: float) -> NDArray[np.int32]:
    """Integer counts of shape (len(pmf) + 1,), the last for `tail`, the probability of everything not in `pmf`.

    They sum to 2^24, are at least 1, and among all such counts have the least expected code length
    -Σ p·log2(count / 2^24), up to float64 rounding. `pmf` and `tail` need not sum to one. Raises ValueError unless
    they are finite, non-negative and not all zero, or if there are more than 2^16 entries.
    """
    p = np.append(np.asarray(pmf, dtype=np.float64), float(tail))
    if p.ndim != 1 or not 2 <= len(p) <= 1 << 16:
        raise ValueError(f"a table needs 2 to 65536 entries, got {len(p)}")
    if not np.isfinite(p).all() or p.min() < 0 or not 0 < p.sum() < math.inf:
        raise ValueError("probabilities must be finite, non-negative and not all zero")
    p /= p.sum()
    rare = np.zeros(len(p), dtype=bool)
    while True:
        share = np.where(rare, 0.0, p * ((_TOTAL - int(rare.sum())) / p[~rare].sum()))
        rarer = rare | (share < 1)
        if np.array_equal(rarer, rare):
            break
        rare = rarer
    counts: NDArray[np.int64] = np.maximum(np.floor(share), 1).astype(np.int64)
    missing = _TOTAL - int(counts.sum())
    counts[np.argsort(-_gain(p, counts), kind="stable")[:missing]] += 1
    while True:
        gain, loss = _gain(p, counts), _loss(p, counts)
        up, down = int(gain.argmax()), int(loss.argmin())
        if up == down or gain[up] <= loss[down] * (1 + 1e-12):
            return counts.astype(np.int32)
        counts[up] += 1
        counts[down] -= 1


def gaussian_tables(weights: Sequence[float] = (1.0,), scales: Sequence[float] = (1.0,)) -> TableSet:
    """256 tables of round(N(0, σ)), one per entry of SCALES: P(s) = Φ((s + ½)/σ) - Φ((s - ½)/σ); or of a mixture of
    Gaussians with standard deviations scale·σ, none below SCALES[0].

    A table reaches as far as either side's remaining mass is at least 2^-25, but never less far than ±4. The escape
    gets 2^-14 at least: real latents have more outliers than a Gaussian, and with its 16 raw bits an escaped value
    then costs 30 bits, where the continuous estimate, bounded at a likelihood of 1e-9, says 29.9. Where σ < 0.25 it
    gets 2^-18: there outliers are not seen, and at a low rate nearly all of some million symbols, each 0, pay for it.
    """
    parts = list(zip(weights, scales, strict=True))
    return _stack([_gaussian_table([(w, max(s * sigma, SCALES[0])) for w, s in parts], sigma) for sigma in SCALES])


def tables_from_pmfs(pmfs: Sequence[tuple[int, NDArray[np.float64]]]) -> TableSet:
    """One table per (first, pmf): pmf[i] = P(first + i), float64; what it lacks to 1 goes to the escape.

    Give each pmf well into its tails: ends with a mass below 2^-25 are cut off and join the escape. Raises ValueError
    if a pmf is not one, or covers values outside ±SYMBOL_LIMIT after the cut.
    """
    return _stack([_trimmed_table(first, np.asarray(pmf, dtype=np.float64)) for first, pmf in pmfs])


def ideal_bits(symbols: NDArray[np.integer[Any]], rows: NDArray[np.integer[Any]], tables: TableSet) -> float:
    """Information content in bits of integer `symbols` under table `rows` (broadcast to them), escapes' raw bits
    included: what a perfect coder would need with these very tables."""
    entries, escaped = tables.entries(symbols, np.broadcast_to(rows, symbols.shape))
    counts = tables.counts[rows, entries]
    return float((TOTAL_BITS - np.log2(counts)).sum() + ESCAPE_BITS * int(escaped.sum()))


def _gain(p: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats saved per symbol by one more count."""
    gain: NDArray[np.float64] = p * np.log1p(1 / counts)
    return gain


def _loss(p: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats lost per symbol by one count less; infinite where none can be spared."""
    return np.where(counts > 1, -p * np.log1p(-1 / np.maximum(counts, 2)), math.inf)


def _gaussian_table(parts: list[tuple[float, float]], sigma: float) -> tuple[int, NDArray[np.int32]]:
    """(first, counts) of (weight, standard deviation) together; differences of erfc keep the tails accurate."""
    outside = [1.0]
    while outside[-1] >= 2 * _END_MASS or len(outside) <= _LEAST_REACH + 1:
        edge = (len(outside) - 0.5) / math.sqrt(2)
        outside.append(sum(weight * math.erfc(edge / deviation) for weight, deviation in parts))
    side = -np.diff(outside) / 2
    pmf = np.concatenate([side[:0:-1], [2 * side[0]], side[1:]])
    return 1 - len(side), quantise_pmf(pmf, max(outside[-1], _NARROW_ESCAPE_MASS if sigma < _NARROW else _ESCAPE_MASS))


def _trimmed_table(first: int, pmf: NDArray[np.float64]) -> tuple[int, NDArray[np.int32]]:
    """(first, counts) of the part of pmf between its negligible ends."""
    if pmf.ndim != 1 or not np.isfinite(pmf).all() or (pmf < 0).any() or not 0.5 < pmf.sum() < 1 + 1e-6:
        raise ValueError("a pmf must be one-dimensional, finite, non-negative and sum to between one half and one")
    start = int((np.cumsum(pmf) < _END_MASS).sum())
    stop = len(pmf) - int((np.cumsum(pmf[::-1]) < _END_MASS).sum())
    kept = pmf[start:stop]
    return first + start, quantise_pmf(kept, max(0.0, 1 - float(kept.sum())))


def _stack(rows: list[tuple[int, NDArray[np.int32]]]) -> TableSet:
    length = np.array([len(counts) for _, counts in rows], dtype=np.int32)
    table = np.zeros((len(rows), int(length.max(initial=0))), dtype=np.int32)
    for row, (_, counts) in zip(table, rows, strict=True):
        row[: len(counts)] = counts
    return TableSet(table, np.array([first for first, _ in rows], dtype=np.int32), length)


def stored(z: TableSet, y: TableSet) -> dict[str, NDArray[np.int32]]:
    """The tables of both latents under the names that a checkpoint holds them by."""
    named: dict[str, NDArray[np.int32]] = {}
    for which, tables in (("z", z), ("y", y)):
        parts = {"counts": tables.packed(), "first": tables.first, "length": tables.length}
        named |= {f"tables.{which}.{part}": values for part, values in parts.items()}
    return named
