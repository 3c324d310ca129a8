"""The .cdc file: a 28-byte header, optional chunks, one payload to the end. SPEC.md is the same in words.

    offset  0   4  magic CD 43 44 43     12   4  λ, float32              20   4  symbol check, CRC-32
            4   2  version               16   2  width - 1               24   4  file check, CRC-32
            6   2  flags                 18   2  height - 1              28      chunks, payload
            8   4  checkpoint id
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from cdcodec.bits.deflate import deflate, inflate
from cdcodec.config import MAX_PIXELS, MAX_SIDE
from cdcodec.errors import CorruptError, ImageError, NotCDCError, TruncatedError, UnsupportedVersionError

MAGIC = b"\xcdCDC"
VERSION = 1
HEADER = struct.Struct("<4sHHIfHHII")
CHUNKS = ("icc", "exif", "xmp", "alpha", "origin")
"""Names of the optional chunks; bit i of the flags says that CHUNKS[i] is there, and they follow in this order."""
DEFLATED, DEFLATED_BIT = CHUNKS[:3], 8
"""Those that are deflated where that is shorter (deflate.py); bit 8 + i of the flags says that CHUNKS[i] is."""

MAX_CHUNK = (1 << 32) - 1

_LENGTH = struct.Struct("<I")
_CHECKED = HEADER.size - 4


@dataclass(frozen=True)
class Header:
    """What the first 28 bytes say.

    checkpoint: uint32, the first four bytes (little-endian) of the hash of the integer tensors that define the stream.
    lam: λ > 0, the rate's weight the picture was coded with; larger means a smaller file. Stored as float32.
    width, height: of the picture in pixels, 1…65536.
    symbol_check: uint32, `Symbols.check` of what the payload decodes to.
    flags: which chunks follow, and which are deflated. `unpack` and `read_header` fill it in; `pack` goes by the chunks
    it is given.
    """

    checkpoint: int
    lam: float
    width: int
    height: int
    symbol_check: int
    flags: int = 0


def pack(header: Header, chunks: Mapping[str, bytes], payload: bytes) -> bytes:
    """The whole file. An empty chunk is the same as none and is left out.

    Raises ImageError for a picture or chunk too large for the format, ValueError for other values it cannot hold.
    """
    if not (1 <= header.width <= MAX_SIDE and 1 <= header.height <= MAX_SIDE):
        raise ImageError(f"a picture of {header.width}×{header.height} pixels does not fit a .cdc file; "
                         f"scale or cut it to 1…{MAX_SIDE} pixels a side")
    if not payload:
        raise ValueError("a .cdc file needs a payload")
    unknown = set(chunks) - set(CHUNKS)
    if unknown:
        raise ValueError(f"unknown chunk {sorted(unknown)}; the format has {CHUNKS}")
    flags, body = 0, b""
    for bit, name in enumerate(CHUNKS):
        content = chunks.get(name, b"")
        if len(content) > MAX_CHUNK:
            raise ImageError(f"the picture's {name} data is over {MAX_CHUNK} bytes; strip it")
        if content:
            stored = deflate(content) if name in DEFLATED else content
            flags |= 1 << bit | (len(stored) < len(content)) << bit + DEFLATED_BIT
            body += _LENGTH.pack(len(stored)) + stored
    lam = _float32(header.lam)
    if not 0 < lam < math.inf:
        raise ValueError(f"λ = {header.lam} is not a positive float32")
    try:
        start = HEADER.pack(MAGIC, VERSION, flags, header.checkpoint, lam, header.width - 1, header.height - 1,
                            header.symbol_check, 0)[:_CHECKED]
    except struct.error as error:
        raise ValueError(f"the checkpoint id and the symbol check must be uint32: {error}") from None
    rest = body + payload
    return start + _LENGTH.pack(zlib.crc32(rest, zlib.crc32(start))) + rest


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """The header from the first 28 bytes of a file (more are ignored). The file check is not verified.

    Raises NotCDCError, UnsupportedVersionError, TruncatedError or CorruptError.
    """
    if not data or data[:4] != MAGIC[: len(data)]:
        begin = f"begins with {data[:4].hex(' ')}" if data else "is empty"
        raise NotCDCError(f"not a .cdc file: it {begin}; give a file that cdcodec has encoded")
    if len(data) < HEADER.size:
        raise TruncatedError(f"the file ends after {len(data)} of {HEADER.size} header bytes; get it again")
    _, version, flags, checkpoint, lam, width, height, symbol_check, _ = HEADER.unpack_from(data)
    if version != VERSION:
        raise UnsupportedVersionError(f"format version {version} is not {VERSION}, the one known here; update cdcodec")
    there, deflated = flags % (1 << DEFLATED_BIT), flags >> DEFLATED_BIT
    if there >> len(CHUNKS) or deflated >> len(DEFLATED) or deflated & ~there:
        raise UnsupportedVersionError(f"the flags 0x{flags:04x} name chunks not known here; update cdcodec")
    if not (math.isfinite(lam) and lam > 0):
        raise CorruptError(f"λ is stated as {lam}, but must be finite and above 0; get the file again")
    header = Header(checkpoint, _shortest(lam), width + 1, height + 1, symbol_check, flags)
    if header.width * header.height > max_pixels:
        raise CorruptError(f"the stated size {header.width}×{header.height} is over the limit of {max_pixels} pixels; "
                           "raise the limit if you trust the file")
    return header


def unpack(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, dict[str, bytes], bytes]:
    """(header, chunks by name, payload) of a whole file, the file check verified.

    Raises NotCDCError, UnsupportedVersionError, TruncatedError or CorruptError.
    """
    header, stored, payload = split(data, max_pixels)
    return header, inflated(header, stored), payload


def inflated(header: Header, stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """The content of chunks that are stored as `split` gives them. Raises CorruptError."""
    deflated = [name for bit, name in enumerate(DEFLATED, DEFLATED_BIT) if header.flags >> bit & 1]
    return {name: inflate(chunk, name) if name in deflated else chunk for name, chunk in stored.items()}


def split(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, dict[str, bytes], bytes]:
    """The same as `unpack`, but the chunks as they are stored: deflated ones stay so."""
    header = read_header(data, max_pixels)
    chunks = {}
    at = HEADER.size
    for name in _chunk_names(header.flags):
        if len(data) - at < _LENGTH.size:
            raise TruncatedError(f"the file ends before its {name} chunk; get it again")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise TruncatedError(f"the file ends within its {name} chunk, {length} bytes long by its own account, "
                                 f"{len(data) - at} there; get it again")
        if length == 0:
            raise CorruptError(f"the {name} chunk is empty, which no encoder writes; get the file again")
        chunks[name] = bytes(data[at : at + length])
        at += length
    if at == len(data):
        raise TruncatedError("the file ends before its compressed data; get it again")
    (check,) = _LENGTH.unpack_from(data, _CHECKED)
    view = memoryview(data)
    if zlib.crc32(view[HEADER.size :], zlib.crc32(view[:_CHECKED])) != check:
        raise CorruptError("the checksum does not fit: the file is damaged or was cut short; get it again")
    return header, chunks, bytes(data[at:])


def _chunk_names(flags: int) -> list[str]:
    return [name for bit, name in enumerate(CHUNKS) if flags >> bit & 1]


def _float32(value: float) -> float:
    """value rounded to float32; infinite if that overflows."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def _shortest(lam: float) -> float:
    """The shortest decimal that float32 rounds to lam, so that a file coded with λ = 0.0128 says 0.0128."""
    for digits in range(1, 10):
        short = float(f"{lam:.{digits}g}")
        if _float32(short) == lam:
            return short
    return lam
