"""The authors' checkpoints: imported exactly, refused when broken; results recorded from their code stay reproduced.

The recorded tensors come from tests/compare_authors.py, which runs the authors' code beside ours.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import authors
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from cdcodec import codec, weights
from cdcodec.bits.tables import ideal_bits
from cdcodec.config import PRESETS, ModelConfig
from cdcodec.errors import SettingError, WeightsError
from cdcodec.lab import authors as importer
from cdcodec.nets.diffusion import authors_alpha_bar, authors_grid, ddim
from cdcodec.nets.networks import Networks
from cdcodec.weights import Checkpoint, load_model

VECTORS = Path(__file__).parent / "vectors"
DIM = 8
PRESET_NAMES = ("paper-x", "paper-eps")


@pytest.fixture(scope="module", autouse=True)
def _narrow_presets():
    """The authors' presets at an eighth of their width."""
    wide = dict(PRESETS)
    PRESETS.update({preset: authors.narrow(preset, DIM) for preset in PRESET_NAMES})
    yield
    PRESETS.update(wide)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, _narrow_presets) -> Path:
    """A weights folder with one import of each kind, and a second λ and a second ρ of the first."""
    folder = tmp_path_factory.mktemp("authors")
    for preset in PRESET_NAMES:
        importer.import_checkpoint(authors.write_file(folder, preset, DIM), folder)
    other = authors.write_file(folder, "paper-x", DIM, "other.pt")
    importer.import_checkpoint(other, folder, lam=0.1024, rho=0.9)
    importer.import_checkpoint(other, folder, lam=0.0512, rho=0.0)
    return folder


@pytest.fixture(params=PRESET_NAMES)
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


def load(root: Path, preset: str) -> Checkpoint:
    lam = {"paper-x": 0.0512, "paper-eps": 0.1024}[preset]
    return load_model(root, preset=preset, lam=lam, rho=0.9, device="cpu", precision="float32")


@pytest.fixture
def recorded(preset: str) -> dict[str, Tensor]:
    return load_file(VECTORS / f"authors-{preset.removeprefix('paper-')}.safetensors")


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.05, "results that do not vary would prove little"
    return float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@torch.inference_mode()
def test_latents_and_their_parameters_are_theirs(root: Path, preset: str, recorded: dict[str, Tensor]) -> None:
    model = load(root, preset).model
    pixels = authors.picture(64, 64)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    medians = weights.load_tensors(root, preset=preset, lam=model.config.ladder[0], rho=0.9)[0]["rate.medians"]
    y = model.networks.analysis(x, model.networks.condition(model.config.ladder[0]).condition, x.new_zeros(1), x.dtype)
    z = model.networks.hyper_analysis(y)
    z_hat = (z - medians[:, None, None]).round() + medians[:, None, None]
    log_scale, mean = model.networks.hyper_synthesis(z_hat, y)
    for name, ours in {"y": y, "z": z, "mean": mean, "scale": log_scale.exp()}.items():
        assert near(ours, recorded[name]), name
    symbols = model.analyse(pixels, model.config.ladder[0])
    latent = torch.from_numpy(symbols.latent(model.config.fraction_bits))[None] / 2.0**model.config.fraction_bits
    assert float((latent - recorded["quantised"]).abs().max()) < 2e-4, "the integers' latent is the floats'"


@torch.inference_mode()
def test_context_network_and_sampling_are_theirs(root: Path, preset: str, recorded: dict[str, Tensor]) -> None:
    model = load(root, preset).model
    given = model.networks.condition(model.config.ladder[0])
    pyramid, base = model.networks.synthesis(recorded["quantised"], given.condition, torch.zeros(1), torch.float32)
    assert base is None
    for i in (2, 3):
        assert near(pyramid[i], recorded[f"context.{i}"])
    noise = torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 64, 64))).float()
    unet = model.networks.unet
    assert near(unet(noise, unet.embed(torch.tensor([0.3])), unet.contributions(pyramid)), recorded["unet"])
    denoise = model.networks.denoiser(pyramid, base, given, rho=0.9, steps=3, dtype=torch.float32)
    assert near(ddim(denoise, 0.8 * noise, model.networks.alpha_bars(3)), recorded["sample.3"])


