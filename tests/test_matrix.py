"""Any picture: every mode of Pillow × sizes × metadata through encode and decode, and the table of it in the docs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import cdcodec
from cdcodec import image as pictures

PAGE = Path(__file__).parents[1] / "docs" / "pictures.md"
SIZES = [(1, 1), (1, 70), (70, 1), (33, 17)]
ORIENTATION = 0x0112
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


@dataclass(frozen=True)
class Row:
    """mode: what comes back. depth: bits noted of the original. profile: what becomes of the ICC profile."""

    mode: str
    note: str = ""
    depth: int = 8
    profile: str = "kept"


ROWS = {
    "1": Row("L", "1-bit picture converted to L"),
    "L": Row("L"),
    "LA": Row("LA"),
    "La": Row("LA", "La converted to LA"),
    "I;16": Row("L", "16 bits per channel are coded at 8", 16),
    "I;16B": Row("L", "16 bits per channel are coded at 8", 16),
    "I": Row("L", "mode I: 0 to 255 converted to L"),
    "F": Row("L", "mode F: 0 to 255 converted to L"),
    "P": Row("RGB", "palette converted to RGB"),
    "P with transparency": Row("RGBA", "palette converted to RGBA"),
    "PA": Row("RGBA", "palette converted to RGBA"),
    "RGB": Row("RGB"),
    "RGB with a transparent colour": Row("RGBA"),
    "RGBA": Row("RGBA"),
    "RGBa": Row("RGBA", "RGBa converted to RGBA"),
    "RGBX": Row("RGB", "RGBX converted to RGB"),
    "CMYK": Row("RGB", "CMYK converted to RGB", profile="used, then dropped"),
    "YCbCr": Row("RGB", "YCbCr converted to RGB"),
    "HSV": Row("RGB", "HSV converted to RGB"),
    "LAB": Row("RGB", "LAB converted to RGB", profile="dropped"),
}


def make(name: str, size: tuple[int, int]) -> Image.Image:
    """A picture of that mode; its values span 0 to 255 where it has more than a pixel."""
    width, height = size
    values = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    values[0, 0] = 255
    rgb, rgba = Image.fromarray(values[..., :3]), Image.fromarray(values)
    if name.startswith("I;16"):
        return Image.fromarray((values[..., 0].astype(np.uint16) * 257).astype("<u2" if name == "I;16" else ">u2"))
    if name.startswith("P"):
        image = rgb.quantize(16).convert(name[:2].strip())
        if "transparency" in name:
            image.info["transparency"] = int(np.asarray(image)[0, 0])
        return image
    if name == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
    if name.upper() in ("LA", "RGBA"):
        return rgba.convert(name.upper()).convert(name)
    if "transparent" in name:
        rgb.info["transparency"] = rgb.getpixel((0, 0))
        return rgb
    return rgb.convert(name)


@cache
def profile() -> bytes:
    """An sRGB profile, always the same: it holds the time of its making."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def dressed(image: Image.Image) -> Image.Image:
    """The picture with a profile, XMP, and EXIF that says it lies on its side."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 6, "Maker"
    image.info |= {"icc_profile": profile(), "exif": exif.tobytes(), "xmp": XMP}
    return image


def alpha_of(image: Image.Image) -> np.ndarray:
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no other way from La
    return np.asarray(image.convert("RGBA").getchannel("A"))


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize("metadata", ["none", "kept", "stripped"])
def test_every_mode(name, metadata, tiny):
    row = ROWS[name]
    for size in SIZES:
        original = make(name, size)
        image = original.copy() if metadata == "none" else dressed(original.copy())
        picture = pictures.from_pil(image, strip=metadata == "stripped")
        if size == (33, 17) or row.note.startswith("16"):
            assert picture.notes == ((row.note,) if row.note else ())
        data = cdcodec.encode(image, model=tiny, strip=metadata == "stripped")
        back = cdcodec.decode(data, model=tiny, steps=0)
        upright = size if metadata == "none" else size[::-1]
        assert (back.mode, back.size) == (row.mode, upright)
        assert pictures.original_depth(picture.chunks) == row.depth
        if row.mode.endswith("A"):
            alpha = alpha_of(original)
            assert np.array_equal(alpha_of(back), alpha if metadata == "none" else np.rot90(alpha, -1))
        kept = {"icc_profile": profile() if row.profile == "kept" else None, "xmp": XMP} if metadata == "kept" else {}
        for key in ("icc_profile", "xmp"):
            assert back.info.get(key) == kept.get(key)
        orientation = back.getexif().get(ORIENTATION)
        assert orientation == (1 if metadata == "kept" else None)
        assert back.getexif().get(0x010F) == ("Maker" if metadata == "kept" else None)
        written = io.BytesIO()
        pictures.write(back, written, "PNG", depth=row.depth)
        again = pictures.read(written.getvalue())
        assert pictures.original_mode(again.chunks) == row.mode
        assert pictures.original_depth(again.chunks) == row.depth


def test_no_mode_of_pillow_is_forgotten():
    assert {*Image.MODES} <= {name.partition(" ")[0] for name in ROWS} | {"I;16L", "I;16N"}


def test_the_table_in_the_docs():
    lines = ["| mode | comes back as | noted depth | ICC profile | notice |", "|---|---|---|---|---|"]
    for name, row in ROWS.items():
        lines.append(f"| {name} | {row.mode} | {row.depth} | {row.profile} | {row.note or '–'} |")
    assert "\n".join(lines) in PAGE.read_text()
