"""Every kind of picture goes in upright and 8-bit RGB, and comes back in its own mode with its metadata."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from cdcodec import image as pictures
from cdcodec import modes
from cdcodec.errors import CorruptError, ImageError

ORIENTATION = 0x0112


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


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_modes_that_come_back(mode, channels):
    values = scene(channels=channels)
    original = Image.fromarray(values[..., 0] if channels == 1 else values)
    assert original.mode == mode
    picture = pictures.read(encoded(original, "PNG"))
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == (24, 40, 3)
    assert picture.notes == ()
    back = restored(picture)
    assert back.mode == mode
    assert back.tobytes() == original.tobytes()
    chunks = {"L": {"origin"}, "LA": {"origin", "alpha"}, "RGB": set(), "RGBA": {"origin", "alpha"}}
    assert set(picture.chunks) == chunks[mode]


@pytest.mark.parametrize(
    ("mode", "target", "format", "note"),
    [
        ("1", "L", "PNG", "1-bit picture converted to L"),
        ("P", "RGB", "PNG", "palette converted to RGB"),
        ("CMYK", "RGB", "TIFF", "CMYK converted to RGB"),
        ("LAB", "RGB", "TIFF", "LAB converted to RGB"),
        ("F", "L", "TIFF", "mode F: 0 to 255 converted to L"),
        ("I", "L", "TIFF", "mode I: 0 to 255 converted to L"),
        ("YCbCr", "RGB", "TIFF", "YCbCr converted to RGB"),
    ],
)
def test_modes_that_are_converted(mode, target, format, note):
    rgb = Image.fromarray(scene())
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        original = ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
    else:
        original = rgb.convert(mode)
    picture = pictures.read(encoded(original, format))
    assert picture.notes == (note,)
    assert restored(picture).mode == target
    assert "icc" not in picture.chunks
    reference = np.asarray(rgb.convert("L").convert("RGB") if target == "L" and mode != "1" else rgb, dtype=int)
    if mode != "1":
        limit = {"P": 60, "CMYK": 1, "LAB": 12}.get(mode, 6)
        assert np.abs(picture.pixels.astype(int) - reference).mean() < limit


def test_palette_with_transparency_becomes_rgba():
    original = Image.fromarray(scene()).quantize(16)
    index = int(np.asarray(original)[0, 0])
    picture = pictures.read(encoded(original, "PNG", transparency=index))
    back = restored(picture)
    assert back.mode == "RGBA"
    assert np.array_equal(np.asarray(back)[..., 3] == 0, np.asarray(original) == index)
    assert picture.notes == ("palette converted to RGBA",)


def test_rgb_and_grey_with_a_transparent_colour():
    rgb = Image.fromarray(scene())
    picture = pictures.read(encoded(rgb, "PNG", transparency=rgb.getpixel((3, 2))))
    assert restored(picture).mode == "RGBA"
    assert restored(picture).getpixel((3, 2))[3] == 0
    grey = Image.fromarray(scene()[..., 0])
    picture = pictures.read(encoded(grey, "PNG", transparency=grey.getpixel((3, 2))))
    assert restored(picture).mode == "LA"
    assert restored(picture).getpixel((3, 2))[1] == 0


def test_float_ranges():
    ramp = np.linspace(0, 1, 960, dtype=np.float32).reshape(24, 40)
    for values, low, high in [(ramp, 0, 1), (ramp * 60000, 0, 65535), (ramp * 4 - 2, -2, 2)]:
        picture = pictures.from_pil(Image.fromarray(values))
        expected = np.rint((values.astype(float) - low) / (high - low) * 255)
        assert np.abs(picture.pixels[..., 0] - expected).max() <= 1
        assert picture.notes == (f"mode F: {low:g} to {high:g} converted to L",)
    broken = ramp.copy()
    broken[0, :3] = np.nan, np.inf, -np.inf
    assert pictures.from_pil(Image.fromarray(broken)).pixels[0, :3].tolist() == [[0, 0, 0]] * 3
    assert pictures.from_pil(Image.fromarray(np.full((2, 2), -3.0, np.float32))).pixels.shape == (2, 2, 3)


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


def test_a_damaged_profile_does_not_stop_conversion():
    picture = pictures.read(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF", icc_profile=b"no profile at all"))
    assert picture.pixels.min() == 255
    assert "icc" not in picture.chunks


def test_alpha_is_lossless_and_hidden_colours_are_smooth():
    rng = np.random.default_rng(5)
    values = rng.integers(0, 256, (64, 97, 4), dtype=np.uint8)
    values[..., :3] = scene(64, 97)
    values[10:50, 20:80, 3] = 0
    values[10:50, 20:80, :3] = rng.integers(0, 256, (40, 60, 3))
    picture = pictures.from_pil(Image.fromarray(values))
    back = np.asarray(restored(picture))
    assert np.array_equal(back[..., 3], values[..., 3])
    visible = values[..., 3] > 0
    assert np.array_equal(picture.pixels[visible], values[..., :3][visible])
    noisy, smooth = Image.fromarray(values[..., :3]), Image.fromarray(picture.pixels)
    assert len(encoded(smooth, "WEBP", quality=80)) < len(encoded(noisy, "WEBP", quality=80)) / 2
    hidden = picture.pixels[10:50, 20:80].astype(int)
    assert np.abs(np.diff(hidden, axis=0)).max() < 40
    assert np.abs(np.diff(hidden, axis=1)).max() < 40


def test_fully_transparent_and_fully_opaque():
    values = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    values[..., 3] = 0
    picture = pictures.from_pil(Image.fromarray(values))
    assert np.unique(picture.pixels).tolist() == [128]
    values[..., 3] = 255
    picture = pictures.from_pil(Image.fromarray(values))
    assert "alpha" not in picture.chunks
    assert np.array_equal(np.asarray(restored(picture)), values)


def test_fill_hidden_leaves_its_input_alone():
    pixels, alpha = scene(), np.zeros((24, 40), np.uint8)
    alpha[3, 5] = 1
    before = pixels.copy()
    filled = modes.fill_hidden(pixels, alpha)
    assert np.array_equal(pixels, before)
    assert np.array_equal(filled, np.broadcast_to(pixels[3, 5], filled.shape))


def test_animation_gives_its_first_frame():
    frames = [Image.new("L", (8, 6), value) for value in (10, 200)]
    picture = pictures.read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.unique(picture.pixels).tolist() == [10]
    assert picture.notes[0] == "more than one picture or frame: only the first is coded"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 5)])
def test_thin_pictures(size):
    values = scene(size[1], size[0], 4)
    picture = pictures.read(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(np.asarray(restored(picture))[..., 3], values[..., 3])


def test_sources(tmp_path):
    data = encoded(Image.fromarray(scene()), "PNG")
    path = tmp_path / "in.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (path, str(path), data, io.BytesIO(data), file):
            assert np.array_equal(pictures.read(source).pixels, scene())


def broken_sources(folder: Path) -> dict[str, object]:
    whole = encoded(Image.fromarray(scene(200, 200)), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    return {
        "empty": b"",
        "text": b"this is a letter, not a picture\n" * 20,
        "header only": whole[:40],
        "half a png": whole[: len(whole) // 2],
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "bad checksum": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "missing": folder / "nothing.png",
        "folder": folder,
    }


@pytest.mark.parametrize("name", list(broken_sources(Path())))
def test_what_is_not_a_picture(name, tmp_path):
    with pytest.raises(ImageError) as caught:
        pictures.read(broken_sources(tmp_path)[name])
    assert "\n" not in str(caught.value)
    expected = {"empty": "the file is empty", "missing": "no such file", "folder": "this is a folder, not a picture"}
    beginnings = ("not a picture of a known format", "damaged or truncated picture: ")
    assert str(caught.value) == expected.get(name) or str(caught.value).startswith(beginnings)


def test_truncation_at_every_length():
    image = Image.fromarray(scene(channels=4))
    for format in ("PNG", "WEBP", "TIFF"):
        data = encoded(image, format)
        refused = 0
        for length in range(0, len(data) - 1, 3):
            try:
                pictures.read(data[:length])
            except ImageError:
                refused += 1
        assert refused > len(data) // 5


def test_pixel_limit_comes_before_the_pixels():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="more pixels than the limit of 268435456; --max-pixels raises it"):
        pictures.read(bomb)
    data = encoded(Image.fromarray(scene()), "PNG")
    assert pictures.read(data, max_pixels=960).pixels.shape == (24, 40, 3)
    for limit in (959, 500, 100, 1):
        with pytest.raises(ImageError, match=f"limit of {limit}"):
            pictures.read(data, max_pixels=limit)


def test_large_pictures_do_not_warn_and_leave_pillow_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    data = encoded(Image.fromarray(scene()), "PNG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert pictures.read(data).pixels.shape == (24, 40, 3)
    assert caught == []
    assert Image.MAX_IMAGE_PIXELS == 700


def test_sides_beyond_the_container():
    with pytest.raises(ImageError, match="65537 x 1 pixels: each side must have 1 to 65536"):
        pictures.from_pil(Image.new("L", (65537, 1)))
    with pytest.raises(ImageError, match="0 x 4 pixels"):
        pictures.from_pil(Image.new("L", (0, 4)))


def test_arrays():
    assert np.array_equal(pictures.from_array(scene()).pixels, scene())
    assert restored(pictures.from_array(scene()[..., 0])).mode == "L"
    assert restored(pictures.from_array(scene()[..., :1])).mode == "L"
    assert restored(pictures.from_array(scene(channels=4))).mode == "RGBA"
    for wrong in (scene().astype(np.float32), scene(channels=2), scene()[0, 0], scene()[:0]):
        with pytest.raises(ImageError, match="an array must be uint8"):
            pictures.from_array(wrong)


HOSTILE_CHUNKS = [
    {"origin": b"{"},
    {"origin": b"[" * 100_000},
    {"origin": b"[" * 900},
    {"origin": b"\xff\xfe"},
    {"origin": b"[]"},
    {"origin": b"3"},
    {"origin": b'{"mode": "CMYK", "depth": 8}'},
    {"origin": b'{"mode": ["L"], "depth": 8}'},
    {"origin": b'{"mode": "L", "depth": 12}'},
    {"alpha": encoded(Image.new("L", (40, 24)), "PNG")},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": b""},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": b"junk"},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": encoded(Image.new("L", (40, 24)), "PNG")[:50]},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": encoded(Image.new("L", (41, 24)), "PNG")},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": encoded(Image.new("L", (4000, 2400)), "PNG")},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": encoded(Image.new("RGB", (40, 24)), "PNG")},
    {"origin": b'{"mode":"RGBA","depth":8}', "alpha": encoded(Image.new("L", (40, 24)), "GIF")},
]


@pytest.mark.parametrize("chunks", HOSTILE_CHUNKS, ids=range(len(HOSTILE_CHUNKS)))
def test_hostile_chunks(chunks):
    with pytest.raises(CorruptError) as caught:
        pictures.to_pil(scene(), chunks)
    assert "\n" not in str(caught.value)


def test_metadata_a_format_cannot_hold(tmp_path):
    image = pictures.to_pil(scene(), {"exif": b"II*\0" + b"\xff" * 40, "xmp": b"\xff\0" * 40_000})
    pictures.write(image, tmp_path / "a.png")
    with pytest.raises(ImageError, match="cannot be written as JPEG: XMP data is too long"):
        pictures.write(image, tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="cannot be written as TIFF: "):
        pictures.write(image, tmp_path / "a.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_formats_that_cannot_hold_the_picture(tmp_path):
    image = Image.fromarray(scene(channels=4))
    with pytest.raises(ImageError, match="this picture cannot be written as JPEG"):
        pictures.write(image, tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="names no picture format"):
        pictures.write(image, tmp_path / "a.xyz")
    with pytest.raises(ImageError, match="no extension names no picture format"):
        pictures.write(image, io.BytesIO())
    with pytest.raises(OSError, match="No such file"):
        pictures.write(image, tmp_path / "no" / "a.png")


def test_write_to_a_stream():
    stream = io.BytesIO()
    pictures.write(Image.fromarray(scene()), stream, "PNG")
    assert np.array_equal(pictures.read(stream.getvalue()).pixels, scene())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (64, 64), (65, 129)])
def test_pad_and_crop_are_inverse(height, width):
    pixels = scene(height, width)
    padded = pictures.pad(pixels, 64)
    assert padded.shape[0] % 64 == padded.shape[1] % 64 == 0
    assert padded.shape[0] - height < 64
    assert padded.shape[1] - width < 64
    assert np.array_equal(padded[:height, :width], pixels)
    assert np.array_equal(padded[height:], np.broadcast_to(padded[height - 1], padded[height:].shape))
    assert np.array_equal(padded[:, width:], np.broadcast_to(padded[:, width - 1 : width], padded[:, width:].shape))


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp"} <= pictures.readable_extensions()
    assert not {".eps", ".ps", ".cdc", ".txt"} & pictures.readable_extensions()
    assert pictures.writable_extensions()[".jpg"] == "JPEG"


def test_compressed_text_in_a_png_is_not_expanded_without_limit():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 30_000_000, zip=True)
    data = encoded(Image.fromarray(scene()), "PNG", pnginfo=info)
    with pytest.raises(ImageError, match="damaged or truncated picture"):
        pictures.read(data)
