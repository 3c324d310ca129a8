"""Evaluations: the numbers against direct computation, the order of lines, resuming after kill -9, what is missing."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import data

import cdcodec
from cdcodec import codec, weights
from cdcodec.errors import CdcodecError, WeightsError
from cdcodec.lab import commands, evaluate, fid, metrics, plan, results, summary
from cdcodec.lab.codecs import PEERS
from cdcodec.lab.commands import compare_command, eval_command
from cdcodec.lab.metrics import psnr
from cdcodec.lab.plan import Request

LAMBDAS = (0.0048, 0.0256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small pictures in two folders, and a broken one."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "more").mkdir()
    Image.fromarray(data.astronaut()[0:192:2, 150:350:2]).save(root / "b.png")
    Image.fromarray(data.chelsea()[100:180, 100:200]).save(root / "more" / "a.png")
    Image.fromarray(data.coffee()[::8, ::8]).save(root / "c.webp", lossless=True)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    return root


@pytest.fixture
def request_for(folder, tiny_weights, tmp_path, monkeypatch):
    """A small request; keywords change it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("CDCODEC_METRIC_WEIGHTS", raising=False)
    defaults = {"folder": folder, "out": tmp_path / "out", "weights": tiny_weights, "device": "cpu",
                "precision": "float32", "lambdas": LAMBDAS, "peers": ("jpeg",), "measures": ("psnr",)}  # fmt: skip

    def make(**changes):
        return Request(**(defaults | changes))

    return make


def perform(request, **options):
    request.out.mkdir(exist_ok=True)
    prepared = plan.prepare(request)
    return prepared, evaluate.run(prepared.plan, **options)


def stable(result):
    """What two runs must agree on."""
    return result.key, result.bytes, dict(result.measures)


