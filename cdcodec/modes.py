"""Pillow's many modes <-> 8-bit L, LA, RGB and RGBA, and the alpha plane beside the pixels."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

MODES = ("L", "LA", "RGB", "RGBA")
"""The modes a picture is restored to; every other one is converted to one of them."""

SRGB = {"sRGB", "sRGB IEC61966-2.1", "sRGB IEC61966-2-1 black scaled", "sRGB built-in", "sRGB2014"}
"""Descriptions of profiles that are sRGB itself; "Linear sRGB" is not."""

_CONVERT = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_NAMES = {"1": "1-bit picture", "P": "palette", "PA": "palette"}


def rawmode(image: Image.Image) -> str:
    """How an image that is not loaded yet stores its samples, in Pillow's words ("RGB;16B"); empty when unknown."""
    return " ".join(repr(tile[3]) for tile in getattr(image, "tile", ()))


def simplify(image: Image.Image, raw: str, profile: bytes | None) -> tuple[Image.Image, int, bool, list[str]]:
    """Convert a loaded image to one of MODES at 8 bits a channel.

    raw: what `rawmode` said before it was loaded. profile: its ICC profile.
    Returns the image, its original depth (8 or 16), whether the profile still holds, and notes.
    """
    mode = image.mode
    depth = 16 if mode.startswith("I;16") or re.search(r";16|\b65535\b", raw) else 8
    bits = 12 if "I;12" in raw else depth
    notes = [f"{bits} bits per channel are coded at 8"] if depth == 16 else []
    if "transparency" in image.info and (depth == 16 or _wide(image.info["transparency"])):
        # a colour of 16 bits, which the 8-bit pixels no longer tell
        image = image.copy()
        del image.info["transparency"]
        notes.append("the transparent colour of a 16-bit picture is dropped")
    if mode == "F" or mode.startswith("I"):
        grey, note = _scale_grey(image, bits)
        return grey, depth, True, notes + note
    if mode == "RGBA" and "'LA;16" in raw:  # Pillow reads 16-bit grey with alpha so
        return image.convert("LA"), depth, True, notes
    target = _CONVERT.get(mode, mode if mode in MODES else "RGB")
    if image.has_transparency_data and not target.endswith("A"):
        target += "A"
    if mode not in MODES:
        notes.append(f"{_NAMES.get(mode, mode)} converted to {target}")
    if mode == "CMYK":
        return to_srgb(image, profile), depth, False, notes
    return (image if mode == target else image.convert(target)), depth, mode != "LAB", notes


def _wide(colour: object) -> bool:
    """Whether a transparent colour is one of 16 bits; an image that is loaded no longer tells its depth."""
    values = colour if isinstance(colour, tuple) else (colour,)  # or bytes, of a palette
    return any(isinstance(value, int) and value > 255 for value in values)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert CMYK, RGB or grey through its profile to sRGB, grey staying grey; without a usable profile by plain
    arithmetic."""
    try:
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "RGB" and ImageCms.getProfileDescription(source).strip() in SRGB:
                return image
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted.convert("L") if image.mode == "L" else converted
    except (ImportError, ImageCms.PyCMSError, OSError):  # Pillow without LittleCMS, or a damaged profile
        pass
    return image if image.mode == "L" else image.convert("RGB")


def split_alpha(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """An image of one of MODES as L or RGB, and its alpha plane, uint8 (H, W), or None."""
    if image.mode not in ("LA", "RGBA"):
        return image, None
    return image.convert(image.mode[:-1]), np.array(image.getchannel("A"))


def fill_hidden(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Continue the visible colours smoothly into fully transparent areas, where they cost next to nothing.

    pixels: uint8 (H, W, 3); alpha: uint8 (H, W). Pixels of alpha above 0 stay as they are.
    """
    visible = alpha > 0
    if visible.all():
        return pixels
    filled = np.rint(_push_pull(pixels.astype(np.float32), visible)).astype(np.uint8)
    return np.where(visible[..., None], pixels, filled)


def widen_png(png: bytes, values: NDArray[np.uint8]) -> bytes:
    """The 8-bit PNG with its pixels rewritten at 16 bits, which Pillow cannot do for colour.

    values: its pixels, uint8 (H, W) or (H, W, C). v x 257 in big-endian is the byte v twice.
    """
    height = values.shape[0]
    bytes_per_pixel = 2 * (values.shape[2] if values.ndim == 3 else 1)
    rows = np.repeat(values.reshape(height, -1), 2, axis=1)
    filtered = np.ones((height, rows.shape[1] + 1), dtype=np.uint8)  # each row begins with 1: filter type Sub
    filtered[:, 1:] = rows
    filtered[:, 1 + bytes_per_pixel :] -= rows[:, :-bytes_per_pixel]
    result, position, written = [png[:8]], 8, False
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, body = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"IHDR":
            body = body[:8] + b"\x10" + body[9:]
        elif kind == b"IDAT" and written:
            continue
        elif kind == b"IDAT":
            body, written = zlib.compress(filtered.tobytes(), 6), True
        result.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(result)


def _scale_grey(image: Image.Image, bits: int) -> tuple[Image.Image, list[str]]:
    """Modes I;16, I and F to L: from the range of so many bits, 12 or 16, else from the smallest usual one (0 to 1, 255
    or 65535), where it holds the values, else from the least to the greatest of them."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    usual = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0] if bits == 8 else [2.0**bits - 1]
    fitting = [ceiling for ceiling in usual if low >= 0 and high <= ceiling]
    low, high = (0.0, fitting[0]) if fitting else (low, high)
    grey = np.rint((values - low) * (255.0 / max(high - low, 1e-30))).astype(np.uint8)
    notes = [] if fitting and bits > 8 else [f"mode {image.mode}: {low:g} to {high:g} converted to L"]
    return Image.fromarray(grey), notes


def _push_pull(colour: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill unknown pixels from averages of the known ones, coarse to fine (Gortler et al., The Lumigraph, 1996)."""
    height, width = known.shape
    if known.all():
        return colour
    if not known.any():
        return np.full_like(colour, 128.0)
    odd = ((0, height % 2), (0, width % 2))
    weight = np.pad(known, odd).astype(np.float32)
    weighted = np.pad(colour, (*odd, (0, 0))) * weight[..., None]
    half = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2)
    total = weight.reshape(half).sum(axis=(1, 3))
    mean = weighted.reshape(*half, 3).sum(axis=(1, 3)) / np.maximum(total, 1.0)[..., None]
    coarse = _push_pull(mean, total > 0)
    size = (weight.shape[1], weight.shape[0])
    planes = [np.asarray(Image.fromarray(coarse[..., c]).resize(size, Image.Resampling.BILINEAR)) for c in range(3)]
    return np.where(known[..., None], colour, np.stack(planes, axis=-1)[:height, :width])
