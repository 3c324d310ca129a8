"""Every command as a user meets it: what it prints, what it leaves on disk, its exit code; never a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdcodec
from cdcodec import batch, files, options, target
from cdcodec.bits import container
from cdcodec.cli import main

PROGRAM = [sys.executable, "-m", "cdcodec"]


@pytest.fixture(autouse=True)
def surroundings(tiny_weights, tmp_path, monkeypatch):
    """An empty working folder, and the tiny model as the weights that ship."""
    monkeypatch.setenv("CDCODEC_WEIGHTS", str(tiny_weights))
    monkeypatch.setenv("PYTHONPATH", str(Path(cdcodec.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Result:
    code: int
    output: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.output.decode()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]


def run(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Result:
    """Run the program in this process."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    if terminal:
        errors.isatty = lambda: True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments], prog_name="cdcodec")
    text = errors.buffer.getvalue().decode()
    assert "Traceback" not in text or "--debug" in arguments
    return Result(leaving.value.code, output.buffer.getvalue(), text)


def fails(*arguments: object, code: int = 1, **keywords) -> str:
    """Run, expect failure without output, and return the one line on stderr less its prefix."""
    result = run(*arguments, **keywords)
    assert result.code == code, result
    assert result.output == b""
    lines = result.errors.splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("cdcodec: error: ")
    return lines[0].removeprefix("cdcodec: error: ")


def works(*arguments: object, **keywords) -> Result:
    result = run(*arguments, **keywords)
    assert result.code == 0, result
    return result


