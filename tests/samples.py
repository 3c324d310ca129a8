"""Small pictures and files of them, for the tests of what becomes of pictures."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from cdcodec import image as pictures


def scene(height: int = 24, width: int = 40, channels: int = 3) -> np.ndarray:
    """uint8 (H, W, C): smooth, and different under every flip and rotation."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 5 + columns * 3, 200 - rows * 4 + columns, 30 + columns * 5, 255 - rows * 10]
    return np.stack(planes[:channels], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def restored(picture: pictures.Picture) -> Image.Image:
    return pictures.to_pil(picture.pixels, picture.chunks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of values uint16 (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16_values(data: bytes) -> np.ndarray:
    """The uint16 samples (H, W, C) of a PNG written by `pictures.write` (filter types 0 and 1)."""
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 16
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[kind]
    compressed, position = b"", 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            compressed += data[position + 8 : position + 8 + length]
        position += 12 + length
    rows = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, -1)
    assert set(rows[:, 0]) == {1}
    samples = np.cumsum(rows[:, 1:].reshape(height, width, 2 * channels), axis=1, dtype=np.uint8)
    return samples.reshape(height, width, channels, 2).copy().view(">u2")[..., 0].astype(np.uint16)
