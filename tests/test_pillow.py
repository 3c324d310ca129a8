"""The Pillow plugin: open knows everything but the pixels, load decodes, save encodes, damage is an OSError."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import cdcodec
import cdcodec.pillow
from cdcodec import codec
from cdcodec.bits import container
from cdcodec.errors import CdcodecError, WeightsError
from cdcodec.pillow import CdcFileError, CdcImageFile


@pytest.fixture(autouse=True)
def registered(tiny, monkeypatch, tmp_path):
    """The plugin with the tiny model, and no trace of it afterwards."""
    for name in ("OPEN", "SAVE", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.chdir(tmp_path)
    Image.init()
    cdcodec.pillow.register(model=tiny, steps=1)


def coded(photograph, tiny, mode="RGB", **info) -> bytes:
    image = Image.fromarray(photograph).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(photograph[..., 0]))
    image.info.update(info)
    return cdcodec.encode(image, model=tiny)


def test_opening_reads_the_header_only(photograph, tiny, monkeypatch):
    data = coded(photograph, tiny)
    monkeypatch.setattr(cdcodec, "decode", None)
    with Image.open(io.BytesIO(data[:28])) as image:
        assert isinstance(image, CdcImageFile)
        assert (image.size, image.mode, image.format) == ((96, 64), "RGB", "CDC")
        assert image.info == {"lambda": 0.0128}
        assert image.get_format_mimetype() == "image/x-cdc"


def test_loading_decodes_once(photograph, tiny):
    data = coded(photograph, tiny)
    Path("x.cdc").write_bytes(data)
    with Image.open("x.cdc") as image:
        pixels = np.asarray(image)
        assert np.array_equal(pixels, codec.decode(data, tiny, steps=1)[0])
        assert np.array_equal(np.asarray(image), pixels)
        assert image.resize((10, 10)).size == (10, 10)
        assert image.convert("L").mode == "L"
        assert image.crop((0, 0, 5, 5)).tobytes() == pixels[:5, :5].tobytes()
    lazy = Image.open(Path("x.cdc"))
    lazy.settings = {"model": tiny, "steps": 0}
    assert np.array_equal(np.asarray(lazy), codec.decode(data, tiny, steps=0)[0])
    assert lazy.fp is None or lazy.fp.closed


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_modes_and_metadata_are_known_before_decoding(photograph, tiny, mode):
    data = coded(photograph, tiny, mode, icc_profile=b"a profile", xmp=b"<x/>")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        assert (image.info["icc_profile"], image.info["xmp"]) == (b"a profile", b"<x/>")
        copy = image.copy()
        assert copy.mode == mode
        if mode != "L":
            assert np.array_equal(np.asarray(copy.getchannel("A")), photograph[..., 0])


def test_saving(photograph, tiny):
    image = Image.fromarray(photograph)
    image.save("x.cdc")
    image.save("small.cdc", lam=0.0768)
    assert Path("x.cdc").read_bytes() == codec.encode(photograph, tiny, 0.0128)
    assert Path("small.cdc").read_bytes() == codec.encode(photograph, tiny, 0.0768)
    buffer = io.BytesIO()
    image.save(buffer, "CDC", icc_profile=b"another")
    assert container.unpack(buffer.getvalue())[1] == {"icc": b"another"}
    image.info["icc_profile"] = b"its own"
    image.save("x.cdc", strip=True)
    assert container.unpack(Path("x.cdc").read_bytes())[1] == {}
    image.save("x.cdc", icc_profile=None)
    assert container.unpack(Path("x.cdc").read_bytes())[1] == {}
    with Image.open("small.cdc") as again:
        again.save("again.cdc")
    assert container.read_header(Path("again.cdc").read_bytes()).width == 96
    with pytest.raises(WeightsError, match="ladder"):
        image.save("new.cdc", lam=9)
    assert not Path("new.cdc").exists()


def test_saving_with_an_exif_object(photograph, tiny):
    image = Image.fromarray(photograph)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    image.save("turned.cdc", exif=exif)
    with Image.open("turned.cdc") as opened:
        assert opened.size == (photograph.shape[0], photograph.shape[1])
        assert opened.getexif()[271] == "maker"


def test_damage_is_ours_and_pillows(photograph, tiny):
    data = coded(photograph, tiny)
    grey = coded(photograph, tiny, "L")
    broken = bytes([*data[:40], data[40] ^ 1, *data[41:]])
    for bad in (data[:-4], broken, data + b"x"):
        image = Image.open(io.BytesIO(bad))
        for refusal in (OSError, CdcodecError, CdcFileError):
            with pytest.raises(refusal):
                image.load()
        with pytest.raises(CdcFileError):
            Image.open(io.BytesIO(bad)).verify()
    Image.open(io.BytesIO(data)).verify()
    for bad in (grey[:-4], data[:20]):
        with pytest.raises(CdcFileError):
            Image.open(io.BytesIO(bad))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\xcdCDX" + data[4:]))


def test_pillows_own_limit_holds(photograph, tiny, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(coded(photograph, tiny)))


def test_registering_is_cheap_and_importing_registers_nothing():
    script = (
        "import sys; from PIL import Image; import cdcodec.pillow; Image.init(); assert 'CDC' not in Image.OPEN\n"
        "cdcodec.pillow.register(); assert Image.registered_extensions()['.cdc'] == 'CDC'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(cdcodec.__file__).parents[1])
