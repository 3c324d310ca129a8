"""The container: golden bytes, round trips, and one named error for every lie a file can tell."""

from __future__ import annotations

import math
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from example import CHUNKS, HEADER, PAYLOAD
from fuzz_container import fuzz
from fuzzing import reseal
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcodec.bits import container
from cdcodec.bits.container import Header, pack, read_header, unpack
from cdcodec.errors import (
    BitstreamError,
    CorruptError,
    ImageError,
    NotCDCError,
    TruncatedError,
    UnsupportedVersionError,
)

ALL_CHUNKS = {"icc": b"profile", "exif": b"II*\0", "xmp": b"<x/>", "alpha": bytes(9), "origin": b"{}"}
FILE = pack(HEADER, CHUNKS, PAYLOAD)
RICH = pack(HEADER, ALL_CHUNKS, PAYLOAD)
BARE = pack(HEADER, {}, PAYLOAD)


def put(data: bytes, offset: int, code: str, value: float) -> bytes:
    """data with one field overwritten and the file check made to fit again."""
    changed = bytearray(data)
    struct.pack_into(code, changed, offset, value)
    return reseal(bytes(changed))


def test_golden_header():
    assert BARE[:28].hex(" ") == "cd 43 44 43 01 00 00 00 4d 3c 2b 1a 17 b7 51 3c 28 00 1d 00 92 9f 28 8e " + (
        zlib.crc32(BARE[:24] + PAYLOAD).to_bytes(4, "little").hex(" ")
    )
    assert BARE[28:] == PAYLOAD


def test_the_header_is_at_most_32_bytes():
    assert container.HEADER.size == 28
    assert len(BARE) == 28 + len(PAYLOAD)


def test_unpack_gives_back_what_was_packed():
    assert unpack(FILE) == (HEADER, CHUNKS, PAYLOAD)
    assert unpack(RICH) == (replace(HEADER, flags=0b11111), ALL_CHUNKS, PAYLOAD)
    assert unpack(BARE) == (replace(HEADER, flags=0), {}, PAYLOAD)


def test_chunks_follow_in_flag_order_whatever_order_they_are_given_in():
    assert pack(HEADER, dict(reversed(ALL_CHUNKS.items())), PAYLOAD) == RICH
    assert list(unpack(RICH)[1]) == list(container.CHUNKS)


def test_an_empty_chunk_is_none():
    assert pack(HEADER, {"icc": b"", **CHUNKS}, PAYLOAD) == FILE


headers = st.builds(
    Header,
    checkpoint=st.integers(0, 2**32 - 1),
    lam=st.floats(2**-149, 2**100, width=32),
    width=st.integers(1, 65536),
    height=st.integers(1, 4096),
    symbol_check=st.integers(0, 2**32 - 1),
)
chunks = st.dictionaries(st.sampled_from(container.CHUNKS), st.binary(min_size=1, max_size=50))


@settings(max_examples=50, deadline=None)
@given(headers, chunks, st.binary(min_size=1, max_size=100))
def test_round_trip(header, chunks, payload):
    data = pack(header, chunks, payload)
    read, read_chunks, read_payload = unpack(data)
    flags = sum(1 << container.CHUNKS.index(name) for name in chunks)
    assert replace(read, lam=header.lam) == replace(header, flags=flags)
    assert struct.pack("<f", read.lam) == struct.pack("<f", header.lam)
    assert (read_chunks, read_payload) == (chunks, payload)
    assert read_header(data[:28]) == read
    assert pack(read, read_chunks, read_payload) == data


@pytest.mark.parametrize("lam", [0.0024, 0.0032, 0.0048, 0.0064, 0.0128, 0.0256, 0.0512, 0.0768, 0.01, 1 / 3])
def test_lambda_reads_as_the_decimal_it_was_given_as(lam):
    read = read_header(pack(replace(HEADER, lam=lam), {}, PAYLOAD)).lam
    assert read == (lam if lam != 1 / 3 else 0.33333334)


@pytest.mark.parametrize("data", [BARE, FILE, RICH])
def test_truncation_at_every_length_is_named(data):
    end_of_chunks = len(data) - len(PAYLOAD)
    for length in range(len(data)):
        with pytest.raises(BitstreamError) as caught:
            unpack(data[:length])
        expected = NotCDCError if length == 0 else TruncatedError if length <= end_of_chunks else CorruptError
        assert caught.type is expected
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", range(28))
def test_read_header_needs_28_bytes(length):
    with pytest.raises(TruncatedError if length else NotCDCError):
        read_header(FILE[:length])


def test_each_flipped_header_bit_is_named():
    may_be = {
        range(0, 4): {NotCDCError},
        range(4, 6): {UnsupportedVersionError},
        range(6, 8): {UnsupportedVersionError, TruncatedError, CorruptError},
        range(8, 28): {CorruptError},
    }
    for offset in range(28):
        (expected,) = (errors for offsets, errors in may_be.items() if offset in offsets)
        for bit in range(8):
            flipped = bytearray(FILE)
            flipped[offset] ^= 1 << bit
            with pytest.raises(BitstreamError) as caught:
                unpack(bytes(flipped))
            assert caught.type in expected


def test_each_flipped_bit_behind_the_header_is_named():
    for bit in range(28 * 8, len(RICH) * 8):
        flipped = bytearray(RICH)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptError, TruncatedError)):
            unpack(bytes(flipped))


