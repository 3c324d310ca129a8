"""Batches, targets and interruptions on the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command import PROGRAM, fails, picture, run, tree, works
from PIL import Image

from cdcodec import batch, files, options, target

pytestmark = pytest.mark.usefixtures("surroundings")


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


@pytest.mark.parametrize(("more", "code"), [(["--skip-existing"], 0), ([], 1)])
def test_an_output_that_another_process_made_meanwhile(photos, monkeypatch, more, code):
    finish = batch.Encode.finish

    def overtaken(self, job, *rest):
        if job.source.endswith("a.png"):
            Path(job.target).write_bytes(b"theirs")
        return finish(self, job, *rest)

    monkeypatch.setattr(batch.Encode, "finish", overtaken)
    result = run("encode", photos, "-o", "out", *more)
    assert result.code == code
    told = "2 encoded, 1 skipped" if more else f"2 encoded, 1 failed ({os.path.join('photos', 'a.png')})"
    assert result.errors.splitlines()[-1] == f"cdcodec: {told}"
    assert Path("out/a.cdc").read_bytes() == b"theirs"


def test_a_closed_standard_error_leaves_the_output_alone():
    works("encode", picture("in.png"), "x.cdc")
    for inputs in (["x.cdc", "-"], ["x.cdc", "in.png", "-o", "out"]):
        command = [*PROGRAM, "decode", *inputs, "--steps", "0"]
        closed = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, check=False)
        assert closed.returncode == (0 if inputs[1] == "-" else 1)
        assert closed.stdout == b"" if closed.returncode else closed.stdout.endswith(b"IEND\xaeB`\x82")


def test_icons_are_not_written():
    works("encode", picture("in.png"), "x.cdc")
    assert "x.ico is not a name for an output" in fails("decode", "x.cdc", "x.ico", code=2)


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
    assert max(most) <= 2 * batch.AHEAD + 3
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

    wished = max(quality(lam) for lam in tiny.ladder) - 0.5  # of an untrained model it does not rise evenly
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


@pytest.fixture
def heeded_interrupt():
    """Children heed Ctrl-C, which the background jobs of a shell, and what they start, ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupt")
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
