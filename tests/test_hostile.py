"""Hostile bytes through the whole decoder: only CdcodecError comes out, in little time and memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import fuzz_container
import fuzz_decode
import fuzzing
import numpy as np
import pytest

import cdcodec
from cdcodec import codec
from cdcodec.bits import coder, container
from cdcodec.errors import CdcodecError, CorruptError

VECTORS = sorted((Path(__file__).parent / "vectors" / "hostile").glob("*.cdc"))


def test_the_saved_files_are_refused_as_they_were(tiny):
    assert len(VECTORS) > 20
    outcomes = {path.stem: fuzz_decode.attempt(path.read_bytes(), tiny) for path in VECTORS}
    kinds = {name: outcome.partition(":")[0].lower() for name, outcome in outcomes.items()}
    assert kinds == {name: name.partition("-")[0] for name in outcomes}


def test_the_command_line_takes_the_saved_files(tiny_weights, tmp_path):
    names = [str(path) for path in VECTORS]
    for command in (["info", "--json"], ["verify", "--weights", str(tiny_weights)]):
        run = subprocess.run([sys.executable, "-m", "cdcodec", *command, *names], capture_output=True, text=True,
                             cwd=Path(cdcodec.__file__).parents[1], check=False)  # fmt: skip
        assert run.returncode == 1
        assert "Traceback" not in run.stderr
        assert "internal error" not in run.stderr
        lines = run.stderr.splitlines()
        assert all(line.startswith("cdcodec: error: ") for line in lines)
        assert len(lines) + len(run.stdout.splitlines()) == len(names)


def test_mutated_and_forged_files(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = fuzz_decode.fuzz(tiny, 250, 7)
    assert findings.runs == 250
    assert findings.outcomes["painted"] >= 15
    assert len(findings.outcomes) >= 10


def test_what_takes_long_or_raises_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzzing, "MAX_SECONDS", -1.0)
    with pytest.raises(RuntimeError, match=r"0\.0 s, 0 MiB"):
        fuzzing.fuzz(lambda: b"slow", lambda data: "read", 5)
    with pytest.raises(KeyError):
        fuzzing.fuzz(lambda: b"raises", lambda data: str({}[data]), 5)
    assert Path("crash-0.cdc").read_bytes() == b"raises"


def test_mutated_files_through_the_parser(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = fuzz_container.fuzz(3000, 7).outcomes
    assert set(outcomes) >= {"read", "CorruptError", "TruncatedError", "NotCDCError", "UnsupportedVersionError"}


@pytest.mark.slow
def test_five_thousand_files_through_the_decoder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fuzz_decode.fuzz(tiny, 5000, 11).runs == 5000


@pytest.mark.slow
def test_two_hundred_thousand_files_through_the_parser(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fuzz_container.fuzz(200_000, 11).runs == 200_000


def test_every_byte_changed_behind_a_fitting_check(tiny, photograph):
    data = codec.encode(photograph[:20, :20], tiny, 0.0256, {"origin": b'{"mode":"L","depth":8}', "icc": b"icc"})
    random_ = random.Random(3)
    painted = 0
    for at in range(len(data)):
        changed = bytes([*data[:at], data[at] ^ (1 << random_.randrange(8)), *data[at + 1 :]])
        outcome = fuzz_decode.attempt(fuzzing.reseal(changed), tiny)
        painted += outcome == "painted"
        assert outcome != "painted" or 12 <= at < 20 or 24 <= at < 61, f"byte {at} may not change unnoticed"
    assert painted < 40


def test_cut_at_every_length(tiny, photograph):
    data = codec.encode(photograph[:20, :20], tiny, 0.0256, {"xmp": b"<x/>"})
    for length in range(len(data)):
        for cut in (data[:length], fuzzing.reseal(data[:length]) if length >= 28 else b""):
            with pytest.raises(CdcodecError):
                codec.decode(cut, tiny, steps=0)


def huge(tiny, width: int, height: int, payload: bytes) -> bytes:
    return container.pack(container.Header(tiny.id, 0.0128, width, height, 0), {}, payload)


@pytest.mark.parametrize(("width", "height"), [(65536, 4096), (16384, 16384), (4096, 65536)])
def test_large_claims_in_small_files_cost_nothing(tiny, width, height):
    for payload in (bytes(4), b"\xff" * 400, bytes(4000)):
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(CorruptError, match="too short for a picture of this size"):
            codec.decode(huge(tiny, width, height, payload), tiny)
        assert time.process_time() - started < 0.5
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()


def test_the_least_bits_never_refuse_a_sound_file(tiny):
    """The likeliest symbols only: as few bits as a picture of its size can take."""
    for side in (1, 64, 500):
        rows = -(-side // 16)
        z_tables, y_tables = tiny.tables.z, tiny.tables.y
        likeliest = (z_tables.first + z_tables.counts.argmax(axis=1)).astype(np.int32)
        z = np.array(np.broadcast_to(likeliest[:, None, None], (len(likeliest), -(-rows // 4), -(-rows // 4))))
        of_index = (y_tables.first + y_tables.counts.argmax(axis=1)).astype(np.int32)
        symbols = tiny.model.integer(z, (rows, rows), lambda places, index, mean, of=of_index: of[index])
        payload = coder.write(symbols, tiny.tables)
        header = container.Header(tiny.id, 0.0128, side, side, symbols.check(tiny.config.fraction_bits))
        data = container.pack(header, {}, payload)
        assert np.array_equal(codec.read_symbols(data, tiny)[2].y, symbols.y)
        if side == 500:
            claim = container.pack(replace(header, width=3000, height=3000), {}, payload)
            with pytest.raises(CorruptError, match="too short"):
                codec.read_symbols(claim, tiny)


def test_chunks_that_unpack_to_much(tiny, photograph):
    pixels = photograph[:16, :16]
    random_ = random.Random(1)
    origin = json.dumps({"mode": "LA", "depth": 8}).encode()
    before = fuzzing.peak_memory()
    for _ in range(40):
        data = codec.encode(pixels, tiny, 0.0768, {"alpha": fuzz_decode.bomb(random_), "origin": origin})
        outcome = fuzz_decode.attempt(data, tiny)
        assert outcome == "painted" or outcome.startswith("CorruptError: the alpha plane"), outcome
    assert fuzzing.peak_memory() - before < 100 << 20
