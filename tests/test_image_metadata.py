"""What lies beside the pixels: 16 bits, orientation, EXIF, XMP and colour profiles."""

from __future__ import annotations

import io
import json
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms
from samples import encoded, png16, png16_values, restored, scene

from cdcodec import image as pictures
from cdcodec.errors import ImageError

ORIENTATION = 0x0112


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_sixteen_bit_png_there_and_back(channels, mode, tmp_path):
    values = scene(channels=channels).astype(np.uint16) * 257
    picture = pictures.read(png16(values))
    assert picture.notes == ("16 bits per channel are coded at 8",)
    assert json.loads(picture.chunks["origin"]) == {"mode": mode, "depth": 16}
    assert pictures.original_depth(picture.chunks) == 16
    back = restored(picture)
    assert back.mode == mode
    pictures.write(back, tmp_path / "deep.png", depth=16)
    assert np.array_equal(png16_values((tmp_path / "deep.png").read_bytes()), values)
    with Image.open(tmp_path / "deep.png") as opened:  # sound in the eyes of a strict reader, checksums and all
        opened.verify()
    assert pictures.read(tmp_path / "deep.png").pixels.tobytes() == picture.pixels.tobytes()
    pictures.write(back, tmp_path / "flat.png")
    assert (tmp_path / "flat.png").read_bytes()[24] == 8


def test_sixteen_bit_grey_rounds_to_nearest():
    values = np.arange(0, 65536, 13, dtype=np.uint16).reshape(1, -1)
    picture = pictures.read(png16(values[..., None]))
    assert np.abs(picture.pixels[0, :, 0].astype(int) * 257 - values[0]).max() <= 128


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
def test_sixteen_bit_grey_in_other_formats(format, tmp_path):
    values = scene()[..., 0].astype(np.uint16) * 257
    picture = pictures.read(encoded(Image.fromarray(values), format))
    assert np.array_equal(picture.pixels[..., 0], scene()[..., 0])
    assert pictures.original_depth(picture.chunks) == 16
    pictures.write(restored(picture), tmp_path / "deep.tif", depth=16)
    with Image.open(tmp_path / "deep.tif") as opened:
        assert np.array_equal(np.asarray(opened), values)


def test_sixteen_bit_colour_ppm():
    values = scene().astype(">u2") * 257
    picture = pictures.read(b"P6 40 24 65535\n" + values.tobytes())
    assert np.array_equal(picture.pixels, scene())
    assert pictures.original_depth(picture.chunks) == 16


