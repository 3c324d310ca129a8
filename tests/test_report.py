"""The report: interpolation and Bjøntegaard deltas against closed forms, files, the page, the README's section."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import chromium
from click.testing import CliRunner
from PIL import Image
from skimage import data

from cdcodec.errors import CdcodecError
from cdcodec.lab import bench, demo, pictures, plots, readme, report, summary
from cdcodec.lab.codecs import PEERS, Own
from cdcodec.lab.commands import eval_command
from cdcodec.lab.results import Result
from cdcodec.lab.summary import Curve, delta, equal

EMBEDDED = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def result(image, codec, rung, bpp, **measures):
    """A made-up result of a 1000 × 1000 picture."""
    own = codec.startswith("compact")
    return Result(
        image=image, digest="0", width=1000, height=1000, codec=codec, version="1", rung=rung,
        ladder="lambda" if own else "quality", setting={"steps": 1, "gamma": 0.0, "rho": 0.0, "seed": 0} if own else {},
        bytes=round(bpp * 125000), overhead=0, bpp=bpp, encode_seconds=1.0, decode_seconds=2.0, peak_mb=None,
        gpu_mb=None, jobs=1, measures={name.replace("_", "-"): value for name, value in measures.items()},
    )  # fmt: skip


def curve(codec, *, slope=10.0, offset=30.0, factor=1.0, images=("a",), rates=(0.1, 0.2, 0.4, 0.8)):
    """PSNR = offset + slope·log10(bpp/factor): at equal PSNR it takes `factor` times the bits of factor 1."""
    rows = [
        result(image, codec, i, bpp, psnr=offset + slope * np.log10(bpp / factor),
               lpips_alex=0.5 - 0.1 * np.log10(bpp / factor))
        for image in images for i, bpp in enumerate(rates)
    ]  # fmt: skip
    return next(iter(summary.curves(rows).values()))


def test_interpolation_is_exact_on_straight_lines():
    c = curve("jpeg")
    for bpp in (0.1, 0.15, 0.33, 0.8):
        assert c.at("a", "psnr", bpp) == pytest.approx(30 + 10 * np.log10(bpp), abs=1e-9)
    assert c.at("a", "psnr", 0.0999) is None
    assert c.at("a", "psnr", 0.801) is None
    assert c.at("a", "dists", 0.3) is None
    assert c.at("no such picture", "psnr", 0.3) is None


def test_equal_bpp_takes_pictures_that_both_reach():
    ours = curve("compact-x", offset=32, images=("a", "b"))
    theirs = Curve("webp", False, {**curve("webp", images=("a",)).pictures,
                                   "b": curve("webp", images=("b",), rates=(0.4, 0.8)).pictures["b"]})  # fmt: skip
    low, high = (equal(ours, theirs, "psnr", bpp) for bpp in (0.2, 0.5))
    assert (low.images, high.images) == (1, 2)
    assert low.ours - low.theirs == pytest.approx(2)
    assert high.theirs == pytest.approx(30 + 10 * np.log10(0.5))
    none = equal(ours, theirs, "psnr", 2.0)
    assert (none.images, none.ours, none.theirs) == (0, None, None)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize(("measure", "sign"), [("psnr", 1), ("lpips-alex", -1)])
def test_bjontegaard_deltas_of_shifted_lines(factor, measure, sign):
    """A curve that takes `factor` times the bits has a BD-rate of factor − 1; the measure moves by slope·log10."""
    found = delta(curve("avif"), curve("compact-x", factor=factor), measure)
    slope = {"psnr": 10.0, "lpips-alex": 0.1}[measure]
    assert found.images == 1
    assert found.rate == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert found.difference == pytest.approx(-sign * slope * np.log10(factor), abs=1e-9)


def test_bjontegaard_of_lines_with_other_slopes():
    """Mean of log10 of the rates' ratio over the common qualities, from the inverse lines."""
    one, two = curve("avif", slope=10, offset=30), curve("jpeg", slope=8, offset=29)
    low, high = 29 + 8 * np.log10(0.1), 29 + 8 * np.log10(0.8)
    low, high = max(low, 20.0), min(high, 30 + 10 * np.log10(0.8))
    middle = (low + high) / 2
    expected = 100 * (10 ** ((middle - 29) / 8 - (middle - 30) / 10) - 1)
    assert delta(one, two, "psnr").rate == pytest.approx(expected, abs=1e-6)