def test_numbers_come_from_real_bytes(request_for, folder, tiny):
    prepared, outcome = perform(request_for(peers=("jpeg", "webp")))
    assert prepared.broken == ("broken.png: not a picture of a known format, or damaged in its first bytes",)
    assert prepared.missing == ()
    assert not outcome.failures
    per_picture = 2 * len(LAMBDAS) + len(PEERS["jpeg"].rungs) + len(PEERS["webp"].rungs)
    assert len(outcome.results) == 3 * per_picture
    assert [r.image for r in outcome.results[::per_picture]] == ["b.png", "c.webp", "more/a.png"]
    assert [r.codec for r in outcome.results[:5]] == ["compact-x"] * 4 + ["jpeg"]
    assert results.read(prepared.plan.lines) == outcome.results
    with Image.open(folder / "b.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for result in outcome.results[:5]:
        if result.own:
            coded = codec.encode(pixels, tiny, result.rung, rho=result.setting["rho"])
            decoded = codec.decode(coded, tiny, **result.setting)[0]
        else:
            coded = PEERS["jpeg"].encode(pixels, result.rung, {})
            decoded = PEERS["jpeg"].decode(coded, {})
        assert result.bytes == len(coded)
        assert result.bpp == 8 * len(coded) / pixels[..., 0].size
        expected = psnr(*(torch.from_numpy(p.copy()).float() for p in (pixels, decoded)))
        assert result.measures["psnr"] == pytest.approx(expected, abs=1e-5)
        assert result.encode_seconds > 0
        assert result.decode_seconds > 0
    assert {r.curve for r in outcome.results} == {
        "compact-x, 17 steps, γ 0, ρ 0.9", "compact-x, 1 step, γ 0, ρ 0", "jpeg", "webp",
    }  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak")
def test_the_peak_of_memory_is_seen():
    with evaluate.Watch() as watch:
        np.frombuffer(mmap.mmap(-1, 50_000_000), np.uint8).fill(1)  # pages that nobody had before
    assert 40 < watch.peak_mb < 120


def test_one_encoding_serves_all_decode_settings_of_a_rho(request_for, monkeypatch):
    encoded = []
    real = codec.encode
    monkeypatch.setattr(codec, "encode", lambda *a, **k: encoded.append((a[2], k["rho"])) or real(*a, **k))
    request = request_for(peers=(), limit=1, steps=(0, 1), gammas=(0.0, 0.8), rhos=(0.0, 0.9))
    _, outcome = perform(request)
    assert encoded == [(lam, rho) for lam in LAMBDAS for rho in (0.0, 0.9)]
    assert len(outcome.results) == 16
    settings = [tuple(r.setting[k] for k in ("steps", "gamma", "rho")) for r in outcome.results[:8]]
    assert settings == [(s, g, r) for r in (0.0, 0.9) for s in (0, 1) for g in (0.0, 0.8)]
    assert [len({r.bytes for r in outcome.results[i : i + 4]}) for i in (0, 4)] == [1, 1]
    assert len({r.measures["psnr"] for r in outcome.results[:8]}) > 2


def test_nothing_is_measured_twice(request_for, monkeypatch):
    request = request_for(limit=2)
    prepared, first = perform(request)
    before = prepared.plan.lines.read_bytes()
    monkeypatch.setattr(evaluate, "Watch", None)
    _, second = perform(request)
    assert second.results == first.results
    assert prepared.plan.lines.read_bytes() == before
    elsewhere = request_for(limit=2, out=request.out.parent / "elsewhere")
    _, copied = perform(elsewhere, known=first.results)
    assert copied.results == first.results
    assert not copied.failures


def test_other_pictures_weights_or_measures_are_measured_anew(request_for, folder, monkeypatch):
    _, first = perform(request_for(limit=1))
    made = []
    monkeypatch.setattr(evaluate, "Watch", lambda real=evaluate.Watch: made.append(1) or real())
    _, again = perform(request_for(limit=1, measures=("psnr", "ms-ssim")))
    assert len(made) == len(again.results) + 2 * len(LAMBDAS) + len(PEERS["jpeg"].rungs)
    assert all(set(r.measures) == {"psnr", "ms-ssim"} for r in again.results)
    for change in ({"digest": "00000000"}, {"version": "another"}):
        changed = [results.Result(**(vars(r) | change)) for r in first.results]
        out = folder.parent / f"out-{next(iter(change))}"
        made.clear()
        perform(request_for(limit=1, out=out), known=changed)
        assert made


def test_a_torn_last_line_is_measured_again(request_for):
    request = request_for(limit=1)
    prepared, first = perform(request)
    lines = prepared.plan.lines
    whole = lines.read_bytes()
    lines.write_bytes(whole[: len(whole) - 40])
    assert len(results.read(lines)) == len(first.results) - 1
    _, second = perform(request)
    assert [stable(r) for r in second.results] == [stable(r) for r in first.results]
    assert len(results.read(lines)) == len(first.results)
    lines.write_bytes(whole[:30] + b"\n" + whole)
    with pytest.raises(CdcodecError, match=r"line 1 of .*results\.jsonl is not a result"):
        results.read(lines)


def test_jobs_change_nothing(request_for):
    _, alone = perform(request_for(lambdas=(0.0128,), limit=2))
    _, together = perform(request_for(lambdas=(0.0128,), limit=2, jobs=2, out=request_for().out.parent / "two"))
    assert [stable(r) for r in together.results] == [stable(r) for r in alone.results]
    assert {r.jobs for r in together.results} == {2}


def test_resuming_after_kill_gives_the_same_numbers(request_for, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text("import shutil, sys, time\ntime.sleep(0.05)\nshutil.copy(sys.argv[1], sys.argv[2])\n")
    template = f"slow@1,2,3={sys.executable} {slow} {{in}} {{out}} {{q}} ; {sys.executable} {slow} {{out}} {{rec}}"
    request = request_for(programs=(template,), lambdas=(0.0128,))
    words = ["eval", str(request.folder), "-o", str(request.out), "--weights", str(request.weights), "--device", "cpu",
             "--precision", "float32", "--lambda", "0.0128", "--peers", "jpeg", "--peer", template,
             "--metrics", "psnr"]  # fmt: skip
    script = (
        "from cdcodec.cli import main\nfrom cdcodec.lab.commands import eval_command\n"
        f"main.add_command(eval_command)\nmain({words!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cdcodec.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    lines, deadline = request.out / "results.jsonl", time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") > 16):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = results.read(lines)
    _, resumed = perform(request)
    _, whole = perform(request_for(programs=(template,), lambdas=(0.0128,), out=tmp_path / "whole"))
    assert 16 < len(interrupted) < len(whole.results) == len(resumed.results)
    assert resumed.results[: len(interrupted)] == interrupted
    assert [stable(r) for r in resumed.results] == [stable(r) for r in whole.results]


def test_failures_are_told_and_the_rest_goes_on(request_for, capsys):
    template = "refuses@1,2=false {in} {out} {q} ; true {out} {rec}"
    _, outcome = perform(request_for(programs=(template,), lambdas=(0.0128,), limit=1))
    assert outcome.failures == [f"b.png: refuses at {q}: false failed with exit code 1: no message" for q in (1, 2)]
    assert capsys.readouterr().err.splitlines() == [f"cdcodec: error: {line}" for line in outcome.failures]
    assert {r.codec for r in outcome.results} == {"compact-x", "jpeg"}


def test_missing_peers_and_networks_are_notes(request_for):
    request = request_for(
        programs=("vtm=no-such-encoder {in} {out} {q} ; dec {out} {rec}",), measures=("psnr", "lpips-alex", "fid")
    )
    prepared = plan.prepare(request)
    assert prepared.missing[0] == "vtm: there is no program no-such-encoder"
    assert prepared.missing[1].startswith("lpips-alex: alexnet_features.safetensors is missing: put it")
    assert prepared.missing[2].startswith("fid: weights-inception")
    assert prepared.plan.judging.measures == ("psnr",)


def test_the_words_of_eval_are_those_it_knows():
    assert (commands.PEERS, commands.MEASURES) == (tuple(PEERS), tuple(metrics.MEASURES))


def test_peers_alone(request_for):
    _, outcome = perform(request_for(models=("none",), limit=1))
    assert {r.codec for r in outcome.results} == {"jpeg"}


def test_presets_take_the_checkpoints_defaults(request_for):
    quality = plan.prepare(request_for(preset="quality", lambdas=(), peers=None)).plan
    settings = [(s["steps"], s["gamma"], s["rho"]) for s in quality.codecs[0].settings]
    assert settings == [(1, 0.0, 0.0), (17, 0.0, 0.9)]
    assert len(quality.codecs[0].rungs) == 8
    assert [c.name for c in quality.codecs] == ["compact-x", "jpeg", "webp", "avif", "heic"]
    figures = plan.prepare(request_for(preset="figures", lambdas=()))
    assert figures.missing[0].startswith("compact-eps: no checkpoint of compact-eps")
    steps = [s["steps"] for s in figures.plan.codecs[0].settings if (s["gamma"], s["rho"]) == (0.0, 0.9)]
    assert sorted(steps) == [0, 1, 2, 4, 8, 17, 33, 65]
    assert len(figures.plan.codecs[0].rungs) == 3


def test_effort_needs_its_judge_and_is_another_codec_with_another(request_for, tiny_weights, tmp_path):
    without = plan.prepare(request_for(preset="quality"))
    assert without.missing[0].startswith("compact-x without effort: ")
    assert "judge.safetensors is missing" in without.missing[0]
    with pytest.raises(WeightsError, match=r"judge\.safetensors is missing"):
        plan.prepare(request_for(effort=2))
    versions = []
    about, tensors = weights.read(Path(__file__).parents[1] / "weights" / "compact-x" / weights.JUDGE)
    for factor in (1, 2):
        root = tmp_path / str(factor)
        shutil.copytree(tiny_weights, root)
        weights.save({**tensors, "lins.0": factor * tensors["lins.0"]}, root / "compact-x" / weights.JUDGE, about)
        whole = plan.prepare(request_for(preset="quality", weights=root)).plan.codecs[0]
        assert whole.name == "compact-x effort 5"
        plain = plan.prepare(request_for(weights=root, effort=0)).plan.codecs[0]
        versions.append((whole.version, plain.version))
    assert versions[0][0] != versions[1][0]
    assert versions[0][1] == versions[1][1] == without.plan.codecs[0].version


def test_a_rho_that_the_weights_do_not_have_is_said(request_for):
    prepared = plan.prepare(request_for(rhos=(0.3, 0.95)))
    assert prepared.missing == ("compact-x at ρ 0.95: it has 0 to 0.9; the nearest is taken",)
    assert [s["rho"] for s in prepared.plan.codecs[0].settings] == [0.3, 0.9]


def test_the_report_may_lie_above_the_pictures_but_not_among_them(folder, tmp_path):
    names = [source.name for source in evaluate.survey(folder)[0]]
    assert [source.name for source in evaluate.survey(folder, out=folder.parent)[0]] == names
    with pytest.raises(CdcodecError, match="let what is made of them go to another folder"):
        evaluate.survey(folder, out=folder)


def test_what_is_asked_for_twice_is_measured_once(request_for):
    found = plan.prepare(request_for(models=("compact-x", "compact-x"), peers=("jpeg", "jpeg"), lambdas=LAMBDAS * 2))
    assert [(c.name, len(c.rungs)) for c in found.plan.codecs] == [("compact-x", 2), ("jpeg", 11)]
    with pytest.raises(CdcodecError, match="two codecs are called jpeg"):
        plan.prepare(request_for(programs=(f"jpeg={sys.executable} {{in}} {{out}} {{q}} ; cat {{out}} {{rec}}",)))


def test_fid_is_that_of_all_patches(request_for, tmp_path, monkeypatch):
    pictures = tmp_path / "large"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(data.astronaut(), 60 * i, axis=0)).save(pictures / f"{i}.png")

    def extractor(x):
        """A stand-in for Inception: seeded projections of patches shrunk to 4×4."""
        small = torch.nn.functional.adaptive_avg_pool2d(x.float(), 4).flatten(1)
        return small @ torch.randn(48, 3, generator=torch.Generator().manual_seed(0)) / 50

    monkeypatch.setattr(metrics, "usable", lambda names, folder: (list(names), {}))
    monkeypatch.setattr(fid, "load_inception", lambda folder, device: extractor)
    evaluate._inception.cache_clear()
    request = request_for(folder=pictures, lambdas=(0.0128,), peers=("jpeg",), measures=("psnr", "fid", "kid"))
    prepared, outcome = perform(request)
    rows = summary.means(outcome.results, prepared.plan.judging.measures, prepared.plan.judging.features)
    row = next(row for row in rows if row["codec"] == "jpeg" and row["rung"] == 8)
    sides = [[], []]
    for source in prepared.plan.sources:
        with Image.open(source.path) as image:
            pixels = np.asarray(image)
        decoded = PEERS["jpeg"].decode(PEERS["jpeg"].encode(pixels, 8, {}), {})
        for side, picture in zip(sides, (pixels, decoded), strict=True):
            side.append(fid.features(extractor, picture))
    a, b = (np.concatenate(side) for side in sides)
    assert len(a) == 15
    assert row["fid"] == pytest.approx(fid.fid(a, b), abs=1e-5)
    assert row["kid"] == pytest.approx(fid.kid(a, b), abs=1e-5)
    low = next(row for row in rows if row["codec"] == "jpeg" and row["rung"] == 3)
    assert low["fid"] > row["fid"] > 0
    (prepared.plan.judging.features / evaluate.features_path(Path(), outcome.results[-1].key)).unlink()
    monkeypatch.setattr(evaluate, "work", lambda unit, *rest: ([], None if not unit.settings else "asked again"))
    assert len(evaluate.run(prepared.plan).failures) == 1
    evaluate._inception.cache_clear()


