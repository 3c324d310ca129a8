"""Symbols come back as they went in, at the price the tables promise; whatever else arrives is CorruptError."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from constriction import stream
from example import NARROW_ROWS, PAYLOAD, SYMBOLS, TABLES, WIDE_ROW, Z_ROW, table_set
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcodec.bits.coder import Reader, Tables, write
from cdcodec.bits.tables import SCALES, TableSet, gaussian_tables, ideal_bits, quantise_pmf, tables_from_pmfs
from cdcodec.errors import CorruptError
from cdcodec.symbols import SYMBOL_LIMIT, Symbols


def read(payload: bytes, symbols: Symbols, tables: Tables) -> Symbols:
    """What `payload` decodes to, given the shapes, index and mean of `symbols`."""
    reader = Reader(payload, tables)
    z = reader.read_z(symbols.z.shape)
    y = np.zeros(symbols.y.size, np.int32)
    for places in symbols.stages():
        y[places] = reader.read_y(symbols.index.ravel()[places])
    result = Symbols(z, y.reshape(symbols.y.shape), symbols.index, symbols.mean, symbols.stage)
    reader.finish(result)
    return result


def same(a: Symbols, b: Symbols) -> bool:
    return np.array_equal(a.z, b.z) and np.array_equal(a.y, b.y)


def random_tables(rng: np.random.Generator, rows: int) -> TableSet:
    """Tables of 2 to 12 entries somewhere within ±SYMBOL_LIMIT, mostly near 0, some with all mass on one entry."""
    made = []
    for _ in range(rows):
        p = rng.random(rng.integers(1, 12)) ** rng.choice([1, 8, 100])
        far = rng.choice([-SYMBOL_LIMIT, SYMBOL_LIMIT - len(p) + 1])
        first = int(far if rng.random() < 0.1 else rng.integers(-8, 4))
        made.append((first, quantise_pmf(p, float(rng.choice([1e-300, 1e-6, 0.1]))).tolist()))
    return table_set(made)


def random_symbols(rng: np.random.Generator, channels: int) -> Symbols:
    """A few symbols, from all equal to all extreme."""
    spread = int(rng.choice([0, 3, 30, SYMBOL_LIMIT]))
    shape = tuple(rng.integers(1, 6, 3))
    z = rng.integers(-spread, spread + 1, (channels, *rng.integers(1, 4, 2)), dtype=np.int32)
    y = rng.integers(-spread, spread + 1, shape, dtype=np.int32)
    index = rng.integers(0, 256, shape, dtype=np.uint8)
    return Symbols(z, y, index, np.zeros_like(y), np.zeros_like(index))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_round_trip(seed, channels):
    rng = np.random.default_rng(seed)
    tables = Tables(random_tables(rng, channels), random_tables(rng, 256))
    symbols = random_symbols(rng, channels)
    payload = write(symbols, tables)
    assert len(payload) % 4 == 0
    assert same(read(payload, symbols, tables), symbols)


def test_golden_words():
    assert write(SYMBOLS, TABLES) == PAYLOAD
    assert same(read(PAYLOAD, SYMBOLS, TABLES), SYMBOLS)


def test_memory_order_of_the_arrays_does_not_matter():
    turned = replace(SYMBOLS, y=np.asfortranarray(SYMBOLS.y), index=np.asfortranarray(SYMBOLS.index))
    assert write(turned, TABLES) == PAYLOAD


def test_results_are_int32_of_the_shape_asked_for():
    reader = Reader(PAYLOAD, TABLES)
    z = reader.read_z((2, 1, 1))
    y = reader.read_y(SYMBOLS.index)
    assert (z.dtype, z.shape) == (np.int32, (2, 1, 1))
    assert (y.dtype, y.shape) == (np.int32, (1, 2, 3))


@pytest.mark.parametrize("value", [SYMBOL_LIMIT, -SYMBOL_LIMIT])
def test_extreme_symbols_escape_and_return(value):
    symbols = replace(SYMBOLS, z=np.full_like(SYMBOLS.z, value), y=np.full_like(SYMBOLS.y, value))
    assert same(read(write(symbols, TABLES), symbols, TABLES), symbols)


def test_symbols_of_almost_no_information_still_fill_a_word():
    zero = np.zeros((1, 1, 1), dtype=np.int32)
    symbols = Symbols(zero, zero, zero.astype(np.uint8), zero, zero.astype(np.uint8))
    tables = Tables(table_set([(0, [2**24 - 1, 1])]), TABLES.y)
    payload = write(symbols, tables)
    assert len(payload) == 4
    assert same(read(payload, symbols, tables), symbols)


@pytest.mark.parametrize(("low", "high"), [(0, 20), (40, 120), (230, 255)])
def test_real_bits_are_within_a_thousandth_of_the_tables_ideal(low, high):
    rng = np.random.default_rng(low)
    x = np.arange(-40, 41)
    pmf = np.exp(-np.abs(x) / 3)
    tables = Tables(tables_from_pmfs([(-40, pmf / pmf.sum())] * 8), gaussian_tables())
    index = rng.integers(low, high + 1, (32, 40, 40), dtype=np.uint8)
    y = np.rint(rng.standard_normal(index.shape) * SCALES[index]).astype(np.int32)
    z = rng.choice(x, (8, 10, 10), p=pmf / pmf.sum()).astype(np.int32)
    symbols = Symbols(z, y, index, np.zeros_like(y), np.zeros_like(index))
    ideal = ideal_bits(z, np.arange(8)[:, None, None], tables.z) + ideal_bits(y, index, tables.y)
    payload = write(symbols, tables)
    assert ideal <= 8 * len(payload) <= 1.001 * ideal + 64
    assert same(read(payload, symbols, tables), symbols)


@pytest.mark.parametrize("payload", [b"", PAYLOAD[:-1], PAYLOAD + b"\0", b"abc"])
def test_payloads_that_are_not_whole_words_are_refused(payload):
    with pytest.raises(CorruptError, match="not a multiple of 4"):
        Reader(payload, TABLES)


@pytest.mark.parametrize("extra", [bytes(4), b"\xff" * 4, bytes(400)])
def test_trailing_words_are_refused(extra):
    with pytest.raises(CorruptError):
        read(PAYLOAD + extra, SYMBOLS, TABLES)


@pytest.mark.parametrize("words", [1, 2])
def test_missing_words_are_refused(words):
    with pytest.raises(CorruptError):
        read(PAYLOAD[: 4 * words], SYMBOLS, TABLES)


def test_a_flipped_bit_is_refused_or_gives_other_symbols():
    refused = 0
    for bit in range(8 * len(PAYLOAD)):
        flipped = bytearray(PAYLOAD)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert not same(read(bytes(flipped), SYMBOLS, TABLES), SYMBOLS)
        except CorruptError:
            refused += 1
    assert refused > 0


def test_noise_is_refused_or_decodes_to_itself():
    rng = np.random.default_rng(3)
    refused = 0
    for words in rng.integers(1, 8, 300):
        payload = rng.bytes(4 * words)
        try:
            assert write(read(payload, SYMBOLS, TABLES), TABLES) == payload
        except CorruptError:
            refused += 1
    assert refused > 250


def escaping_payload(raw: int) -> bytes:
    """The first z escapes with this raw value, whether or not it may; what follows is made to fit."""
    encoder = stream.queue.RangeEncoder()
    z_model, wide = (
        stream.model.Categorical(np.array(counts, dtype=np.float64) - 1, perfect=False)
        for counts in (Z_ROW[1], WIDE_ROW[1])
    )
    encoder.encode(np.array([3, 0], dtype=np.int32), z_model)
    encoder.encode(np.array([raw], dtype=np.int32), stream.model.Uniform(1 << 16))
    encoder.encode(np.array([2] * 6, dtype=np.int32), wide)
    return encoder.get_compressed().astype("<u4").tobytes()


def read_escape(raw: int) -> int:
    wide = replace(SYMBOLS, index=np.full_like(SYMBOLS.index, NARROW_ROWS))
    return int(read(escaping_payload(raw), wide, TABLES).z[0, 0, 0])


@pytest.mark.parametrize("value", [2, -2, SYMBOL_LIMIT, -SYMBOL_LIMIT])
def test_an_escape_outside_the_table_is_read(value):
    assert read_escape(value + 2**15) == value


@pytest.mark.parametrize("value", [-(2**15), -1, 0, 1])
def test_an_escape_no_encoder_writes_is_refused(value):
    with pytest.raises(CorruptError):
        read_escape(value + 2**15)


def test_finish_refuses_symbols_that_were_not_read():
    reader = Reader(PAYLOAD, TABLES)
    reader.read_z((2, 1, 1))
    reader.read_y(SYMBOLS.index)
    with pytest.raises(CorruptError):
        reader.finish(replace(SYMBOLS, y=SYMBOLS.y + 1))


def test_calls_out_of_order_are_refused():
    with pytest.raises(ValueError, match="read_z, then read_y"):
        Reader(PAYLOAD, TABLES).read_y(SYMBOLS.index)
    with pytest.raises(ValueError, match="read_z, then read_y"):
        Reader(PAYLOAD, TABLES).finish(SYMBOLS)
    reader = Reader(PAYLOAD, TABLES)
    reader.read_z((2, 1, 1))
    with pytest.raises(ValueError, match="read_z, then read_y"):
        reader.read_z((2, 1, 1))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (2, 0, 1), (2, 1), (2, -1, -1), (2, 1, 1, 1)])
def test_shapes_that_do_not_fit_the_tables_are_refused(shape):
    with pytest.raises(ValueError, match="does not fit the tables of 2 channels"):
        Reader(PAYLOAD, TABLES).read_z(shape)


def test_writing_with_other_channels_is_refused():
    with pytest.raises(ValueError, match="does not fit the tables of 2 channels"):
        write(replace(SYMBOLS, z=np.zeros((3, 1, 1), dtype=np.int32)), TABLES)


def test_an_index_of_another_type_is_refused():
    reader = Reader(PAYLOAD, TABLES)
    reader.read_z((2, 1, 1))
    with pytest.raises(ValueError, match="uint8"):
        reader.read_y(SYMBOLS.index.astype(np.int64))


def test_y_needs_a_table_for_every_index():
    with pytest.raises(ValueError, match="256 tables"):
        Tables(TABLES.z, table_set([WIDE_ROW] * 255))


def test_models_are_made_once_and_only_when_used():
    tables = Tables(TABLES.z, TABLES.y)
    write(SYMBOLS, tables)
    assert sorted(tables.y_models.made) == [0, 200]
    kept = tables.y_models[200]
    read(PAYLOAD, SYMBOLS, tables)
    assert tables.y_models[200] is kept
