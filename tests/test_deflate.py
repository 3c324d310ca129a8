"""Deflated chunks: what photographs carry gets small, and no stream can say more than it holds."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from example import HEADER, PAYLOAD
from fuzzing import reseal

from cdcodec.bits import container
from cdcodec.bits.container import pack, split, unpack
from cdcodec.bits.deflate import DICTIONARY, MAX_CONTENT, deflate, inflate
from cdcodec.errors import CorruptError, UnsupportedVersionError

XMP = b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>' + b" " * 2000 + b'<?xpacket end="w"?>'


def with_flags(data: bytes, flags: int) -> bytes:
    return reseal(data[:6] + flags.to_bytes(2, "little") + data[8:])


def stored(name: str, chunk: bytes) -> bytes:
    """A file whose one chunk has these bytes and says that they are deflated."""
    bit = container.CHUNKS.index(name)
    data = pack(HEADER, {}, PAYLOAD)
    return with_flags(data[:28] + len(chunk).to_bytes(4, "little") + chunk + data[28:], 1 << bit | 1 << bit + 8)


def raw(content: bytes, dictionary: bytes = DICTIONARY) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=dictionary)
    return stream.compress(content) + stream.flush()


def test_the_profile_most_photographs_carry_takes_forty_bytes():
    data = pack(HEADER, {"icc": DICTIONARY}, PAYLOAD)
    assert len(data) < len(pack(HEADER, {}, PAYLOAD)) + 4 + 40
    assert unpack(data)[1] == {"icc": DICTIONARY}
    assert unpack(data)[0].flags == 0x101
    variant = DICTIONARY[:64] + b"\1" + DICTIONARY[65:]
    assert len(deflate(variant)) < 50
    assert inflate(deflate(variant), "icc") == variant


def test_each_of_three_chunks_is_deflated_where_that_is_shorter():
    noise = random.Random(1).randbytes(300)
    given = {"icc": noise, "exif": bytes(300), "xmp": XMP, "alpha": bytes(300), "origin": b" " * 300}
    data = pack(HEADER, given, PAYLOAD)
    header, chunks, _ = split(data)
    assert header.flags == 0b110_00011111
    lengths = {name: len(chunk) for name, chunk in chunks.items()}
    assert lengths["exif"] < 20
    assert lengths["xmp"] < 100
    assert (lengths["icc"], lengths["alpha"], lengths["origin"]) == (300, 300, 300)
    assert unpack(data)[1] == given


def test_chunks_need_not_be_deflated():
    data = pack(HEADER, {"icc": b"x"}, PAYLOAD)
    whole = reseal(data[:28] + len(DICTIONARY).to_bytes(4, "little") + DICTIONARY + PAYLOAD)
    assert unpack(whole)[1] == {"icc": DICTIONARY}


@pytest.mark.parametrize("flags", [0x100, 0x801, 0x808, 0x1010, 0x8000, 0x201, 0x21])
def test_flags_that_no_encoder_sets_are_refused(flags):
    data = pack(HEADER, {"icc": b"x"}, PAYLOAD)
    with pytest.raises(UnsupportedVersionError, match=f"flags 0x{flags:04x}"):
        unpack(with_flags(data, flags))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (b"\xff\xff", "is not deflated as it says"),
        (b"x" * 50, "is not deflated as it says"),
        (raw(XMP)[:-1], "does not end where"),
        (raw(XMP) + b"\0", "does not end where"),
        (raw(b""), "does not end where"),
        (raw(bytes(MAX_CONTENT + 1)), f"is over {MAX_CONTENT} bytes"),
    ],
)
@pytest.mark.parametrize("name", container.DEFLATED)
def test_what_does_not_inflate_is_damaged(name, chunk, message):
    with pytest.raises(CorruptError, match=f"^the {name} chunk {message}[^\n]*; [^\n]*$"):
        unpack(stored(name, chunk))


def test_a_bomb_takes_no_more_than_the_limit():
    bomb = stored("xmp", raw(bytes(400 << 20)))
    tracemalloc.start()
    with pytest.raises(CorruptError, match="is over"):
        unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_CONTENT


def test_the_longest_that_is_deflated_can_be_read():
    longest = bytes(MAX_CONTENT)
    assert inflate(deflate(longest), "xmp") == longest
    assert deflate(longest + b"\0") == longest + b"\0"