def test_survey_is_sorted_and_limited(folder):
    sources, broken = evaluate.survey(folder)
    assert [s.name for s in sources] == ["b.png", "c.webp", "more/a.png"]
    assert [(s.width, s.height) for s in sources] == [(100, 96), (75, 50), (100, 80)]
    assert len(broken) == 1
    assert [s.name for s in evaluate.survey(folder, 1)[0]] == ["b.png"]


def test_large_pictures_can_be_cropped(folder):
    whole, cropped = (evaluate.survey(folder, crop=crop)[0] for crop in (None, 80))
    assert [(s.width, s.height) for s in cropped] == [(80, 80), (75, 50), (80, 80)]
    assert np.array_equal(cropped[0].pixels(), whole[0].pixels()[8:88, 10:90])
    assert [a.digest == b.digest for a, b in zip(whole, cropped, strict=True)] == [False, True, False]


def test_survey_leaves_hidden_files_and_the_report_out(tmp_path):
    for name in ("a.png", ".hidden.png", ".folder/b.png", "out/plots/c.png", "other/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [s.name for s in evaluate.survey(tmp_path, None, tmp_path / "out")[0]] == ["a.png", "other/d.png"]


def test_the_bar_shows_on_terminals_only(request_for, capsys, monkeypatch):
    perform(request_for(limit=1, peers=()))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    perform(request_for(limit=1, peers=(), out=request_for().out.parent / "bar"))
    shown = capsys.readouterr().err
    assert "eval" in shown
    assert "100%" in shown


def invoke(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


def test_eval_refuses_a_folder_with_results(request_for, tmp_path):
    request = request_for()
    perform(request_for(limit=1, peers=(), lambdas=(0.0128,)))
    done = invoke(eval_command, request.folder, "-o", request.out)
    assert isinstance(done.exception, CdcodecError)
    assert str(done.exception).endswith("results.jsonl exists already; --resume continues it, --force begins again")
    (tmp_path / "empty").mkdir()
    empty = invoke(eval_command, tmp_path / "empty", "-o", tmp_path / "x", "--weights", request.weights)
    assert "holds no picture that can be read" in str(empty.exception)
    both = invoke(eval_command, request.folder, "-o", request.out, "--resume", "--force")
    assert "exclude each other" in both.exception.message
    assert results.read(request.out / "results.jsonl")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--metrics", "psnr,vmaf"), "'vmaf' is not one of psnr"), (("--metrics", "none"), "'none' is not one of psnr"),
     (("--peers", "jpeg", "--anchor", "jpg"), "no codec jpg to compare with; there are compact-x"),
     (("--model", "none", "--peers", "none"), "no codec to measure"), (("--steps", "1,x"), "not a list of numbers"),
     (("--metrics", "dists"), "nothing to measure by; dists: "), (("--rho", "0.95"), "between 0 and 0.9"),
     (("--gamma", "nan"), "between 0"), (("--peers", "png"), "not one of"),
     (("--peer", "x=y"), "not of the form"), (("--lambda", "9"), "outside the ladder")],
)  # fmt: skip
def test_eval_refuses_wrong_options(request_for, words, message):
    request = request_for()
    done = invoke(eval_command, request.folder, "-o", request.out, "--weights", request.weights, *words)
    assert message in getattr(done.exception, "message", str(done.exception))