def test_the_rate_is_theirs(root: Path, preset: str, recorded: dict[str, Tensor]) -> None:
    checkpoint = load(root, preset)
    lam = checkpoint.ladder[0]
    floats = weights.load_tensors(root, preset=preset, lam=lam, rho=0.9)[0]
    prior = {name.removeprefix("rate."): value for name, value in floats.items() if name.startswith("rate.")}
    pixels = authors.picture(64, 64)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    theirs = float(recorded["bits"])
    estimate = importer.estimated_bits(checkpoint.model.networks, prior, x)
    assert sum(bits.sum() for bits in estimate) == pytest.approx(theirs, rel=1e-3)
    symbols = checkpoint.model.analyse(pixels, lam)
    rows = np.arange(len(symbols.z))[:, None, None]
    tables = checkpoint.tables
    ideal = ideal_bits(symbols.z, rows, tables.z) + ideal_bits(symbols.y, symbols.index, tables.y)
    assert ideal == pytest.approx(theirs, rel=5e-4)
    assert len(codec.encode(pixels, checkpoint, lam)) <= 1.003 * theirs / 8 + 32


@pytest.mark.parametrize(("height", "width"), [(1, 1), (65, 30)])
def test_pictures_of_any_size_come_back(root: Path, preset: str, height: int, width: int) -> None:
    checkpoint = load(root, preset)
    data = codec.encode(authors.picture(height, width), checkpoint, checkpoint.ladder[0])
    pixels, _ = codec.decode(data, checkpoint, steps=1)
    assert pixels.shape == (height, width, 3)
    with pytest.raises(SettingError, match="1 step or more"):
        codec.decode(data, checkpoint, steps=0)
    with pytest.raises(SettingError, match=r"0\.9 ≤ ρ ≤ 0\.9"):
        codec.decode(data, checkpoint, steps=1, rho=0.0)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_bfloat16_codes_the_same_file(root: Path, preset: str) -> None:
    full = load(root, preset)
    lam = full.ladder[0]
    low = load_model(root, preset=preset, lam=lam, rho=0.9, device="cpu", precision="bfloat16")
    pixels = authors.picture(64, 64)
    data = codec.encode(pixels, full, lam)
    assert codec.encode(pixels, low, lam) == data
    # Of fewer than 16 channels, narrower than the authors' are, oneDNN convolves bfloat16 by 8 × 8 kernels wrongly on
    # CPUs with AMX (torch 2.14.1).
    with torch.backends.mkldnn.flags(enabled=not torch.cpu._is_amx_tile_supported()):
        ours, theirs = (codec.decode(data, m, steps=2, gamma=0.0)[0].astype(int) for m in (full, low))
    assert np.abs(ours - theirs).mean() < 3


def test_lambda_and_rho_choose_and_the_file_finds_its_checkpoint(root: Path, tiny_weights: Path) -> None:
    shutil.copytree(tiny_weights, root, dirs_exist_ok=True)
    listed = [(i.preset, i.rho, i.lam, i.bpp) for i in weights.list_checkpoints(root) if i.preset in PRESET_NAMES]
    assert listed == [
        ("paper-eps", "0.9", 0.1024, None),
        ("paper-x", "0", 0.0512, None),
        ("paper-x", "0.9", 0.0512, 0.7444),
        ("paper-x", "0.9", 0.1024, 0.5388),
    ]
    with pytest.raises(WeightsError, match=r"several fit: .*λ 0.0512 \(ρ 0\), .*λ 0.1024"):
        load_model(root, preset="paper-x", lam=0.0512)
    with pytest.raises(WeightsError, match="none fits"):
        load_model(root, preset="paper-x", lam=0.0513)
    chosen = load_model(root, preset="paper-x", lam=0.1024, device="cpu")
    assert (chosen.ladder, chosen.config.rho) == ((0.1024,), 0.9)
    with pytest.raises(WeightsError, match="alone"):
        chosen.check_lambda(0.05)
    eps = load(root, "paper-eps")
    assert load_model(root, checkpoint=eps.id, device="cpu").config == eps.config
    shipped = load_model(root, device="cpu")
    assert shipped.config.preset == "compact-x"
    assert load_model(root, checkpoint=shipped.id, device="cpu").config.preset == "compact-x"
    with pytest.raises(WeightsError, match=r"made with the weights 00000001.*paper-eps"):
        load_model(root, checkpoint=1)
    assert {verdict for _, verdict in weights.verify(root)} == {"ok"}


def test_the_averaged_weights_are_taken(root: Path) -> None:
    tensors = weights.load_tensors(root, preset="paper-x", lam=0.1024)[0]
    name = "denoise_fn.final_conv.1.weight"
    assert torch.equal(tensors["unet.head.weight"], authors.seeded(name, authors.shapes("paper-x", DIM)[name]))
    assert not any("loss_fn" in name or "train_" in name for name in tensors)