def test_pictures_without_overlap_or_order_are_left_out():
    images = ("a", "b")
    far = Curve("jpeg", False, {**curve("jpeg").pictures, "b": curve("jpeg", offset=90, images=("b",)).pictures["b"]})
    assert delta(curve("avif", images=images), far, "psnr").images == 1
    points = [(0.1, 20), (0.2, 19), (0.4, 26), (0.8, 29)]
    wavy = [result("a", "jpeg", i, bpp, psnr=value) for i, (bpp, value) in enumerate(points)]
    bumpy = delta(curve("avif"), summary.curves(wavy)["jpeg"], "psnr")
    assert bumpy.images == 1
    assert bumpy.rate > 0
    assert delta(curve("avif"), curve("jpeg", offset=-50), "psnr").rate is None


def test_the_table_says_how_many_pictures():
    all_curves = {c.name: c for c in (curve("compact-x", offset=31), curve("webp"), curve("avif"))}
    equals, deltas = summary.comparisons(all_curves, ["psnr", "fid"], [0.2, 9], "webp")
    lines = summary.table(equals).splitlines()
    assert lines[0].startswith("PSNR in dB ↑ at equal bpp: peer | compact-x, 1 step, γ 0, ρ 0")
    assert lines[1].split() == ["bpp", "webp", "avif"]
    assert lines[2].split() == ["0.20", "23.01", "|", "24.01", "(1)", "23.01", "|", "24.01", "(1)"]
    assert "9.00" not in "".join(lines)
    assert {(d.curve, d.anchor) for d in deltas} == {("compact-x, 1 step, γ 0, ρ 0", "webp"), ("avif", "webp")}
    with pytest.raises(CdcodecError, match="no codec bpg"):
        summary.chosen([], "bpg")


def test_rungs_for_a_rate():
    own = Curve("x", True, {"a": [result("a", "compact-x", 0.02, 0.2), result("a", "compact-x", 0.005, 0.8)]})
    assert pictures.rung_for(own, "a", 0.4) == pytest.approx(0.01)
    assert pictures.rung_for(own, "a", 5) == pytest.approx(0.005, abs=1e-12)
    peer = Curve("jpeg", False, {"a": [result("a", "jpeg", 10, 0.2), result("a", "jpeg", 21, 0.8)]})
    assert pictures.rung_for(peer, "a", 0.4) == 16.0
    assert pictures.rung_for(peer, "a", 0.01) == 10.0


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_weights):
    """A whole report with a sweep, of three pictures, one of them with a name that tries to break out of the page."""
    root = tmp_path_factory.mktemp("report")
    (root / "in").mkdir()
    Image.fromarray(data.astronaut()[::3, ::3]).save(root / "in" / "astronaut.png")
    Image.fromarray(data.chelsea()[:120:, :200]).save(root / "in" / "<!--<script>alert(1)<.png")
    Image.fromarray(data.coffee()[::4, ::4]).save(root / "in" / "kaffee ☕.png")
    words = [root / "in", "-o", root / "out", "--weights", tiny_weights, "--device", "cpu", "--precision", "float32",
             "--lambda", "0.0024,0.0128,0.0768", "--steps", "0,1,4", "--gamma", "0", "--rho", "0.9", "--pictures", "2",
             "--peers", "jpeg,webp", "--metrics", "psnr,ms-ssim", "--anchor", "jpeg", "--rates", "0.5,1"]  # fmt: skip
    done = CliRunner().invoke(eval_command, [str(word) for word in words], standalone_mode=False)
    assert done.exception is None, done.exception
    assert done.return_value == 0
    return root / "out", done.stdout


def test_the_files_of_a_report(made):
    out, text = made
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 + 11 + 10
    assert {row["images"] for row in rows} == {"3"}
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    group = [line for line in lines if line["codec"] == "jpeg" and line["rung"] == 26]
    row = next(row for row in rows if row["curve"] == "jpeg" and row["rung"] == "26")
    assert float(row["psnr"]) == pytest.approx(np.mean([line["measures"]["psnr"] for line in group]), rel=1e-5)
    assert float(row["bpp"]) == pytest.approx(np.mean([line["bpp"] for line in group]), rel=1e-5)
    with (out / "bd.csv").open(newline="") as file:
        assert {row["anchor"] for row in csv.DictReader(file)} == {"jpeg"}
    record = json.loads((out / "run.json").read_text())
    assert record["codecs"]["jpeg"]["settings"] == [{"optimize": True, "progressive": True, "subsampling": "4:2:0"}]
    assert record["machine"]["cores"] >= 1
    assert (out / "equal-bpp.txt").read_text().strip() == text.strip()


