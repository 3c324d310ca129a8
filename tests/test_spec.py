"""SPEC.md says what the code does: its tables, its worked example, and a range coder written from its text alone."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import reference_coder
from example import (
    CHUNKS,
    FRACTION_BITS,
    HEADER,
    NARROW_ROW,
    PAYLOAD,
    SYMBOLS,
    TABLES,
    WIDE_ROW,
    WORDS,
    Z_ROW,
    table_set,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcodec import config
from cdcodec.bits import container, deflate
from cdcodec.bits.coder import Tables, write
from cdcodec.bits.container import pack, unpack
from cdcodec.bits.tables import SCALES, TOTAL_BITS, quantise_pmf
from cdcodec.config import HEAVY_TAILS
from cdcodec.nets.hyperprior import PHASES, TOLD_LIMIT
from cdcodec.nets.integer import ACTIVATION_LIMIT
from cdcodec.symbols import SYMBOL_LIMIT, Symbols

SPEC = (Path(__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")
SECTIONS = {int(number): text for number, text in re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", SPEC, re.M | re.S)}
UNIFORM = [256] * 65536


def table(section: int) -> list[list[str]]:
    """Cells of the table rows of a section, without its head."""
    rows = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1:]]


def test_there_are_thirteen_sections():
    assert list(SECTIONS) == list(range(1, 14))


def test_the_header_table_is_the_struct():
    assert re.search(r'`struct "([^"]+)"`', SECTIONS[2]).group(1) == container.HEADER.format
    codes = re.findall(r"\d*[a-zA-Z]", container.HEADER.format[1:])
    rows = [(int(offset), int(size)) for offset, size, *_ in table(2)]
    assert [size for _, size in rows] == [struct.calcsize("<" + code) for code in codes]
    assert [offset for offset, _ in rows] == [struct.calcsize("<" + "".join(codes[:i])) for i in range(len(codes))]
    assert sum(size for _, size in rows) == container.HEADER.size == 28


def test_the_chunk_table_is_the_code():
    assert [(int(bit), name) for bit, name, _ in table(3)] == list(enumerate(container.CHUNKS))
    assert "bit 8 + i, of 0, 1 and 2 that follow: it is deflated" in SECTIONS[2]
    assert (container.DEFLATED, container.DEFLATED_BIT) == (container.CHUNKS[:3], 8)
    assert f"SHA-256 `{hashlib.sha256(deflate.DICTIONARY).hexdigest()}`" in SECTIONS[3]


@pytest.mark.parametrize(
    ("section", "text", "value"),
    [
        (2, "`CD 43 44 43`", container.MAGIC == b"\xcd\x43\x44\x43"),
        (2, "1…65536", config.MAX_SIDE == 65536),
        (3, "at most 2^24 bytes", deflate.MAX_CONTENT == 2**24),
        (3, "the 3144 bytes", len(deflate.DICTIONARY) == 3144),
        (4, "within ±32767", SYMBOL_LIMIT == 32767),
        (5, "units of 2^−24", TOTAL_BITS == 24),
        (5, "σ = 0.1 · 2560^(k/255)", np.allclose(SCALES, 0.1 * 2560 ** (np.arange(256) / 255), rtol=1e-12)),
        (5, "max(0.1, 0.72 σ) and 1.46 σ", HEAVY_TAILS["density_scales"] == (0.72, 1.46)),
        (5, "of weights 0.72\nand 0.28", HEAVY_TAILS["density_weights"] == (0.72, 0.28)),
        (6, "Saturation is at ±(2^24 − 1), of μ·2^f at ±32767·2^f", ACTIVATION_LIMIT == 2**24 - 1),
        (6, "both clamped to ±7", TOLD_LIMIT == 7),
        (10, "at most 2^28", config.MAX_PIXELS == 2**28),
    ],
)
def test_numbers_in_the_text_are_those_of_the_code(section, text, value):
    assert text in SECTIONS[section]
    assert value


def test_the_worked_example_is_the_file_byte_by_byte():
    expected_offset, data = 0, b""
    for offset, cell, _ in table(13):
        assert int(offset) == expected_offset
        data += bytes.fromhex(cell.strip("`"))
        expected_offset = len(data)
    assert data == pack(HEADER, CHUNKS, write(SYMBOLS, TABLES))
    assert unpack(data) == (HEADER, CHUNKS, PAYLOAD)
    assert SYMBOLS.check(FRACTION_BITS) == HEADER.symbol_check


def test_the_worked_example_states_what_its_bytes_mean():
    meaning = {int(offset): text for offset, _, text in table(13)}
    assert meaning[8].endswith(f"{HEADER.checkpoint:08X}")
    assert meaning[12].endswith(f"λ = {HEADER.lam}")
    assert (meaning[16], meaning[18]) == (f"width {HEADER.width}", f"height {HEADER.height}")
    latent = ", ".join(str(value) for value in SYMBOLS.latent(FRACTION_BITS).ravel())
    assert meaning[20].replace("−", "-") == f"symbol check {HEADER.symbol_check:08X}, of 1, -700; {latent}"
    check = struct.unpack_from("<I", pack(HEADER, CHUNKS, PAYLOAD), 24)[0]
    assert meaning[24] == f"file check {check:08X}"
    assert meaning[28].endswith(f", {len(CHUNKS['origin'])}")
    assert meaning[32] == f"`{CHUNKS['origin'].decode()}`"
    assert [meaning[54 + 4 * i][-8:] for i in range(3)] == [f"{word:08X}" for word in WORDS]
    for first, counts in (Z_ROW, NARROW_ROW, WIDE_ROW):
        stated = f"first {first}, counts {', '.join(str(count) for count in counts)}"
        assert stated in SECTIONS[13].replace("−", "-").replace("\n", " ")


def coded(symbols: Symbols, tables: Tables) -> list[tuple[list[int], int]]:
    """(counts of the row, entry) for everything that is coded, by the words of section 7."""
    sequence: list[tuple[list[int], int]] = []
    z = [(tables.z, channel, int(value)) for (channel, _, _), value in np.ndenumerate(symbols.z)]
    stage = symbols.stage
    y = []
    for turn in range(int(stage.max()) + 1):
        positions = [where for where, _ in np.ndenumerate(symbols.y) if stage[where] == turn]
        y.append([
            (tables.y, k, int(symbols.y[where])) for k in range(256) for where in positions if symbols.index[where] == k
        ])  # fmt: skip
    for part in (z, *y):
        escapes = []
        for rows, row, value in part:
            used = rows.counts[row, : rows.length[row]].tolist()
            entry = value - int(rows.first[row])
            if not 0 <= entry < len(used) - 1:
                escapes.append(value)
                entry = len(used) - 1
            sequence.append((used, entry))
        sequence += [(UNIFORM, value + 2**15) for value in escapes]
    return sequence


def assert_coder_follows_the_spec(symbols: Symbols, tables: Tables) -> None:
    sequence = coded(symbols, tables)
    words = reference_coder.encode([(sum(counts[:entry]), counts[entry]) for counts, entry in sequence])
    assert write(symbols, tables) == struct.pack(f"<{len(words)}I", *words)
    decoder = reference_coder.Decoder(words)
    assert [decoder.take(counts) for counts, _ in sequence] == [entry for _, entry in sequence]


def test_the_example_coded_by_the_text_of_the_spec():
    assert_coder_follows_the_spec(SYMBOLS, TABLES)
    assert [entry for _, entry in coded(SYMBOLS, TABLES)] == [2, 3, 32068, 0, 0, 0, 3, 0, 5, 33068]
    entries = re.search(r"The coded entries are.*", SECTIONS[13], re.S).group()
    assert "2 and 3 (z; 3 escapes), uniform 32068 (−700), 0, 0, 0 (index 0), 3, 0, 5 (index 200; 5 escapes)" in entries
    assert re.search(r"uniform\s33068 \(300\)", entries)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_coder_writes_the_words_of_the_spec(seed, size):
    """Word for word, so the coder gives every entry exactly the probability its count says."""
    rng = np.random.default_rng(seed)
    pmfs = [rng.random(rng.integers(1, 9)) ** rng.choice([1, 9, 99]) for _ in range(256)]
    rows = [(int(rng.integers(-4, 2)), quantise_pmf(pmf, 1e-9).tolist()) for pmf in pmfs]
    tables = Tables(table_set(rows[:3]), table_set(rows))
    y = rng.integers(-6, 7, (1, size, 3), dtype=np.int32) * rng.choice([0, 1], size=(1, size, 3)).astype(np.int32)
    index = rng.integers(0, 256, y.shape, dtype=np.uint8)
    z = rng.integers(-3, 4, (3, 2, 2), dtype=np.int32)
    stage = rng.integers(0, 3, y.shape, dtype=np.uint8)
    assert_coder_follows_the_spec(Symbols(z, y, index, np.zeros_like(y), stage), tables)


def test_the_phases_of_a_group_are_those_of_the_code():
    rows = re.findall(r"^\| ([1-4]) \| (.*) \|$", SECTIONS[6], re.M)
    stated = {int(count): text.replace("all positions", "0 and 1 and 2 and 3").split("; ") for count, text in rows}
    assert stated == {n: [" and ".join(map(str, phases)) for phases in PHASES[n]] for n in PHASES}


@pytest.mark.parametrize("value", range(4))
def test_runs_of_near_certain_symbols_are_coded_by_the_text_of_the_spec(value):
    """The narrowest and the widest intervals, at both ends of the range, over and over."""
    rows = [[(0, [1, 1, 2**24 - 2])], [(0, [2**24 - 2, 1, 1])], [(0, [2**23, 2**23 - 1, 1])], [(0, [1, 2**24 - 2, 1])]]
    y = np.tile(np.array([[[1, 0, 1, 1, 0, 1, 1]]], dtype=np.int32), (1, 30, 1))
    tables = Tables(table_set(rows[value]), table_set(rows[value] * 256))
    zero, none = np.zeros((1, 1, 1), dtype=np.int32), np.zeros(y.shape, dtype=np.uint8)
    assert_coder_follows_the_spec(Symbols(zero, y, none, np.zeros_like(y), none), tables)


THIRDS = [5592405, 5592406, 5592404, 1]


def around_the_middle(count: int) -> list[int]:
    """Entries of THIRDS, after z's, whose interval always holds binary 0.1000…, so that no word is final."""
    low, span, target, entries = 0, ((2**64 - 1) >> 24) * (2**24 - 1), 2**63, []
    for _ in range(count):
        unit = span >> 24
        entry = next(i for i in range(3) if target - low < unit * sum(THIRDS[: i + 1]))
        entries.append(entry)
        low, span = low + unit * sum(THIRDS[:entry]), unit * THIRDS[entry]
        if span < 2**32:
            low, span, target = low << 32, span << 32, target << 32
    return entries


@pytest.mark.parametrize(
    ("ending", "words"),
    [([], None), ([0] * 9, [0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF]), ([2] * 9, [0x80000000, 0, 0, 0])],
)
def test_carries_through_many_words_are_coded_by_the_text_of_the_spec(ending, words):
    entries = around_the_middle(100) + ending
    y = np.array(entries, dtype=np.int32).reshape(1, 1, -1)
    tables = Tables(table_set([(0, [2**24 - 1, 1])]), table_set([(0, THIRDS)] * 256))
    zero, none = np.zeros((1, 1, 1), dtype=np.int32), np.zeros(y.shape, dtype=np.uint8)
    symbols = Symbols(zero, y, none, np.zeros_like(y), none)
    assert_coder_follows_the_spec(symbols, tables)
    if words:
        assert list(struct.unpack_from("<4I", write(symbols, tables))) == words
