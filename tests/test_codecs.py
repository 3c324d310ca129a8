"""The codecs of an evaluation: round trips from real bytes, recorded settings, packaging, external programs, ours."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from cdcodec import codec
from cdcodec.bits import container
from cdcodec.errors import CdcodecError
from cdcodec.lab.codecs import OUR_HEADER, PEERS, External, Own, Plugin, container_bytes
from cdcodec.lab.metrics import psnr

ENCODER = """
import sys
from PIL import Image
source, target, quality = sys.argv[1:4]
Image.open(source).save(target, "JPEG", quality=int(quality))
"""
DECODER = """
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2], "PNG")
"""


@pytest.fixture(scope="module")
def picture():
    """A piece of a photograph, uint8 (160, 200, 3)."""
    return np.ascontiguousarray(data.astronaut()[0:320:2, 100:500:2])


@pytest.fixture
def program(tmp_path):
    """A template of an external codec in a folder with a space in its name; it is JPEG in disguise."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "enc.py").write_text(ENCODER)
    (folder / "dec.py").write_text(DECODER)
    enc, dec = (f"'{sys.executable}' '{folder}/{script}'" for script in ("enc.py", "dec.py"))
    return f"disguised@20,80={enc} {{in}} {{out}} {{q}} ; {dec} {{out}} {{rec}}"


def quality(a, b):
    return psnr(*(torch.from_numpy(np.array(x)).float() for x in (a, b)))


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peers_write_real_files(peer, picture):
    assert peer.missing() is None
    before = json.dumps(peer.settings)
    low, high = (peer.encode(picture, rung, peer.settings[0]) for rung in (peer.rungs[1], peer.rungs[-2]))
    decoded = [peer.decode(d, peer.settings[0]) for d in (low, high)]
    assert all(d.dtype == np.uint8 and d.shape == picture.shape for d in decoded)
    assert len(low) < len(high)
    assert 18 < quality(picture, decoded[0]) < quality(picture, decoded[1])
    assert 8 * len(low) / 32000 < 1.2
    assert 0 <= peer.overhead(low) < 600
    assert json.dumps(peer.settings) == before


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peers_record_what_they_do(peer):
    assert list(peer.rungs) == sorted(set(peer.rungs))
    assert json.loads(json.dumps(peer.settings)) == list(peer.settings)
    assert any(character.isdigit() for character in peer.version)


def test_a_missing_plugin_says_what_to_install():
    plugin = Plugin("x", "X", (1,), {}, module="no_such_plugin", package="no-such-plugin")
    assert plugin.missing() == "no-such-plugin is not installed: pip install 'cdcodec[eval]'"


def test_external_programs(program, picture):
    external = External.parse(program)
    assert (external.name, external.rungs, external.missing()) == ("disguised", (20, 80), None)
    low, high = (external.encode(picture, rung, {}) for rung in external.rungs)
    assert low[:2] == b"\xff\xd8"
    assert len(low) < len(high)
    decoded = external.decode(high, {})
    with Image.open(io.BytesIO(high)) as jpeg:
        assert np.array_equal(decoded, np.asarray(jpeg))


@pytest.mark.parametrize(
    "template",
    ["", "name", "name=", "=a {in} {out} {q} ; b {out} {rec}", "n=a {in} {out} ; b {out} {rec}",
     "n=a {in} {out} {q} ; b {out}", "n=a {in} {out} {q};b {out} {rec}", "n@x,y=a {in} {out} {q} ; b {out} {rec}"],
)  # fmt: skip
def test_wrong_templates(template):
    with pytest.raises(ValueError):  # noqa: PT011
        External.parse(template)


def test_external_failures_are_told(picture):
    python = sys.executable
    failing = External("x", f"{python} -c 'raise SystemExit(\"no licence\")' {{in}} {{out}} {{q}}", "true {out} {rec}")
    with pytest.raises(CdcodecError, match=r"failed with exit code 1: no licence"):
        failing.encode(picture, 1, {})
    silent = External("x", "true {in} {out} {q}", "true {out} {rec}")
    with pytest.raises(CdcodecError, match="wrote no file"):
        silent.encode(picture, 1, {})
    assert External("x", "no-such-program {in}", "true").missing() == "there is no program no-such-program"


def box(name: bytes, contents: bytes, size: int | None = None) -> bytes:
    return (8 + len(contents) if size is None else size).to_bytes(4, "big") + name + contents


def test_packaging_of_boxes():
    head = box(b"ftyp", b"avif0000")
    assert container_bytes(head + box(b"mdat", b"x" * 100)) == len(head) + 8
    assert container_bytes(head + box(b"mdat", b"x" * 100, size=0)) == len(head) + 8
    large = (1).to_bytes(4, "big") + b"mdat" + (116).to_bytes(8, "big") + b"x" * 100
    assert container_bytes(head + large + box(b"free", b"")) == len(head) + 16 + 8
    assert container_bytes(box(b"ftyp", b"")[:6]) == 0


def test_packaging_of_webp_and_jpeg():
    riff = b"RIFF\x00\x00\x00\x00WEBP" + b"VP8X" + (3).to_bytes(4, "little") + b"abc\0"
    assert container_bytes(riff + b"VP8 " + (10).to_bytes(4, "little") + b"0123456789") == len(riff) + 8
    segments = b"\xff\xe0\x00\x04ab" + b"\xff\xdb\x00\x03c" + b"\xff\xfe\x00\x05def"
    assert container_bytes(b"\xff\xd8" + segments + b"\xff\xda\x00\x02" + b"scan" + b"\xff\xd9") == 4 + 6 + 7


@pytest.fixture
def own(tiny_weights):
    settings = ({"steps": 2, "gamma": 0.5, "rho": 0.9, "seed": 3}, {"steps": 0, "gamma": 0.0, "rho": 0.0, "seed": 0})
    return Own("compact-x", tiny_weights, "cpu", "float32", (0.0128,), settings)


def test_ours_is_the_codec(own, tiny, picture):
    coded = own.encode(picture, 0.0128, own.settings[0])
    assert coded == codec.encode(picture, tiny, 0.0128)
    for setting in own.settings:
        assert np.array_equal(own.decode(coded, setting), codec.decode(coded, tiny, **setting)[0])
    assert (own.name, own.ladder, own.missing()) == ("compact-x", "lambda", None)


def test_our_overhead_is_the_header(own, tiny, picture):
    coded = own.encode(picture, 0.0128, own.settings[0])
    assert own.overhead(coded) == OUR_HEADER == len(coded) - len(container.unpack(coded)[2])


def test_our_version_names_the_weights(own, tiny_weights, tmp_path):
    copy = tmp_path / "weights"
    shutil.copytree(tiny_weights, copy)
    same = Own("compact-x", copy, "cpu", "float32", (), ())
    assert same.version == own.version
    (copy / "compact-x" / "lambda-0.0128.safetensors").unlink()
    changed = tmp_path / "changed"
    shutil.copytree(copy, changed)
    assert Own("compact-x", changed, "cpu", "float32", (), ()).version != own.version
