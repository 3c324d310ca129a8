"""One picture as a user codes it: what is printed, what is left on disk, the exit code; never a traceback."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from command import coded, fails, picture, tree, works
from PIL import Image

from cdcodec import batch
from cdcodec.bits import container

pytestmark = pytest.mark.usefixtures("surroundings")


# --- one picture there and back


def test_encode_then_decode():
    picture("in.png")
    result = works("encode", "in.png", "out.cdc")
    assert result.output == b""
    size = Path("out.cdc").stat().st_size
    rate = f"{size} bytes, {8 * size / 960:.4f} bpp, lambda 0.0128, "
    assert result.errors.startswith(f"in.png -> out.cdc: 40 x 24, {rate}")
    result = works("decode", "out.cdc", "rec.png", "--steps", 2, "--gamma", 0.8)
    assert result.errors.startswith("out.cdc -> rec.png: 40 x 24, ")
    with Image.open("rec.png") as image:
        assert (image.size, image.mode, image.format) == ((40, 24), "RGB", "PNG")
    assert tree() == ["in.png", "out.cdc", "rec.png"]


def test_output_beside_the_input():
    picture("a/in.png")
    works("encode", "a/in.png", "-q")
    os.remove("a/in.png")
    works("decode", "a/in.cdc", "--steps", 0, "-q")
    works("decode", "a/in.cdc", "--steps", 0, "-q", "--format", "jpg")
    assert tree() == ["a/in.cdc", "a/in.jpg", "a/in.png"]


def test_quiet_says_nothing():
    picture("in.png", mode="P")
    result = works("encode", "in.png", "-q")
    assert (result.output, result.errors) == (b"", "")
    assert "cdcodec: note: in.png: palette converted to RGB\n" in works("encode", "in.png", "--force").errors


def test_through_pipes():
    data = picture("in.png").read_bytes()
    coded = works("encode", "-", "-", stdin=data)
    assert coded.output[:4] == b"\xcdCDC"
    assert works("encode", "-", stdin=data).output == coded.output
    decoded = works("decode", "-", "-", "--steps", 1, stdin=coded.output)
    with Image.open(io.BytesIO(decoded.output)) as image:
        assert (image.size, image.format) == ((40, 24), "PNG")
    decoded = works("decode", "-", "-", "--steps", 1, "--format", "webp", stdin=coded.output)
    with Image.open(io.BytesIO(decoded.output)) as image:
        assert image.format == "WEBP"
    works("decode", "-", "x.png", "--steps", 1, stdin=coded.output)
    assert tree() == ["in.png", "x.png"]


def test_the_same_input_gives_the_same_file():
    picture("in.png")
    works("encode", "in.png", "one.cdc")
    works("encode", "in.png", "two.cdc", "--threads", 1)
    assert Path("one.cdc").read_bytes() == Path("two.cdc").read_bytes()
    for name in ("one.png", "two.png"):
        works("decode", "one.cdc", name, "--steps", 2, "--gamma", 1, "--seed", 5, "--rho", 0.5)
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    works("decode", "one.cdc", "three.png", "--steps", 2, "--gamma", 1, "--seed", 6, "--rho", 0.5)
    assert Path("one.png").read_bytes() != Path("three.png").read_bytes()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_come_back(mode):
    original = picture("in.png", mode=mode)
    works("encode", original, "x.cdc")
    works("decode", "x.cdc", "rec.png", "--steps", 1)
    with Image.open(original) as before, Image.open("rec.png") as after:
        assert after.mode == mode
        if mode.endswith("A"):
            assert after.getchannel("A").tobytes() == before.getchannel("A").tobytes()


def test_sixteen_bits_on_request():
    values = (np.arange(960).reshape(24, 40) * 60).astype(np.uint16)
    Image.fromarray(values).save("in.png")
    works("encode", "in.png", "x.cdc")
    works("decode", "x.cdc", "deep.png", "--steps", 1, "--depth", "original")
    works("decode", "x.cdc", "flat.png", "--steps", 1)
    assert [Path(name).read_bytes()[24] for name in ("deep.png", "flat.png")] == [16, 8]
    assert "x.xyz is not a name for an output" in fails("decode", "x.cdc", "x.xyz", code=2)
    message = fails("decode", "x.cdc", "x.jpg", "--steps", 1, "--depth", "original")
    assert message.startswith("x.cdc: L at 16 bits cannot be written as JPEG")


def test_strip_and_metadata():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A maker"
    picture("in.jpg", exif=exif)
    works("encode", "in.jpg", "kept.cdc")
    works("encode", "in.jpg", "bare.cdc", "--strip")
    kept, bare = works("info", "kept.cdc", "bare.cdc", "--json").lines
    assert set(kept["chunks"]) == {"exif"}
    assert bare["chunks"] == {}
    assert (kept["width"], kept["height"]) == (24, 40)
    works("decode", "kept.cdc", "rec.jpg", "--steps", 1)
    with Image.open("rec.jpg") as image:
        assert image.size == (24, 40)
        assert dict(image.getexif()) == {0x0112: 1, 0x010F: "A maker"}


# --- how good and how small


def test_lambda_and_quality():
    picture("in.png", (64, 48))
    ladder = {}
    for quality in range(1, 9):
        works("encode", "in.png", f"{quality}.cdc", "--quality", quality, "-q")
        ladder[quality] = works("info", f"{quality}.cdc", "--json").lines[0]["lambda"]
    assert list(ladder.values()) == sorted(ladder.values(), reverse=True)
    assert len(set(ladder.values())) == 8
    works("encode", "in.png", "default.cdc")
    assert works("info", "default.cdc", "--json").lines[0]["lambda"] == 0.0128
    between = (ladder[5] + ladder[6]) / 2
    works("encode", "in.png", "between.cdc", "--lambda", between)
    assert works("info", "between.cdc", "--json").lines[0]["lambda"] == pytest.approx(between, rel=1e-6)
    for outside in (ladder[8] / 2, ladder[1] * 2):
        message = fails("encode", "in.png", "x.cdc", "--lambda", outside)
        assert all(f"{rung:g}" in message for rung in ladder.values())
    assert not Path("x.cdc").exists()


WRONG_USAGE = [
    (["encode"], "Missing argument"),
    (["encode", "in.png", "--lambda", "0.01", "--quality", "3"], "--lambda and --quality exclude each other"),
    (["encode", "in.png", "--lambda", "0"], "Invalid value for '--lambda'"),
    (["encode", "in.png", "--lambda", "-1"], "Invalid value for '--lambda'"),
    (["encode", "in.png", "--lambda", "nan"], "nan is not a finite number"),
    (["encode", "in.png", "--quality", "9"], "Invalid value for '--quality'"),
    (["encode", "in.png", "--quality", "0"], "Invalid value for '--quality'"),
    (["encode", "in.png", "--device", "tpu"], "Invalid value for '--device'"),
    (["encode", "in.png", "--threads", "0"], "Invalid value for '--threads'"),
    (["encode", "in.png", "--force", "--skip-existing"], "--force and --skip-existing exclude each other"),
    (["encode", "in.png", "-", "--json"], "--json and the output - both want standard output"),
    (["encode", "in.png", "in2.png"], "several inputs need -o DIR; in2.png is not a name for an output"),
    (["encode", "."], ". is a folder: say with -o DIR where its pictures should go"),
    (["encode", "-", "-o", "out"], "standard input has no name"),
    (["encode", "in.png", "-o", "out.cdc"], "-o names a folder; to write one file, say: in.png out.cdc"),
    (["decode", "x.cdc", "--steps", "-1"], "Invalid value for '--steps'"),
    (["decode", "x.cdc", "--gamma", "-0.1"], "Invalid value for '--gamma'"),
    (["decode", "x.cdc", "--gamma", "nan"], "nan is not a finite number"),
    (["decode", "x.cdc", "--gamma", "1e20"], "not in the range 0<=x<=1000"),
    (["encode", "x.png", "--lambda", "1e60"], "Invalid value for '--lambda'"),
    (["encode", "x.png", "--target-bpp", "1e305"], "Invalid value for '--target-bpp'"),
    (["decode", "x.cdc", "--rho", "0.95"], "Invalid value for '--rho'"),
    (["decode", "x.cdc", "--seed", "-1"], "Invalid value for '--seed'"),
    (["decode", "x.cdc", "--format", "xyz"], "--format xyz names no format that can be written here"),
    (["decode", "x.cdc", "y.cdc"], "several inputs need -o DIR; y.cdc is not a name for an output"),
    (["encode", "in.png", "--bogus"], "No such option"),
    (["bogus"], "No such command 'bogus'"),
    (["info"], "Missing argument"),
    (["weights", "bogus"], "No such command 'bogus'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_USAGE, ids=[" ".join(a) for a, _ in WRONG_USAGE])
def test_wrong_usage(arguments, message):
    picture("in.png")
    assert message in fails(*arguments, code=2)
    assert tree() == ["in.png"]


# --- inputs that are wrong


def test_pictures_that_are_none():
    whole = picture("whole.png", (200, 200)).read_bytes()
    Path("empty.png").write_bytes(b"")
    Path("letter.png").write_text("Dear reader\n")
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    before = tree()
    assert fails("encode", "empty.png") == "empty.png: the file is empty"
    assert fails("encode", "letter.png").startswith("letter.png: not a picture of a known format")
    assert fails("encode", "half.png").startswith("half.png: damaged or truncated picture: ")
    assert fails("encode", "missing.png", "x.cdc") == "missing.png: no such file"
    assert fails("encode", "-", "x.cdc") == "standard input: the file is empty"
    assert fails("encode", "whole.png", "x.cdc", "--max-pixels", 39_999).startswith("whole.png: ")
    assert tree() == before


def test_coded_files_that_are_none():
    data = coded()
    os.remove("x.cdc")
    wrong = {
        "empty": (b"", "not a .cdc file"),
        "letter": (b"Dear reader", "not a .cdc file"),
        "version": (data[:4] + b"\x02\x00" + data[6:], "version 2"),
        "header": (data[:20], "ends after 20 of 28"),
        "truncated": (data[:-1], "damaged or was cut short"),
        "trailing": (data + b"\0", "damaged or was cut short"),
        "flipped": (data[:-3] + bytes([data[-3] ^ 16]) + data[-2:], "damaged or was cut short"),
    }
    for name, (content, message) in wrong.items():
        Path(f"{name}.cdc").write_bytes(content)
        for command in (["decode", "--steps", "1"], ["info"]):
            line = fails(*command, f"{name}.cdc")
            assert line.startswith(f"{name}.cdc: ")
            assert message in line
    assert fails("decode", "missing.cdc", "x.png") == "missing.cdc: no such file"
    assert fails("info", "missing.cdc") == "missing.cdc: no such file"
    assert tree() == sorted(f"{name}.cdc" for name in wrong)


def test_every_header_byte_is_guarded():
    data = coded()
    for at in range(28):
        Path("y.cdc").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert fails("decode", "y.cdc", "y.png", "--steps", 0).startswith("y.cdc: ")
    assert tree() == ["x.cdc", "y.cdc"]


def test_weights_that_are_missing_or_others(tmp_path):
    picture("in.png")
    assert "nowhere" in fails("encode", "in.png", "x.cdc", "--weights", tmp_path / "nowhere")
    header, chunks, payload = container.unpack(coded())
    foreign = container.Header(header.checkpoint ^ 1, header.lam, header.width, header.height, header.symbol_check)
    Path("foreign.cdc").write_bytes(container.pack(foreign, chunks, payload))
    message = fails("decode", "foreign.cdc", "x.png", "--steps", 0)
    assert message.startswith("foreign.cdc: ")
    assert f"{foreign.checkpoint:08x}" in message
    assert tree() == ["foreign.cdc", "in.png", "x.cdc"]


def test_too_many_pixels_to_decode():
    coded()
    assert "limit" in fails("decode", "x.cdc", "x.png", "--max-pixels", 100)


# --- outputs that are in the way


def test_an_existing_output_is_refused():
    picture("in.png")
    Path("x.cdc").write_bytes(b"precious")
    message = fails("encode", "in.png", "x.cdc")
    assert message == "in.png: x.cdc exists already; --force replaces it, --skip-existing leaves it alone"
    result = works("encode", "in.png", "x.cdc", "--skip-existing")
    assert result.errors == "in.png: x.cdc exists already, skipped\n"
    assert Path("x.cdc").read_bytes() == b"precious"
    works("encode", "in.png", "x.cdc", "--force")
    assert Path("x.cdc").read_bytes()[:4] == b"\xcdCDC"
    assert tree() == ["in.png", "x.cdc"]


def test_an_output_that_appears_meanwhile_is_not_replaced(monkeypatch):
    picture("in.png")
    finish = batch.Encode.finish

    def slow(self, job, item, result):
        Path(job.target).write_bytes(b"somebody else's")
        return finish(self, job, item, result)

    monkeypatch.setattr(batch.Encode, "finish", slow)
    assert "x.cdc exists already" in fails("encode", "in.png", "x.cdc")
    assert Path("x.cdc").read_bytes() == b"somebody else's"
    assert tree() == ["in.png", "x.cdc"]


def test_output_folders():
    picture("in.png")
    assert fails("encode", "in.png", "no/x.cdc") == "the folder no does not exist; create it first"
    Path("file").write_bytes(b"")
    assert fails("encode", "in.png", "-o", "file").startswith("the folder file cannot be created")
    works("encode", "in.png", "-o", "new/deep")
    assert tree() == ["file", "in.png", "new/deep/in.cdc"]


def test_formats_that_cannot_hold_it():
    picture("in.png", mode="RGBA")
    works("encode", "in.png", "x.cdc")
    assert "this picture cannot be written as JPEG" in fails("decode", "x.cdc", "x.jpg", "--steps", 0)
    assert tree() == ["in.png", "x.cdc"]
