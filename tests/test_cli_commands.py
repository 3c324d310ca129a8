"""The commands beside encode and decode, help, and the Python API."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import coded, fails, picture, run, works
from conftest import write_tiny_weights
from PIL import Image

import cdcodec
from cdcodec import examine, files
from cdcodec.bits import container
from cdcodec.cli import main
from cdcodec.config import PRESETS

pytestmark = pytest.mark.usefixtures("surroundings")


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
    for default in ("fast preview. [default: the checkpoint's own", "texture. [default: the", "looks. [default: the"):
        assert default in text


def test_a_group_without_a_command_shows_its_help():
    result = run("weights")
    assert result.code == 2
    assert "\n  verify" in result.errors
    assert "error" not in result.errors


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


def test_verify_takes_the_weights_a_file_was_made_with(tiny_weights):
    """They lie beside others, and are not the ones that encode takes by default."""
    others = write_tiny_weights(Path("others"), replace(PRESETS["tiny-x"], fraction_bits=7))
    works("encode", picture("in.png"), "x.cdc", "--weights", others)
    shutil.copytree(tiny_weights, "both")
    shutil.copytree(others / "compact-x", "both/second")
    assert works("verify", "x.cdc", "--weights", "both").text == "x.cdc: sound\n"


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


def test_a_fault_of_ours_at_one_file_does_not_keep_the_others_from_being_looked_at(monkeypatch):
    works("encode", picture("in.png"), "x.cdc")
    facts = examine.facts

    def faulty(path):
        if path == "bad.cdc":
            raise RuntimeError("a fault")
        return facts(path)

    monkeypatch.setattr(examine, "facts", faulty)
    result = run("info", "bad.cdc", "x.cdc")
    assert result.code == 1
    assert result.errors.startswith("cdcodec: error: bad.cdc: internal error, RuntimeError: a fault (--debug")
    assert b"x.cdc" in result.output
    assert "Traceback" in run("--debug", "info", "bad.cdc").errors