@pytest.mark.parametrize("junk", [b"", b"\0", b"CDC", b"\xcdCDD", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(28)])
def test_junk_is_not_cdc(junk):
    with pytest.raises(NotCDCError, match=r"not a \.cdc file"):
        unpack(junk)


@pytest.mark.parametrize("version", [0, 2, 0x0100, 0xFFFF])
def test_other_versions_are_refused(version):
    with pytest.raises(UnsupportedVersionError, match=f"version {version} "):
        unpack(put(FILE, 4, "<H", version))


@pytest.mark.parametrize("flags", [1 << bit for bit in range(5, 16)] + [0xFFFF])
def test_unknown_flags_are_refused(flags):
    with pytest.raises(UnsupportedVersionError, match=f"0x{flags:04x}"):
        unpack(put(FILE, 6, "<H", flags))


@pytest.mark.parametrize("lam", [0.0, -0.0, -0.0128, math.inf, -math.inf, math.nan])
def test_lambda_must_be_finite_and_positive(lam):
    with pytest.raises(CorruptError, match="λ is stated as"):
        unpack(put(FILE, 12, "<f", lam))


@pytest.mark.parametrize("side", ["width", "height"])
def test_sizes_over_the_pixel_limit_are_refused_and_the_limit_named(side):
    big = pack(replace(HEADER, **{side: 1000, "width" if side == "height" else "height": 11}), {}, PAYLOAD)
    assert unpack(big, max_pixels=11000)[0] == read_header(big, max_pixels=11000)
    for refuse in (unpack, read_header):
        with pytest.raises(CorruptError, match="limit of 10999 pixels"):
            refuse(big, max_pixels=10999)


def test_a_65536_wide_square_is_refused_without_allocating():
    big = pack(replace(HEADER, width=65536, height=65536), {}, PAYLOAD)
    tracemalloc.start()
    with pytest.raises(CorruptError, match="65536×65536 is over the limit of 268435456 pixels"):
        unpack(big)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, len(CHUNKS["origin"]) + len(PAYLOAD) + 1])
def test_chunks_longer_than_the_file_are_refused_without_allocating(length):
    lying = put(FILE, 28, "<I", length)
    tracemalloc.start()
    with pytest.raises(TruncatedError, match=f"origin chunk, {length} bytes long by its own account"):
        unpack(lying)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_chunks_that_swallow_the_payload_are_refused():
    with pytest.raises(TruncatedError, match="before its compressed data"):
        unpack(put(FILE, 28, "<I", len(CHUNKS["origin"]) + len(PAYLOAD)))


def test_an_empty_chunk_with_its_flag_set_is_refused():
    with pytest.raises(CorruptError, match="origin chunk is empty"):
        unpack(put(FILE, 28, "<I", 0))


def test_a_file_without_payload_is_refused():
    with pytest.raises(TruncatedError, match="before its compressed data"):
        unpack(reseal(BARE[:28]))


@pytest.mark.parametrize("extra", [b"\0", b"\n", FILE])
def test_bytes_behind_the_end_are_refused(extra):
    with pytest.raises(CorruptError, match="checksum"):
        unpack(FILE + extra)


def test_every_message_is_one_line_that_says_what_to_do():
    lies = [b"PNG", FILE[:9], put(FILE, 4, "<H", 2), put(FILE, 6, "<H", 32), put(FILE, 12, "<f", 0), FILE + b"\0"]
    lies += [put(FILE, 28, "<I", 0), put(FILE, 28, "<I", 99), reseal(BARE[:28]), put(FILE, 16, "<I", 2**32 - 1)]
    for lie in lies:
        with pytest.raises(BitstreamError, match=r"^[^\n]+; [^\n;]+$"):
            unpack(lie)


@pytest.mark.parametrize(("width", "height"), [(65537, 1), (1, 65537), (0, 1), (1, 0), (-1, 5)])
def test_pictures_the_format_cannot_hold_are_refused(width, height):
    with pytest.raises(ImageError, match=r"does not fit a \.cdc file"):
        pack(replace(HEADER, width=width, height=height), {}, PAYLOAD)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-46])
def test_a_lambda_float32_cannot_hold_is_not_packed(lam):
    with pytest.raises(ValueError, match="not a positive float32"):
        pack(replace(HEADER, lam=lam), {}, PAYLOAD)


def test_other_values_that_do_not_fit_are_not_packed():
    for wrong in ({"checkpoint": -1}, {"checkpoint": 2**32}, {"symbol_check": 2**32}):
        with pytest.raises(ValueError, match="uint32"):
            pack(replace(HEADER, **wrong), {}, PAYLOAD)
    with pytest.raises(ValueError, match="unknown chunk"):
        pack(HEADER, {"iptc": b"x"}, PAYLOAD)
    with pytest.raises(ValueError, match="needs a payload"):
        pack(HEADER, {}, b"")



def test_a_short_fuzzing_run_finds_nothing():
    findings = fuzz(runs=1500, seed=1)
    assert findings.runs == sum(findings.outcomes.values()) == 1500
    names = {"NotCDCError", "UnsupportedVersionError", "TruncatedError", "CorruptError", "read"}
    assert findings.outcomes.keys() == names