def test_transposed_convolutions_become_shuffled_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(3, 4, 5, 5, generator=generator), torch.randn(1, 3, 5, 6, generator=generator)
    expected = F.conv_transpose2d(x, weight, stride=2, padding=2, output_padding=1)
    assert torch.allclose(F.pixel_shuffle(F.conv2d(x, importer.shuffled(weight), padding=1), 2), expected, atol=1e-5)


def test_schedules_and_grids() -> None:
    x, eps = authors_alpha_bar("cosine", 8193), authors_alpha_bar("linear", 20000)
    assert (len(x), len(eps), x.dtype) == (8193, 20000, np.float32)
    assert x[0] == pytest.approx(1 - 4.8e-6, abs=1e-6)
    assert eps[-1] == pytest.approx(np.exp(-10.05), rel=1e-2)
    alpha_bars, times = authors_grid("cosine", 8193, 17)
    assert alpha_bars == [float(v) for v in x[8192::-512]]
    assert times == [n / 8193 for n in range(8192, -1, -512)]
    alpha_bars, times = authors_grid("linear", 20000, 200)
    assert (alpha_bars[-2], times[-2]) == (float(eps[100]), 1 / 200)
    for schedule, table in (("cosine", x), ("linear", eps)):
        assert authors_grid(schedule, len(table), 1) == ([float(table[-1])], [(len(table) - 1) / len(table)])


def test_names_tell_preset_lambda_and_rho() -> None:
    assert importer.parse_name(authors.X_NAME) == ("paper-x", 0.0512, 0.9)
    assert importer.parse_name(authors.EPS_NAME) == ("paper-eps", 0.1024, 0.9)
    distortion = "image-l2-use_weight5-vimeo-d64-t8193-b0.0032-x-cosine-01-float32-aux0.0_2.pt"
    assert importer.parse_name(distortion) == ("paper-x", 0.0032, 0.0)
    assert importer.parse_name("model.pt") == (None, None, None)


class Malice:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def spoil(change: Callable[[dict[str, Tensor]], None]) -> dict[str, dict[str, Tensor]]:
    state = authors.state("paper-x", DIM)
    change(state)
    return {"model": state}


