"""Pictures: whatever Pillow reads <-> uint8 RGB pixels and the side chunks of a .cdc file.

The chunks, all optional:

  icc     the ICC profile
  exif    the EXIF block from its TIFF header on (no "Exif\\0\\0" before it), orientation reset to 1
  xmp     the XMP packet
  alpha   the alpha plane, lossless: a PNG of mode L; absent when fully opaque
  origin  JSON {"mode": "L" | "LA" | "RGB" | "RGBA", "depth": 8 | 16}; absent for 8-bit RGB
"""

from __future__ import annotations

import io
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cdcodec import metadata, modes
from cdcodec.config import MAX_PIXELS, MAX_SIDE
from cdcodec.errors import CdcodecError, CorruptError, ImageError

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {"compress_level": 4},  # half the time of Pillow's 6, less than 1 % more bytes: a batch waits for it
}
_pillow_lock = threading.RLock()


@dataclass(frozen=True)
class Picture:
    """A picture as the codec takes it.

    pixels: uint8 (H, W, 3), RGB, upright. Grey pictures have three equal channels.
    chunks: the side chunks, by name (see the module's docstring).
    notes: what the user should know, a few words each ("CMYK converted to RGB").
    """

    pixels: NDArray[np.uint8]
    chunks: dict[str, bytes]
    notes: tuple[str, ...] = ()


LEFT_OUT = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
"""EPS would run Ghostscript on whatever the file says; the others Pillow recognises but cannot decode."""


ICONS = frozenset({"ICO", "ICNS"})
"""Formats that Pillow would shrink a photograph for; they are read, but not written."""


def readable_extensions() -> frozenset[str]:
    """Lower-case file extensions, with the dot, that `read` knows."""
    readable = _formats()
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in readable)


def writable_extensions() -> dict[str, str]:
    """Lower-case file extensions, with the dot, that `write` knows, and Pillow's name of each one's format."""
    known = Image.registered_extensions()  # which loads the plugins
    return {ext: name for ext, name in known.items() if name in Image.SAVE and name not in ICONS}


def read(source: str | Path | BinaryIO | bytes, *, max_pixels: int = MAX_PIXELS, strip: bool = False) -> Picture:
    """Read the first picture of a file (a path, an open binary file, or its bytes), upright.

    `strip` leaves out EXIF and XMP, and also the ICC profile, the picture being converted to sRGB before.
    The size is checked against `max_pixels` before any pixel is decoded. Raises ImageError.
    """
    data = _contents(source)
    with _reading(max_pixels), Image.open(io.BytesIO(data), formats=_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"{width} x {height} pixels exceed the limit of {max_pixels}; --max-pixels raises it")
        return from_pil(image, strip=strip, max_pixels=max_pixels)


def from_pil(image: Image.Image, *, strip: bool = False, max_pixels: int | None = None) -> Picture:
    """Convert a PIL image of any mode; max_pixels, for those that are not loaded yet, None for Pillow's own limit.
    Raises ImageError."""
    if max(image.size) > MAX_SIDE or min(image.size) < 1:
        raise ImageError(f"{image.width} x {image.height} pixels: each side must have 1 to {MAX_SIDE}")
    raw = modes.rawmode(image)
    with _reading(max_pixels):
        several = getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD")
        image.load()
        image, chunks, notes = metadata.upright(image)
        image, depth, profile_holds, mode_notes = modes.simplify(image, raw, chunks.get("icc"))
        colour, alpha = modes.split_alpha(image)
        if not profile_holds:
            chunks.pop("icc", None)
        if strip:
            colour = modes.to_srgb(colour, chunks.get("icc"))
            chunks = {}
        pixels = np.array(colour.convert("RGB"))
    if alpha is not None and alpha.min() < 255:
        pixels = modes.fill_hidden(pixels, alpha)
        chunks["alpha"] = _png(Image.fromarray(alpha), optimize=True)
    if (image.mode, depth) != ("RGB", 8):
        chunks["origin"] = json.dumps({"mode": image.mode, "depth": depth}, separators=(",", ":")).encode()
    first = ["more than one picture or frame: only the first is coded"] if several else []
    return Picture(pixels, chunks, (*first, *notes, *mode_notes))