def test_plots_are_svg_and_png(made):
    folder = made[0] / "plots"
    names = {path.stem for path in folder.iterdir()}
    strips = {f"strip-compact-x-steps-{i}" for i in (1, 2, 3)}
    assert names == {"rate-psnr", "rate-ms-ssim", "rate-all", "sweep-steps"} | strips
    for name in names:
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 150


def test_curves_differ_without_colour():
    styles = [plots._style(i) for i in range(10)]
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 10
    assert len({style["marker"] for style in styles}) == 10


def page_of(out):
    text = (out / "index.html").read_text()
    embedded = EMBEDDED.findall(text)
    assert len(embedded) == 1
    return text, json.loads(embedded[0])


def test_the_page_stands_alone(made):
    text, page = page_of(made[0])
    outside = text.replace(EMBEDDED.findall(text)[0], "")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", outside)
    assert "alert(1)" not in outside
    assert text.count("<script") == 2
    assert [p["name"] for p in page["pictures"]] == ["<!--<script>alert(1)<.png", "kaffee ☕.png"]
    assert len(page["plots"]) == 4
    assert len(page["strips"]) == 3
    assert page["anchor"] == "jpeg"


def test_the_page_shows_pictures_at_about_equal_bytes(made):
    page = page_of(made[0])[1]
    for picture in page["pictures"]:
        assert {shot["target"] for shot in picture["shots"]} == set(pictures.TARGETS)
        for target in pictures.TARGETS:
            shots = [shot for shot in picture["shots"] if shot["target"] == target]
            assert [s["label"].split(",")[0] for s in shots] == ["compact-x"] * 3 + ["jpeg", "webp"]
        for shot in picture["shots"]:
            kind, _, body = shot["uri"].partition(",")
            assert kind == "data:image/avif;base64"
            with Image.open(io.BytesIO(base64.b64decode(body))) as image:
                assert image.size == (picture["width"], picture["height"])
            assert shot["bpp"] > 0
            assert set(shot["measures"]) == {"psnr", "ms-ssim"}


def test_every_codec_is_asked_for_our_rate(tmp_path, monkeypatch):
    asked: list[tuple[str, float]] = []

    def shots(codec, curves, name, pixels, bpp):
        asked.append((codec.name, bpp))
        coded = {"compact-x": 1.25, "jpeg": 2.0}.get(codec.name, 1.0) * bpp
        return [{"label": codec.name, "rung": 1, "bytes": 1, "bpp": coded, "pixels": pixels}]

    source = SimpleNamespace(name="x.png", pixels=lambda: np.zeros((64, 64, 3), np.uint8))
    ours = Own("compact-x", tmp_path, "cpu", "float32", (), ())
    plan = SimpleNamespace(codecs=(PEERS["jpeg"], PEERS["webp"], ours))
    monkeypatch.setattr(pictures, "_shots", shots)
    pictures.comparison(plan, {}, source, lambda a, b: {})
    assert asked == [
        (codec, target * (1 if codec == "compact-x" else 1.25))
        for target in pictures.TARGETS
        for codec in ("compact-x", "jpeg", "webp")
    ]


def test_large_pictures_are_cropped_for_the_page():
    window = pictures._centre(1000, 700)
    assert (window[0].start, window[0].stop, window[1].start) == (116, 884, 0)
    flat = np.full((600, 600, 3), 128, np.uint8)
    flat[300:500, 290:480] = np.random.RandomState(0).randint(0, 256, (200, 190, 3))
    lively = flat[pictures._liveliest(flat)]
    assert lively.shape == (256, 256, 3)
    assert lively.std() > 25


def test_data_cannot_leave_its_element():
    text = report.render({"name": "</script><b>", "n": 1})
    assert "</script><b>" not in text
    assert json.loads(EMBEDDED.findall(text)[0])["name"] == "</script><b>"
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.render({"psnr": float("inf")})


