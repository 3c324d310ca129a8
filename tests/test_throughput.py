"""The bench of batches: it measures what it says, and a broken file is told and stops nothing."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cdcodec import batch, codec
from cdcodec.lab import throughput


def test_a_batch_with_a_broken_file(tiny_weights):
    words = ["--count", "5", "--size", "48", "32", "--weights", str(tiny_weights), "--device", "cpu", "--steps", "0"]
    done = CliRunner().invoke(throughput.main, words)
    assert done.exit_code == 0, done.output
    encode, decode = done.output.splitlines()[1:]
    assert encode.startswith("encode: 5 done, 1 failed (00002-broken.jpg); ")
    assert decode.startswith("decode: 5 done, 0 failed (); ")


def test_speeds(tiny, tmp_path, monkeypatch):
    """With a clock that only the network moves, one second a picture, both speeds are its own."""
    now = 0.0

    def slow(*arguments, real=codec.encode, **options):
        nonlocal now
        now += 1.0
        return real(*arguments, **options)

    monkeypatch.setattr(codec, "encode", slow)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    throughput.lay_out(tmp_path, 6, None, (50, 20))
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    jobs = [batch.Job(str(tmp_path / "photos" / name), str(tmp_path / f"{name}.cdc")) for name in names]
    figures = throughput.measure(jobs, batch.Encode(lambda: (tiny, 0.0128)))
    assert figures.failed == ("00003-broken.jpg",)
    assert figures.done == 6
    assert figures.speed == pytest.approx(0.001)
    assert figures.alone == pytest.approx(0.001)
    assert figures.peak >= figures.late > 0