def test_sixteen_bits_in_a_format_without_them(tmp_path):
    with pytest.raises(ImageError, match="RGB at 16 bits cannot be written as JPEG; write PNG"):
        pictures.write(Image.fromarray(scene()), tmp_path / "deep.jpg", depth=16)
    assert not (tmp_path / "deep.jpg").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_and_reset(orientation, format):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "A maker"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    lossy = {} if format in ("PNG", "TIFF") else {"quality": 100}
    data = encoded(Image.fromarray(scene()), format, exif=exif.tobytes(), **lossy)
    picture = pictures.read(data)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](scene())
    assert picture.pixels.shape == turned.shape
    assert np.abs(picture.pixels.astype(int) - turned).mean() < 3
    kept = Image.Exif()
    kept.load(picture.chunks["exif"])
    assert kept.get(ORIENTATION, 1) == 1
    assert kept[0x010F] == "A maker"
    assert kept.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
    again = pictures.read(encoded(restored(picture), "PNG", exif=restored(picture).info["exif"]))
    assert np.array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_changes_in_exif(order):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tail = b"maker note with offsets of its own"
    entries = struct.pack(order + "HHII", 0x010F, 2, 4, 0) + struct.pack(order + "HHIHH", ORIENTATION, 3, 1, 6, 0)
    exif = mark + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", 0) + tail
    picture = pictures.read(encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0" + exif))
    assert picture.pixels.shape == (40, 24, 3)
    changed = [i for i, (a, b) in enumerate(zip(exif, picture.chunks["exif"], strict=True)) if a != b]
    assert len(changed) == 1


def test_orientation_told_by_xmp_alone():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = pictures.read(encoded(Image.fromarray(scene()), "JPEG", xmp=xmp))
    assert picture.pixels.shape == (40, 24, 3)
    assert picture.chunks["xmp"] == xmp.replace(b'"6"', b'"1"')


def test_broken_exif_is_dropped_not_fatal():
    data = encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0XX*\0\xff\xff\xff\xff")
    picture = pictures.read(data)
    assert picture.pixels.shape == (24, 40, 3)
    assert "exif" not in picture.chunks
    assert picture.notes == ("unreadable EXIF data dropped",)


def test_a_torn_exif_block_still_turns_the_picture():
    torn = b"II*\0" + struct.pack("<IH", 8, 3) + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)  # one of three entries
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = pictures.read(encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0" + torn, xmp=xmp))
    assert picture.pixels.shape == (40, 24, 3)
    assert picture.chunks == {"xmp": xmp.replace(b'"6"', b'"1"')}
    assert picture.notes == ("unreadable EXIF data dropped",)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_metadata_survives_the_round_trip(format, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = "<x:xmpmeta>größe</x:xmpmeta>".encode()
    exif = Image.Exif()
    exif[0x0131] = "some software"
    chunks = {"icc": profile, "xmp": xmp, "exif": exif.tobytes().removeprefix(b"Exif\0\0")}
    target = tmp_path / f"out.{format.lower()}"
    pictures.write(pictures.to_pil(scene(), chunks), target)
    picture = pictures.read(target)
    assert picture.chunks["icc"] == profile
    assert picture.chunks["xmp"] == xmp
    kept = Image.Exif()
    kept.load(picture.chunks["exif"])
    assert kept[0x0131] == "some software"
    assert pictures.read(target, strip=True).chunks == {}


def wide_gamut_profile() -> bytes:
    """An sRGB profile with red and blue colourants swapped: converting through it visibly changes colours."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")


def test_strip_converts_to_srgb_first():
    data = encoded(Image.new("RGB", (8, 8), (200, 40, 40)), "PNG", icc_profile=wide_gamut_profile())
    assert pictures.read(data).pixels[0, 0].tolist() == [200, 40, 40]
    stripped = pictures.read(data, strip=True)
    assert stripped.chunks == {}
    assert np.abs(stripped.pixels[0, 0].astype(int) - [40, 40, 200]).max() <= 4


def linear_grey_profile() -> bytes:
    """An ICC profile of grey whose values are proportional to light."""
    white = b"".join(struct.pack(">i", round(value * 65536)) for value in (0.9642, 1, 0.8249))
    name = b"linear\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"kTRC": b"curv" + bytes(8),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kinds = (b"mntr", b"GRAY", b"XYZ ", b"acsp")
    header = struct.pack(">I4xI4s4s4s12x4s28x12s", start + len(body), 0x2100000, *kinds, white)
    return header.ljust(128, b"\0") + table + body


def test_strip_converts_grey_too():
    data = encoded(Image.new("L", (8, 8), 55), "PNG", icc_profile=linear_grey_profile())
    assert pictures.read(data).pixels[0, 0].tolist() == [55, 55, 55]
    stripped = pictures.read(data, strip=True)
    assert sorted(stripped.chunks) == ["origin"]
    assert stripped.pixels[0, 0].tolist() == [128, 128, 128]


def test_a_damaged_profile_does_not_stop_conversion():
    picture = pictures.read(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF", icc_profile=b"no profile at all"))
    assert picture.pixels.min() == 255
    assert "icc" not in picture.chunks


def test_metadata_a_format_cannot_hold(tmp_path):
    image = pictures.to_pil(scene(), {"exif": b"II*\0" + b"\xff" * 40, "xmp": b"\xff\0" * 40_000})
    pictures.write(image, tmp_path / "a.png")
    assert pictures.write(image, tmp_path / "a.jpg") == ("80000 bytes of XMP are left out: JPEG cannot hold so many",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this EXIF is torn
        with Image.open(tmp_path / "a.jpg") as written:
            assert written.info["exif"] == image.info["exif"]
            assert "xmp" not in written.info
    assert pictures.write(image, tmp_path / "a.tif") == ()
    with Image.open(tmp_path / "a.tif") as written:
        assert written.tag_v2[700] == image.info["xmp"]


def test_strip_converts_linear_srgb_too():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    linear = profile.replace(*(name.encode("utf-16-be") for name in ("sRGB built-in", "Linear sRGB 1")))
    start = profile.index(b"para")
    linear = linear[: start + 8] + struct.pack(">HHi", 0, 0, 65536) + linear[start + 16 :]  # y = x
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(linear)))
    data = encoded(Image.new("RGB", (8, 8), (55, 55, 55)), "PNG", icc_profile=linear)
    assert pictures.read(data, strip=True).pixels[0, 0].tolist() == [128, 128, 128]


def grey_tiff(values: list[int], bits: int, sample_format: int = 1) -> bytes:
    """A TIFF of one row of grey samples of 12 or 16 bits; sample_format 2: signed."""
    if bits == 12:
        packed = "".join(f"{value:012b}" for value in values)
        row = int(packed, 2).to_bytes(len(packed) // 8, "big")
    else:
        row = struct.pack(f"<{len(values)}{'h' if sample_format == 2 else 'H'}", *values)
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, len(row)), (339, sample_format)]  # fmt: skip
    row += bytes(-len(row) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(row)) + row + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_twelve_bits_have_a_range_of_their_own():
    picture = pictures.read(grey_tiff([0, 1024, 2048, 4095], 12))
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    assert picture.notes == ("12 bits per channel are coded at 8",)


def test_signed_samples_are_stretched_and_said_to_be():
    picture = pictures.read(grey_tiff([-1000, 0, 3000, 1000], 16, 2))
    assert picture.pixels[0, :, 0].tolist() == [0, 64, 255, 128]
    assert picture.notes[-1].endswith(": -1000 to 3000 converted to L")
