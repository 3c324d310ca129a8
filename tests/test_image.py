"""Every kind of picture goes in upright and 8-bit RGB, and comes back in its own mode; what is none is refused."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from samples import encoded, png_chunk, restored, scene

from cdcodec import image as pictures
from cdcodec import modes
from cdcodec.errors import CorruptError, ImageError


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


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_the_transparent_colour_of_16_bits_is_dropped_aloud(mode):
    values = np.repeat(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60, 3 if mode == "RGB" else 1)
    if mode == "RGB":
        png = encoded(Image.fromarray((values >> 8).astype(np.uint8).reshape(24, 40, 3)), "PNG")
        png = modes.widen_png(png, (values >> 8).astype(np.uint8).reshape(24, 40, 3))
        png = png[:33] + png_chunk(b"tRNS", bytes([1, 3] * 3)) + png[33:]
    else:
        png = encoded(Image.fromarray(values.reshape(24, 40)), "PNG", transparency=600)
    loaded = Image.open(io.BytesIO(png))
    loaded.load()  # which an RGB picture no longer tells its depth after
    for picture in (pictures.read(png), pictures.from_pil(loaded)):
        assert "the transparent colour of a 16-bit picture is dropped" in picture.notes
        assert "alpha" not in picture.chunks
        assert "A" not in restored(picture).mode


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


def test_formats_that_cannot_hold_the_picture(tmp_path):
    image = Image.fromarray(scene(channels=4))
    with pytest.raises(ImageError, match=r"this picture cannot be written as JPEG: .*; PNG holds every picture"):
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
    assert not {".eps", ".ps", ".mpg", ".wmf", ".h5", ".cdc", ".txt"} & pictures.readable_extensions()
    assert pictures.writable_extensions()[".jpg"] == "JPEG"


def test_compressed_text_in_a_png_is_not_expanded_without_limit():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 30_000_000, zip=True)
    data = encoded(Image.fromarray(scene()), "PNG", pnginfo=info)
    with pytest.raises(ImageError, match="damaged or truncated picture"):
        pictures.read(data)