def test_the_readme_takes_its_section_from_the_summary(made, tmp_path):
    out = made[0]
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nstale figures\n{readme.END}\nafter\n")
    done = CliRunner().invoke(readme.main, [str(out), str(path)])
    assert done.exit_code == 0, done.output
    text = path.read_text()
    assert text.startswith(f"before\n{readme.BEGIN}\n**Each λ: mean bpp, PSNR in dB")
    assert "\n**PSNR in dB, more is better: peer / compact-x, 0 steps" in text
    with (out / "summary.csv").open(newline="") as file:
        rung = next(row for row in csv.DictReader(file) if row["ladder"] == "lambda")
    line = f"\n| {rung['rung']} | {float(rung['bpp']):.3f}, {float(rung['psnr']):.2f}"
    assert line in text
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "stale figures" not in text
    with (out / "equal-bpp.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if (r["curve"], r["bpp"], r["measure"]) == ("webp", "0.5", "psnr"))
    assert f"{float(row['theirs']):.2f} / {float(row['ours']):.2f} ({row['images']})" in text
    path.write_text("no marks")
    assert CliRunner().invoke(readme.main, [str(out), str(path)]).exit_code == 1
    with pytest.raises(CdcodecError, match="whole report"):
        readme.section(tmp_path)


def test_the_bench_times_what_it_says(tiny):
    pixels = bench.picture(96, 64)
    assert pixels.shape == (64, 96, 3)
    assert np.array_equal(pixels, bench.picture(96, 64))
    assert 30 < pixels.std() < 90
    table = bench.warm(pixels, tiny, 0.0128, (0, 2), 1)
    assert list(table) == ["encode", "decode, 0 steps", "decode, 2 steps"]  # tiny has no judge
    assert all(0 < value < 10 for value in table.values())
    with pytest.raises(CdcodecError, match=r"cdcodec encode .* failed"):
        bench.cold(pixels, "tiny-x", 0.0128, ["--no-such-option"], 1)


def test_the_demo_on_a_small_photograph(tiny_weights, photograph, tmp_path):
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    out, weights = tmp_path / "out", ["--weights", str(tiny_weights)]
    done = CliRunner().invoke(demo.main, [str(tmp_path / "photo.png"), "-o", str(out), *weights])
    assert done.exit_code == 0, done.output
    for lam in demo.LAMBDAS:
        assert f"{lam:>8g} {(out / f'lambda-{lam:g}.cdc').stat().st_size:>8} " in done.output
        with Image.open(out / f"lambda-{lam:g}.png") as strip:
            assert strip.size == (3 * 96, 64 + demo.CAPTION)
    (tmp_path / "no.png").write_text("no picture")
    failed = CliRunner().invoke(demo.main, [str(tmp_path / "no.png"), "-o", str(out), *weights])
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: ")
    assert failed.output.count("\n") == 1


@pytest.mark.slow
def test_the_page_in_a_browser(made, tmp_path):
    """Needs chromium and chromedriver."""
    out = made[0]
    with chromium(tmp_path / "profile") as browser:
        browser.open((out / "index.html").as_uri())
        assert browser.run("return document.body.dataset.ready") == "1"
        assert browser.run("return document.querySelectorAll('#settingTable tbody tr').length") == 30
        browser.run("document.getElementById('pictures').scrollIntoView()")
        left, clip = "return view.split", "return document.getElementById('rightLayer').style.clipPath"
        before = browser.run(left), browser.run(clip)
        browser.drag("#handle", -150)
        after = browser.run(left), browser.run(clip)
        assert after[0] < before[0] - 0.05
        assert after[1] != before[1]
        browser.key("#stage", "\ue014")
        assert browser.run(left) == pytest.approx(after[0] + 0.02)
        shown = browser.run("return ['leftImage', 'rightImage'].map(id => document.getElementById(id).naturalWidth)")
        assert min(shown) > 100
        scale = browser.run("return view.scale")
        browser.click("#in")
        assert browser.run("return view.scale") == pytest.approx(1.25 * scale)
        browser.run("const s = document.getElementById('picture'); s.value = '1'; s.onchange()")
        assert browser.run("return document.getElementById('leftImage').alt").startswith("kaffee ☕.png")
        browser.run("document.getElementById('settings').scrollIntoView()")
        browser.click("#settingTable th:nth-child(6) button")
        cells = "document.querySelectorAll('#settingTable td:nth-child(6)')"
        column = f"return [...{cells}].map(e => Number(e.textContent))"
        values = browser.run(column)
        assert values == sorted(values)
        browser.click("#settingTable th:nth-child(6) button")
        assert browser.run(column) == sorted(values, reverse=True)
        screenshot = Image.open(io.BytesIO(browser.screenshot()))
        assert np.asarray(screenshot.convert("L")).std() > 10
        assert browser.log() == []