def test_compare_names_a_picture_that_cannot_be_read(folder, request_for):
    request_for()
    done = invoke(compare_command, folder, folder, "--metrics", "psnr")
    assert str(done.exception).startswith(f"{folder / 'broken.png'}: ")


def test_compare_pictures_and_folders(folder, tmp_path, request_for):
    request_for()
    copies = tmp_path / "copies"
    (copies / "more").mkdir(parents=True)
    expected = {}
    for name in ("b.png", "more/a.png"):
        with Image.open(folder / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        changed = (pixels // 8 * 8).astype(np.uint8)
        Image.fromarray(changed).save((copies / name).with_suffix(".bmp"))
        expected[name[:-4]] = psnr(*(torch.from_numpy(p.copy()).float() for p in (pixels, changed)))
    done = invoke(compare_command, folder / "b.png", copies / "b.bmp", "--metrics", "psnr,ms-ssim", "--json")
    value = pytest.approx(expected["b"], abs=1e-5)
    assert json.loads(done.stdout) == {"picture": "b.png", "psnr": value, "ms-ssim": None}
    (folder / "broken.png").rename(tmp_path / "away")
    try:
        done = invoke(compare_command, folder, copies, "--metrics", "psnr")
    finally:
        (tmp_path / "away").rename(folder / "broken.png")
    mean = np.mean(list(expected.values()))
    assert done.stdout.splitlines() == [f"{n}: psnr {v:.4f}" for n, v in [*expected.items(), ("mean", mean)]]
    assert "c is in one of the folders only" in done.stderr
    for other, message in ((copies, "not one of each"), (copies / "more" / "a.bmp", "different sizes")):
        assert message in str(invoke(compare_command, folder / "b.png", other).exception)
    assert "none of these" in str(invoke(compare_command, copies, copies, "--metrics", "lpips-alex").exception)
    Image.new("RGB", (9, 9)).save(copies / "b.png")
    assert "differ in their extension alone" in str(invoke(compare_command, copies, copies).exception)
    (tmp_path / "none").mkdir()
    assert "has the name" in str(invoke(compare_command, folder, tmp_path / "none").exception)