def from_array(array: NDArray[np.uint8]) -> Picture:
    """Convert a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): grey, RGB or RGBA. Raises ImageError."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ImageError(f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), not {array.dtype} {array.shape}")
    return from_pil(Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array))


def original_depth(chunks: dict[str, bytes]) -> int:
    """Bits per channel of the picture that was encoded, 8 or 16. Raises CorruptError."""
    return _origin(chunks)[1]


def original_mode(chunks: dict[str, bytes]) -> str:
    """L, LA, RGB or RGBA: the mode `to_pil` restores. Raises CorruptError."""
    return _origin(chunks)[0]


def to_pil(pixels: NDArray[np.uint8], chunks: dict[str, bytes]) -> Image.Image:
    """The decoded picture in its original mode (L, LA, RGB, RGBA; 8 bits), with profile, EXIF and XMP in `.info`.

    pixels: uint8 (H, W, 3). Raises CorruptError when a chunk is not what `read` makes.
    """
    mode, _ = _origin(chunks)
    image = Image.fromarray(pixels)
    if mode in ("L", "LA"):
        image = image.convert("L")
    if mode in ("LA", "RGBA"):
        image.putalpha(_alpha_plane(chunks["alpha"], image.size) if "alpha" in chunks else 255)
    elif "alpha" in chunks:
        raise CorruptError(f"there is an alpha plane, but the original is said to be {mode}")
    metadata.attach(image, chunks)
    return image


def write(
    image: Image.Image, target: Path | BinaryIO, format: str | None = None, *, depth: int = 8
) -> tuple[str, ...]:
    """Write an image with the metadata of its `.info`; gives a note on each block of it that the format cannot hold.

    format: Pillow's name, or None to take it from the target's extension.
    depth: 16 scales the 8-bit values by 257; for PNG, and for grey TIFF.
    Raises ImageError when the format cannot hold the picture, OSError when the target cannot be written.
    """
    if format is None:
        suffix = target.suffix.lower() if isinstance(target, Path) else ""
        format = writable_extensions().get(suffix)
        if format is None:
            raise ImageError(f"{suffix or 'no extension'} names no picture format that can be written")
    try:
        with _silent() if format == "TIFF" else nullcontext():  # it reads the EXIF that it writes
            options, notes = metadata.save_options(image, format)
            data = _render(image, format, depth, _SAVE_OPTIONS.get(format, {}) | options)
    except CdcodecError:
        raise
    except Exception as error:  # each plugin refuses in its own way
        other = "" if format == "PNG" else "; PNG holds every picture"
        raise ImageError(f"this picture cannot be written as {format}: {error}{other}") from error
    if isinstance(target, Path):
        target.write_bytes(data)
    else:
        target.write(data)
    return notes


def pad(pixels: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Replicate the right and bottom edge until both sides are multiples of `multiple`. uint8 (H, W, 3) both ways."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")


def _contents(source: str | Path | BinaryIO | bytes) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, Path)):
            data = Path(source).read_bytes()
        else:
            data = source.read()
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except IsADirectoryError:
        raise ImageError("this is a folder, not a picture") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError("the file is empty")
    return data


def _formats() -> list[str]:
    """Pillow's formats but those of LEFT_OUT."""
    Image.init()
    return [name for name in Image.ID if name not in LEFT_OUT]


@contextmanager
def _silent() -> Iterator[None]:
    """Without Pillow's warnings. Their filters, and its limit of pixels, are global to the process, hence the lock."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _reading(max_pixels: int | None = None) -> Iterator[None]:
    """Turn whatever Pillow throws into ImageError, silence its warnings, put our limit in the place of its own."""
    with _silent():
        before = Image.MAX_IMAGE_PIXELS
        if max_pixels is not None:
            Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # it warns from there, and raises above twice as many
        try:
            yield
        except CdcodecError:
            raise
        except UnidentifiedImageError:
            raise ImageError("not a picture of a known format, or damaged in its first bytes") from None
        except Image.DecompressionBombError:
            limit = "Pillow's limit" if max_pixels is None else f"the limit of {max_pixels}; --max-pixels raises it"
            raise ImageError(f"more pixels than {limit}") from None
        except MemoryError as error:
            raise ImageError("not enough memory for a picture of this size") from error
        except Exception as error:  # on damaged files the plugins raise nearly every kind
            raise ImageError(f"damaged or truncated picture: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _origin(chunks: dict[str, bytes]) -> tuple[str, int]:
    """(mode, depth) of the original picture. Raises CorruptError."""
    if "origin" not in chunks:
        return "RGB", 8
    try:
        if len(chunks["origin"]) > 1000:
            raise ValueError("too long")
        origin = json.loads(chunks["origin"])
        mode, depth = origin["mode"], origin["depth"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError("the chunk that tells the original mode cannot be read") from error
    if mode not in modes.MODES or depth not in (8, 16):
        raise CorruptError(f"the original is said to be {mode!r} at {depth!r} bits, which this release does not know")
    return mode, depth


def _alpha_plane(data: bytes, size: tuple[int, int]) -> Image.Image:
    try:
        with _reading(max(size[0] * size[1], MAX_PIXELS)), Image.open(io.BytesIO(data), formats=["PNG"]) as plane:
            if plane.size != size or plane.mode != "L":
                raise CorruptError(f"the alpha plane is {plane.mode} of {plane.size}, the picture has {size}")
            return plane.copy()
    except ImageError as error:
        raise CorruptError(f"the alpha plane cannot be read: {error}") from error


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _render(image: Image.Image, format: str, depth: int, options: dict[str, Any]) -> bytes:
    """The bytes of a picture file."""
    if depth == 16 and format == "PNG":
        return modes.widen_png(_png(image, **options | {"compress_level": 1}), np.asarray(image))
    if depth == 16:
        if format != "TIFF" or image.mode != "L":
            raise ImageError(f"{image.mode} at 16 bits cannot be written as {format}; write PNG, or at 8 bits")
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