def test_what_is_broken_or_malicious_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    trap, source, name = tmp_path / "trap", tmp_path / authors.X_NAME, "denoise_fn.mid_block1.block1.block.0.weight"
    good = authors.write_file(tmp_path, "paper-x", DIM).read_bytes()

    def write_pickle(data: object) -> None:
        source.write_bytes(pickle.dumps(data))

    def write(data: object) -> None:
        torch.save(data, source)

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: write_pickle({"model": Malice(trap)}), "read safely"),
        (lambda: write({"model": Malice(trap)}), "read safely"),
        (lambda: source.write_bytes(good[: len(good) // 2]), "read safely"),
        (lambda: source.write_bytes(b""), "read safely"),
        (lambda: source.write_bytes(b"no checkpoint at all"), "read safely"),
        (lambda: write([1, 2]), "no tensors of the authors' models"),
        (lambda: write({"model": {"weight": torch.zeros(2)}}), "no tensors of the authors' models"),
        (lambda: write(spoil(lambda s: s.pop(name))), f"{name} is missing"),
        (lambda: write(spoil(lambda s: s.update({name: s[name][:1]}))), f"{name} is torch.float32"),
        (lambda: write(spoil(lambda s: s.update({name: s[name].int()}))), f"{name} is torch.int32"),
        (lambda: write(spoil(lambda s: s.update({name: s[name] / 0}))), "not finite"),
        (lambda: write(spoil(lambda s: s.update({"denoise_fn.more": torch.zeros(1)}))), "denoise_fn.more"),
        (lambda: write(spoil(lambda s: s.update({"denoise_fn.more": "text"}))), "denoise_fn.more"),
        (lambda: write({"model": authors.state("paper-eps", DIM)}), "called paper-x"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(WeightsError, match=message) as error:
            importer.import_checkpoint(source, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not trap.exists()
    source.unlink()
    with pytest.raises(WeightsError, match="missing"):
        importer.import_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = authors.write_file(tmp_path, "paper-x", DIM)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        importer.import_checkpoint(source, tmp_path)
    assert list((tmp_path / "paper-x").iterdir()) == []


def test_imports_ask_for_what_they_do_not_know_and_replace_nothing(tmp_path: Path) -> None:
    source = authors.write_file(tmp_path, "paper-x", DIM, "model.pt")
    with pytest.raises(WeightsError, match="--lambda and --rho"):
        importer.import_checkpoint(source, tmp_path)
    first = importer.import_checkpoint(source, tmp_path, lam=0.2, rho=0.5)
    assert (first.lam, first.rho, first.preset) == (0.2, 0.5, "paper-x")
    assert abs(first.loss) < 5e-4
    with pytest.raises(WeightsError, match="--force"):
        importer.import_checkpoint(source, tmp_path, lam=0.2, rho=0.5)
    assert importer.import_checkpoint(source, tmp_path, lam=0.2, rho=0.5, force=True).path == first.path


def test_fetching_through_a_stand_in_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "hub"
    store.mkdir()
    for preset in PRESET_NAMES:
        authors.write_file(store, preset, DIM)
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        assert repository == "rhyang/CDC_params"
        asked.append(name)
        return str(store / name)

    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda repository: ["README.md", *sorted(os.listdir(store))]  # type: ignore[attr-defined]
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    out = tmp_path / "out"
    assert [done.path.name for done in importer.fetch("paper-x", out)] == ["lambda-0.0512-rho-0.9.safetensors"]
    assert asked == [authors.X_NAME]
    assert list(importer.fetch("paper-x", out)) == [], "what is there is not fetched again"
    assert load_model(out, preset="paper-x", device="cpu").ladder == (0.0512,)
    with pytest.raises(WeightsError, match="holds no such checkpoint"):
        list(importer.fetch("paper-x", out, lam=0.7))
    (store / authors.EPS_NAME).write_bytes(b"junk")
    with pytest.raises(WeightsError, match="read safely"):
        list(importer.fetch("paper-eps", out))
    hub.hf_hub_download = lambda *_: (_ for _ in ()).throw(OSError("no\nnetwork"))  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match="failed: no network"):
        list(importer.fetch("paper-eps", out))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'cdcodec\[hub\]'"):
        list(importer.fetch("paper-x", out))


def test_the_released_size() -> None:
    """53.9 million parameters, as the paper's comparisons count them; ours has its own entropy model."""
    assert sum(map(math.prod, authors.shapes("paper-x", 64).values())) == 53_885_379
    config = ModelConfig.from_json(authors.WIDE["paper-x"].to_json())
    networks = Networks(config)
    assert sum(p.numel() for n, p in networks.named_parameters() if not n.startswith("ladder")) > 53e6


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from cdcodec.cli import main

    def works(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    monkeypatch.setenv("CDCODEC_WEIGHTS", str(tmp_path / "weights"))
    source = authors.write_file(tmp_path, "paper-x", DIM)
    said = works("weights", "import", source, "-o", tmp_path / "weights")
    assert "lambda-0.0512-rho-0.9.safetensors: paper-x, lambda 0.0512, rho 0.9; integers lose" in said
    works("weights", "import", source, "--lambda", 0.0032, "--rho", 0)
    rows = [line.split() for line in works("weights", "list").splitlines()[1:]]
    assert [(row[0], row[1], row[5]) for row in rows] == [("paper-x", "0.0032", "0"), ("paper-x", "0.0512", "0.9")]
    assert works("weights", "verify").count(": ok") == 2
    picture, coded, decoded = (tmp_path / name for name in ("in.png", "x.cdc", "out.png"))
    Image.fromarray(authors.picture(40, 70)).save(picture)
    works("encode", picture, coded, "--model", "paper-x", "--lambda", "0.0032")
    works("decode", coded, decoded, "--steps", 2)
    with Image.open(decoded) as image:
        assert image.size == (70, 40)
    refused = CliRunner().invoke(main, ["encode", str(picture), "--model", "paper-x", "--lambda", "0.1"])
    assert refused.exit_code == 1
    assert "none fits: paper-x λ 0.0032 (ρ 0), paper-x λ 0.0512 (ρ 0.9)" in refused.output
    (tmp_path / "weights" / "paper-x" / "lambda-0.0032-rho-0.safetensors").unlink()
    words = ["eval", str(tmp_path), "--model", "paper-x", "--peers", "none", "-o", str(tmp_path / "report")]
    refused = CliRunner().invoke(main, [*words, "--steps", "0"])
    assert (refused.exit_code, "paper-x has no light head to decode with alone" in refused.output) == (2, True)
    refused = CliRunner().invoke(main, [*words, "--effort", "2"])
    assert (refused.exit_code, "paper-x has no light head to refine a latent by" in refused.output) == (2, True)
