"""What a picture file carries beside its pixels: ICC profile, EXIF, XMP, and the orientation hidden in the last two."""

from __future__ import annotations

import re
import struct
from typing import Any

from PIL import Image, PngImagePlugin

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_DESCRIPTIVE_TAGS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432)
_TIFF_XMP = 700
JPEG_SEGMENT = 65504
"""Most bytes of EXIF or XMP in one segment of a JPEG file, behind the name that each begins with."""
_EXIF_AND_GPS = (0x8769, 0x8825)


def upright(image: Image.Image) -> tuple[Image.Image, dict[str, bytes], list[str]]:
    """Turn a loaded image as its orientation tag says.

    Returns the image, its metadata under the chunk names "icc", "exif", "xmp" with the tag reset to 1, and notes.
    Nothing but the tag changes in EXIF and XMP.
    """
    xmp = image.info.get("xmp") or b""
    metadata = {"icc": image.info.get("icc_profile") or b"", "xmp": xmp.encode() if isinstance(xmp, str) else xmp}
    orientation, notes = 1, []
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        exif = _exif_block(image)
        metadata["exif"] = _reset_orientation(exif) if orientation in _UPRIGHT else exif
    except Exception:  # damaged EXIF makes Pillow raise many kinds, and is no reason to refuse a sound picture
        notes = ["unreadable EXIF data dropped"]
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        metadata["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", metadata["xmp"])
    return image, {name: data for name, data in metadata.items() if data}, notes


def attach(image: Image.Image, chunks: dict[str, bytes]) -> None:
    """Put the chunks "icc", "exif" and "xmp" where Pillow keeps them, in `image.info`."""
    if "icc" in chunks:
        image.info["icc_profile"] = chunks["icc"]
    if "exif" in chunks:
        image.info["exif"] = b"Exif\0\0" + chunks["exif"]
    if "xmp" in chunks:
        image.info["xmp"] = chunks["xmp"]


def save_options(image: Image.Image, format: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments that make `image.save` write the metadata of `image.info` into a file of that format; and notes on
    what is left out of it, since the format cannot hold so much."""
    profile, exif, xmp = (image.info.get(name) for name in ("icc_profile", "exif", "xmp"))
    notes: list[str] = []
    if format == "JPEG" and exif and len(exif) > JPEG_SEGMENT:
        notes, exif = [f"{len(exif)} bytes of EXIF are left out: JPEG cannot hold so many"], None
    if format == "JPEG" and xmp and len(xmp) > JPEG_SEGMENT:
        notes, xmp = [*notes, f"{len(xmp)} bytes of XMP are left out: JPEG cannot hold so many"], None
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if exif:
        options["exif"] = exif
    if xmp and format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif xmp and format == "TIFF":
        options["exif"] = Image.Exif()
        options["exif"].load(exif or b"")
        options["exif"][_TIFF_XMP] = xmp
    elif xmp:
        options["xmp"] = xmp
    return options, tuple(notes)


def _exif_block(image: Image.Image) -> bytes:
    """The EXIF block from its TIFF header on; empty when there is none. Raises ValueError without that header."""
    data = image.info.get("exif")
    if data is None and "Raw profile type exif" in image.info:
        data = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    if data is None and image.format == "TIFF":
        data = _exif_of_tiff(image.getexif())
    data = (data or b"").removeprefix(b"Exif\0\0")
    if data and data[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("no TIFF header")
    return data


def _exif_of_tiff(tags: Image.Exif) -> bytes:
    """The descriptive tags of a TIFF file; its others tell where the pixels lie and mean nothing elsewhere."""
    kept = Image.Exif()
    for tag in _TIFF_DESCRIPTIVE_TAGS:
        if tag in tags:
            kept[tag] = tags[tag]
    for ifd in _EXIF_AND_GPS:
        if content := tags.get_ifd(ifd):
            kept[ifd] = dict(content)
    return kept.tobytes() if len(kept) else b""


def _reset_orientation(exif: bytes) -> bytes:
    """Set the orientation in the first directory to 1 in place. Raises struct.error or KeyError on a damaged block."""
    if not exif:
        return exif
    block = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}[bytes(block[:2])]
    (start,) = struct.unpack_from(order + "I", block, 4)
    (entries,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from(order + "H", block, entry)[0] == _ORIENTATION:
            struct.pack_into(order + "HHIHH", block, entry, _ORIENTATION, 3, 1, 1, 0)
    return bytes(block)