def picture(name: str, size: tuple[int, int] = (40, 24), mode: str = "RGB", **options) -> Path:
    """Write a test picture; returns its path."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    planes = np.stack([rows * 5 + columns, columns * 4, 200 - rows, 255 - columns * 3], axis=-1).clip(0, 255)
    image = Image.fromarray(planes.astype(np.uint8)[..., : 4 if mode.endswith("A") else 3]).convert(mode)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    image.save(name, **options)
    return Path(name)


def tree(folder: str | Path = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


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
    assert "16 bits cannot be written as JPEG" not in fails("decode", "x.cdc", "x.xyz", code=2)
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
    (["decode", "x.cdc", "--gamma", "inf"], "inf is not a finite number"),
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


def coded(name: str = "x.cdc") -> bytes:
    works("encode", picture("source.png"), name, "-q")
    os.remove("source.png")
    return Path(name).read_bytes()


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


# --- batches


@pytest.fixture
def photos():
    for name in ("photos/a.png", "photos/b.jpg", "photos/sub/c.webp"):
        picture(name)
    Path("photos/readme.txt").write_text("no picture")
    return "photos"


def test_a_folder_there_and_back(photos):
    result = works("encode", photos, "-o", "out")
    assert tree("out") == ["a.cdc", "b.cdc", "sub/c.cdc"]
    assert result.errors.splitlines()[-1] == "cdcodec: 3 encoded"
    assert len(result.errors.splitlines()) == 4
    works("decode", "out", "-o", "back", "--steps", 0, "-q")
    assert tree("back") == ["a.png", "b.png", "sub/c.png"]
    works("decode", "out", "-o", "back", "--steps", 0, "-q", "--format", "JPEG")
    assert [name for name in tree("back") if name.endswith(".jpeg")] == ["a.jpeg", "b.jpeg", "sub/c.jpeg"]


def test_a_batch_goes_on_after_a_failure(photos):
    Path("photos/aa.png").write_bytes(b"broken")
    result = run("encode", photos, "-o", "out")
    assert result.code == 1
    assert tree("out") == ["a.cdc", "b.cdc", "sub/c.cdc"]
    lines = result.errors.splitlines()
    bad = os.path.join("photos", "aa.png")
    assert next(line for line in lines if "error" in line).startswith(f"cdcodec: error: {bad}: not a picture")
    assert lines[-1] == f"cdcodec: 3 encoded, 1 failed ({bad})"
    again = run("encode", photos, "-o", "out", "--skip-existing", "-q")
    assert again.code == 1
    assert again.errors.splitlines()[-1].startswith("cdcodec: 0 encoded, 3 skipped, 1 failed")
    refused = run("encode", "photos/a.png", "photos/b.jpg", "-o", "out")
    assert refused.code == 1
    assert refused.errors.count("exists already; --force replaces it") == 2


def test_faults_of_ours_do_not_stop_a_batch_either(photos, monkeypatch):
    real = batch.Encode.work

    def faulty(self, item, model):
        if "exif" in item.chunks:
            raise RuntimeError("a fault\nof two lines")
        return real(self, item, model)

    picture("photos/aa.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    monkeypatch.setattr(batch.Encode, "work", faulty)
    result = run("encode", photos, "-o", "out")
    assert result.code == 1
    assert "aa.png: internal error, RuntimeError: a fault of two lines (--debug" in result.errors
    assert tree("out") == ["a.cdc", "b.cdc", "sub/c.cdc"]
    assert "Traceback" in run("--debug", "encode", "photos/aa.png", "x.cdc").errors


def test_weights_that_fail_end_a_batch_at_once(photos):
    assert "lies outside the ladder" in fails("encode", photos, "-o", "out", "--lambda", "9.0")


def test_colliding_names_are_an_error_before_any_work():
    picture("a.png")
    picture("a.jpg")
    assert fails("encode", "a.png", "a.jpg", "-o", "out").startswith("a.png and a.jpg would both be written to ")
    assert tree() == ["a.jpg", "a.png"]


def test_json_lines(photos):
    Path("photos/aa.png").write_bytes(b"broken")
    result = run("encode", photos, "-o", "out", "--json", "--lambda", "0.0064")
    assert result.code == 1
    by_name = {os.path.basename(line["input"]): line for line in result.lines}
    assert set(by_name) == {"a.png", "aa.png", "b.jpg", "c.webp"}
    good = by_name["c.webp"]
    assert set(good) == {"input", "output", "width", "height", "bytes", "bpp", "lambda", "seconds", "notes"}
    assert good["output"] == os.path.join("out", "sub", "c.cdc")
    assert good["bytes"] == Path(good["output"]).stat().st_size
    assert good["bpp"] == pytest.approx(8 * good["bytes"] / 960, abs=1e-4)
    assert (good["width"], good["height"], good["lambda"]) == (40, 24, 0.0064)
    assert by_name["aa.png"]["error"].startswith("not a picture")
    skipped = works("encode", "photos/a.png", "-o", "out", "--json", "--skip-existing").lines
    assert skipped == [{"input": "photos/a.png", "output": os.path.join("out", "a.cdc"), "skipped": True}]
    decoded = works("decode", "out", "-o", "back", "--json", "--steps", 0).lines
    assert [line["bytes"] for line in decoded] == [Path(line["input"]).stat().st_size for line in decoded]
    assert {line["lambda"] for line in decoded} == {0.0064}


def test_progress_on_a_terminal_only(photos):
    shown = works("encode", photos, "-o", "one", terminal=True).errors
    assert "[2/3" in shown
    assert shown.split("\r\x1b[K")[-1] == "cdcodec: 3 encoded\n"
    assert "\r" not in works("encode", photos, "-o", "two").errors
    assert works("encode", photos, "-o", "three", "-q", terminal=True).errors == ""


def test_names_that_are_not_text(photos):
    os.rename(b"photos/a.png", b"photos/\xff.png")
    result = subprocess.run([*PROGRAM, "encode", "photos", "-o", "out"], capture_output=True, check=True)
    assert sorted(os.listdir(b"out")) == [b"b.cdc", b"sub", b"\xff.cdc"]
    assert b"Traceback" not in result.stderr
    result = subprocess.run([*PROGRAM, "info", b"out/\xff.cdc"], capture_output=True, check=True)
    assert b"bpp" in result.stdout


def test_a_batch_keeps_its_order_and_few_pictures_in_memory(monkeypatch):
    for i in range(12):
        picture(f"photos/{i:02d}.png")
    alive, most = set(), []
    read, finish = batch.Encode.read, batch.Encode.finish

    def counted_read(self, source):
        alive.add(source)
        most.append(len(alive))
        return read(self, source)

    def slow_finish(self, job, item, result):
        time.sleep(0.02)
        alive.discard(job.source)
        return finish(self, job, item, result)

    monkeypatch.setattr(batch.Encode, "read", counted_read)
    monkeypatch.setattr(batch.Encode, "finish", slow_finish)
    lines = works("encode", "photos", "-o", "out", "--json").lines
    assert [line["input"] for line in lines] == [os.path.join("photos", f"{i:02d}.png") for i in range(12)]
    assert max(most) <= 2 * batch.AHEAD + 4
    assert len(tree("out")) == 12


def test_a_full_disk_in_a_batch(monkeypatch):
    for name in "abc":
        picture(f"photos/{name}.png")
    write = files.write

    def full(target, data, *, force):
        if target.endswith("b.cdc"):
            raise files.OutputError(f"{target} cannot be written: No space left on device")
        write(target, data, force=force)

    monkeypatch.setattr(files, "write", full)
    result = run("encode", "photos", "-o", "out")
    assert result.code == 1
    assert "b.cdc cannot be written: No space left on device" in result.errors
    assert "2 encoded, 1 failed (photos" in result.errors
    assert tree("out") == ["a.cdc", "c.cdc"]


# --- targets


def sized(name: str = "big.png") -> tuple[int, int]:
    """Write a picture; the bytes of its smallest and its largest file."""
    picture(name, (200, 160))
    return tuple(len(works("encode", name, "-", "--lambda", lam).output) for lam in ("0.0768", "0.0024"))


def test_target_size():
    least, most = sized()
    limit = (least + most) // 2
    line = works("encode", "big.png", "x.cdc", "--target-size", limit, "--json").lines[0]
    assert line["bytes"] == Path("x.cdc").stat().st_size
    assert 0.97 * limit <= line["bytes"] <= limit
    assert 0.0024 <= line["lambda"] <= 0.0768
    bpp = 8 * limit / 32000
    result = works("encode", "big.png", "y.cdc", "--target-bpp", bpp)
    assert 0.97 * limit <= Path("y.cdc").stat().st_size <= limit
    assert result.errors.startswith("big.png -> y.cdc: 200 x 160, ")
    line = fails("encode", "big.png", "z.cdc", "--target-size", least - 1)
    assert line.startswith(f"big.png: {least - 1} bytes are out of reach: the smallest file of this")
    assert f"picture has {least}, at" in line
    assert fails("encode", "big.png", "z.cdc", "--target-size", "20").startswith("big.png: a file of 20 bytes is out")
    assert tree() == ["big.png", "x.cdc", "y.cdc"]
    result = works("encode", "big.png", "z.cdc", "--target-size", "1M")
    assert "note: big.png: the best these weights can do, λ = 0.0024, takes less than the 1000000" in result.errors
    assert Path("z.cdc").stat().st_size == most


def test_target_size_of_a_batch():
    least, most = sized("photos/a.png")
    picture("photos/b.png", (8, 8))
    Path("photos/c.png").write_bytes(b"broken")
    limit = (least + most) // 2
    result = run("encode", "photos", "-o", "out", "--target-size", limit, "--json")
    assert result.code == 1
    a, b, c = result.lines
    assert 0.97 * limit <= a["bytes"] <= limit
    assert b["lambda"] == 0.0024
    assert "not a picture" in c["error"]


def test_target_psnr(tiny):
    picture("in.png", (64, 48))
    original = np.asarray(Image.open("in.png"))

    def quality(lam: float) -> float:
        works("encode", "in.png", "t.cdc", "--lambda", lam, "--force")
        works("decode", "t.cdc", "t.png", "--steps", 1, "--force")
        return target.psnr(original, np.asarray(Image.open("t.png")))

    wished = max(quality(lam) for lam in tiny.ladder) - 0.2
    line = works("encode", "in.png", "x.cdc", "--target-psnr", wished, "--steps", 1, "--json").lines[0]
    works("decode", "x.cdc", "x.png", "--steps", 1)
    assert line["psnr"] == pytest.approx(target.psnr(original, np.asarray(Image.open("x.png"))), abs=1e-4)
    assert line["psnr"] >= wished
    assert "PSNR 90 is out of reach" in fails("encode", "in.png", "y.cdc", "--target-psnr", 90, "--steps", 0)


def test_target_lpips_needs_its_weights(monkeypatch):
    picture("in.png")
    monkeypatch.delenv("CDCODEC_METRIC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    line = fails("encode", "in.png", "x.cdc", "--target-lpips", "0.2", "--metric-weights", ".")
    assert "alexnet_features.safetensors" in line
    assert tree() == ["in.png"]


@pytest.mark.parametrize("size", ["0", "x", "30 kilo", "-3"])
def test_sizes_that_are_none(size):
    picture("in.png")
    assert "is no size like 30000, 30k or 1.5M" in fails("encode", "in.png", f"--target-size={size}", code=2)


@pytest.mark.parametrize(("text", "size"), [("30000", 30000), ("30k", 30000), ("1.5M", 1_500_000), ("30KiB", 30720),
                                            ("2 MB", 2_000_000), (".5k", 500)])  # fmt: skip
def test_sizes_in_words(text, size):
    assert options.parse_size(None, None, text) == size


def test_only_one_target():
    picture("in.png")
    line = fails("encode", "in.png", "--target-size", "30k", "--quality", "3", code=2)
    assert "--quality and --target-size exclude each other" in line


# --- being interrupted


def test_an_interrupt_exits_with_130_and_leaves_nothing(monkeypatch):
    picture("in.png")

    def interrupted(*args):
        raise KeyboardInterrupt

    for owner, name in ((batch.Encode, "work"), (os, "link")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            result = run("encode", "in.png", "x.cdc")
        assert result.code == 130
        assert result.errors.strip() == ""
        assert tree() == ["in.png"]


def test_a_real_interrupt():
    picture("a.png")
    os.mkfifo("b.png")  # whoever opens it waits
    with subprocess.Popen([*PROGRAM, "encode", "a.png", "b.png", "-o", "out"], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not Path("out/a.cdc").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert os.listdir("out") == ["a.cdc"]


@pytest.mark.parametrize(
    "arguments", [["decode", "x.cdc", "-", "--steps", "0", "--format", "bmp"], ["info", "--json", *["x.cdc"] * 9000]]
)
def test_a_broken_pipe_ends_quietly(arguments):
    works("encode", picture("in.png", (900, 700)), "x.cdc")
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == b""


# --- the other commands


def test_info():
    works("encode", picture("in.png", mode="RGBA"), "x.cdc")
    size = Path("x.cdc").stat().st_size
    facts = works("info", "x.cdc", "--json").lines[0]
    assert (facts["width"], facts["height"], facts["lambda"], facts["version"]) == (40, 24, 0.0128, 1)
    assert facts["bytes"] == size
    assert facts["bpp"] == pytest.approx(8 * size / 960, abs=1e-4)
    assert set(facts["chunks"]) == {"alpha", "origin"}
    assert facts["payload"] + sum(facts["chunks"].values()) + 4 * len(facts["chunks"]) + 28 == size
    assert int(facts["checkpoint"], 16) == container.read_header(Path("x.cdc").read_bytes()).checkpoint
    lines = works("info", "x.cdc").text.splitlines()
    assert lines[0] == "x.cdc"
    assert "  lambda        0.0128" in lines
    assert f"  bytes         {size}" in lines
    assert works("info", "-", stdin=Path("x.cdc").read_bytes()).text.splitlines()[1:] == lines[1:]


def test_info_goes_on_after_a_bad_file():
    coded()
    Path("bad.cdc").write_bytes(b"bad")
    result = run("info", "bad.cdc", "x.cdc", "--json")
    assert result.code == 1
    assert [line["input"] for line in result.lines] == ["x.cdc"]
    assert result.errors.startswith("cdcodec: error: bad.cdc: not a .cdc file")


def test_verify():
    data = coded("x.cdc")
    picture("alpha.png", mode="LA")
    works("encode", "alpha.png", "-q")
    result = works("verify", "x.cdc", "alpha.cdc")
    assert result.text == "x.cdc: sound\nalpha.cdc: sound\n"
    assert works("verify", "-", "-q", stdin=data).output == b""
    header, chunks, payload = container.unpack(data)
    Path("payload.cdc").write_bytes(container.pack(header, chunks, payload[:-4]))
    Path("chunk.cdc").write_bytes(container.pack(header, {"origin": b"{}"}, payload))
    Path("cut.cdc").write_bytes(data[:-1])
    Path("other.cdc").write_bytes(container.pack(replace(header, checkpoint=7), chunks, payload))
    Path("symbols.cdc").write_bytes(container.pack(replace(header, symbol_check=7), chunks, payload))
    names = ["payload.cdc", "chunk.cdc", "cut.cdc", "other.cdc", "symbols.cdc", "missing.cdc"]
    result = run("verify", *names, "x.cdc")
    assert result.code == 1
    assert result.text == "x.cdc: sound\n"
    lines = result.errors.splitlines()
    assert [line.split(": ")[2] for line in lines] == names
    for line, words in zip(lines, ["damaged", "original mode", "checksum", "made with the weights 00000007",
                                   "other symbols", "no such file"], strict=True):  # fmt: skip
        assert words in line
    assert "over the limit of 9 pixels" in fails("verify", "x.cdc", "--max-pixels", 9)


def test_help_and_version():
    assert works().text == works("--help").text
    assert works("--version").text == f"cdcodec {cdcodec.__version__}\n"
    text = " ".join(works("encode", "--help").text.split())
    assert "A larger lambda means a smaller file" in text
    text = " ".join(works("decode", "-h").text.split())
    for default in ("17 unless the checkpoint", "0 unless the checkpoint", "0.9 unless the checkpoint"):
        assert default in text


def test_debug_shows_where():
    result = run("--debug", "encode", "missing.png")
    assert result.code == 1
    assert "Traceback" in result.errors
    assert "ImageError: no such file" in result.errors


def test_what_goes_wrong_outside_a_batch(monkeypatch):
    def broken(*args, **keywords):
        raise ValueError("unexpected")

    picture("in.png")
    monkeypatch.setattr(files, "plan", broken)
    assert fails("encode", "in.png").startswith("internal error, ValueError: unexpected")
    with pytest.raises(ValueError, match="unexpected"):
        main(["--debug", "encode", "in.png"])


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "cdcodec", "bogus"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "cdcodec: error: No such command 'bogus'. (see cdcodec --help)\n"


def test_weights_list(tiny_weights):
    lines = works("weights", "list").text.splitlines()
    assert lines[0].split() == ["preset", "lambda", "bpp", "bytes", "bitstream", "rho", "licence"]
    rows = [line.split() for line in lines[1:]]
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)
    assert len(rows) == 8
    works("encode", picture("in.png"), "x.cdc")
    checkpoint = works("info", "x.cdc", "--json").lines[0]["checkpoint"]
    assert {row[4] for row in rows} == {checkpoint}
    assert works("weights", "list", "--weights", tiny_weights).text.splitlines() == lines


def test_weights_verify(tiny_weights):
    lines = works("weights", "verify").text.splitlines()
    assert len(lines) == 9
    assert all(line.endswith(".safetensors: ok") for line in lines)
    shutil.copytree(tiny_weights, "copy")
    base = next(Path("copy").glob("*/base.safetensors"))
    data = bytearray(base.read_bytes())
    data[-5] ^= 1
    base.write_bytes(data)
    result = run("weights", "verify", "--weights", "copy")
    assert result.code == 1
    assert "base.safetensors: ok" not in result.text
    assert "base.safetensors" in fails("encode", picture("in.png"), "--weights", "copy")
    assert not Path("in.cdc").exists()


def test_training_that_cannot_start():
    message = fails("train", "--images", "none", "--out", "run", "--resume", "--recipe", "smoke", code=2)
    assert message.startswith("--resume goes by the run's own recipe")
    assert "no recipe 'bogus'" in fails("train", "--images", ".", "--out", "run", "--recipe", "bogus")
    Path("run").mkdir()
    assert "run holds no" in fails("train", "--images", ".", "--out", "run", "--resume")
    Path("run/state.pt").write_bytes(b"")
    assert fails("train", "--images", ".", "--out", "run") == "run holds a training run already; --resume continues it"
    assert "run" in fails("export", "run", "out")


def test_a_missing_extra_is_named(monkeypatch):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "cdcodec.lab.export":
                raise ModuleNotFoundError("No module named 'compressai'", name="compressai.layers")

    monkeypatch.delitem(sys.modules, "cdcodec.lab.export", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    message = fails("export", "run", "out")
    assert message == "compressai.layers is not installed: pip install 'cdcodec[train]'"


# --- from Python


def test_python_api():
    values = (np.arange(24 * 40 * 3).reshape(24, 40, 3) % 251).astype(np.uint8)
    data = cdcodec.encode(values)
    assert data == cdcodec.encode(Image.fromarray(values), lam=0.0128)
    header = cdcodec.read_header(data)
    assert (header.width, header.height, header.lam) == (40, 24, 0.0128)
    image = cdcodec.decode(data, steps=1)
    assert (image.size, image.mode) == ((40, 24), "RGB")
    model = cdcodec.load_model()
    grey = cdcodec.decode(cdcodec.encode(values[..., 0], lam=0.0064, model=model), steps=0, model=model)
    assert grey.mode == "L"
    with pytest.raises(cdcodec.errors.NotCDCError):
        cdcodec.decode(b"nothing of the kind")
    with pytest.raises(cdcodec.errors.ImageError):
        cdcodec.encode(values.astype(np.float32))
    with pytest.raises(cdcodec.errors.WeightsError):
        cdcodec.encode(values, lam=5.0)
