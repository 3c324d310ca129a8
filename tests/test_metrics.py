"""The measures against independent values, with networks from a folder, from torch's cache, and missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from scipy.signal import convolve2d
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from cdcodec.errors import WeightsError
from cdcodec.lab import metrics
from cdcodec.lab.metrics import Judge, load_dists, load_lpips, psnr, usable


@pytest.fixture(scope="module")
def pair():
    """A piece of a photograph, uint8 (176, 192, 3), and a noisy copy."""
    picture = np.ascontiguousarray(data.astronaut()[100:276, 150:342])
    noise = np.random.RandomState(0).normal(0, 12, picture.shape)
    return picture, (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A folder with seeded random backbones of all three kinds, as safetensors."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    parts = {
        "alex": torchvision.models.AlexNet().features,
        "squeeze": torchvision.models.squeezenet1_1(weights=None).features,
        "vgg": torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]),
    }
    for net, part in parts.items():
        tensors = {f"features.{name}": value for name, value in part.state_dict().items()}
        save_file(tensors, folder / metrics.BACKBONES[net])
    return folder


@pytest.fixture(autouse=True)
def no_networks(monkeypatch, tmp_path):
    """Whatever the machine has is out of sight."""
    monkeypatch.delenv("CDCODEC_METRIC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def as_tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


def test_psnr_is_that_of_scikit_image(pair):
    value = psnr(as_tensor(pair[0]), as_tensor(pair[1]))
    assert value == pytest.approx(peak_signal_noise_ratio(*pair, data_range=255), abs=1e-9)
    assert 25 < value < 28


def test_psnr_of_constant_difference():
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 16.0)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(black, black) == float("inf")
    assert psnr(black / 255, grey / 255, peak=1.0) == pytest.approx(20 * np.log10(255 / 16), abs=1e-5)


def test_identical_pictures_are_finite(pair):
    assert Judge(["psnr", "ms-ssim"])(pair[0], pair[0].copy()) == {"psnr": metrics.PSNR_LIMIT, "ms-ssim": 1.0}


def reference_ms_ssim(a, b):
    """Wang, Simoncelli and Bovik 2003, per channel, by SciPy in float64; sides that stay even."""
    axis = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / np.outer(axis, axis).sum()
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    values = []
    for channel in range(3):
        x, y, product = a[..., channel].astype(float), b[..., channel].astype(float), 1.0
        for scale, weight in enumerate(weights):
            mean_x, mean_y, xx, yy, xy = (convolve2d(z, window, "valid") for z in (x, y, x * x, y * y, x * y))
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            product *= (contrast if scale < 4 else contrast * luminance).mean() ** weight
            if scale < 4:
                x, y = ((z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4 for z in (x, y))
        values.append(product)
    return np.mean(values)


def test_ms_ssim_is_the_published_formula(pair):
    assert Judge(["ms-ssim"])(*pair)["ms-ssim"] == pytest.approx(reference_ms_ssim(*pair), abs=2e-5)


def test_ms_ssim_is_not_defined_for_small_pictures(pair):
    assert Judge(["ms-ssim"])(pair[0][:160], pair[1][:160]) == {"ms-ssim": None}
    assert Judge(["ms-ssim"])(pair[0][:161], pair[1][:161])["ms-ssim"] is not None


def test_sizes_must_agree(pair):
    with pytest.raises(ValueError, match="different sizes"):
        Judge(["psnr"])(pair[0], pair[1][:-1])


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_of_the_judge_is_that_of_the_package(pair, networks, net):
    judge, model = Judge([f"lpips-{net}"], networks), load_lpips(net, networks)
    a = as_tensor(pair[0]) / 127.5 - 1
    for other in (pair[1], pair[0][::-1].copy(), pair[0].copy()):
        expected = model(a, as_tensor(other) / 127.5 - 1).item()
        assert judge(pair[0], other)[f"lpips-{net}"] == pytest.approx(expected, abs=2e-6)
    assert judge(pair[1], pair[1].copy()) == {f"lpips-{net}": 0.0}


def test_lpips_takes_the_backbone_of_the_folder(networks):
    from safetensors.torch import load_file

    file = load_file(networks / metrics.BACKBONES["alex"])
    model = load_lpips("alex", networks)
    assert torch.equal(model.net.slice1.state_dict()["0.weight"], file["features.0.weight"])
    assert torch.equal(model.net.slice5.state_dict()["10.bias"], file["features.10.bias"])
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_networks_of_the_variable_and_of_torch_are_found(networks, monkeypatch, tmp_path, pair):
    expected = Judge(["lpips-alex"], networks)(*pair)
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    from safetensors.torch import load_file

    torch.save(load_file(networks / metrics.BACKBONES["alex"]), cache / metrics.TORCHVISION["alex"])
    assert usable(["lpips-alex"]) == (["lpips-alex"], {})
    assert Judge(["lpips-alex"])(*pair) == expected
    (cache / metrics.TORCHVISION["alex"]).unlink()
    assert usable(["lpips-alex"])[0] == []
    monkeypatch.setenv("CDCODEC_METRIC_WEIGHTS", str(networks))
    assert Judge(["lpips-alex"])(*pair) == expected


def test_a_missing_network_gives_one_clear_line(tmp_path):
    good, reasons = usable(metrics.MEASURES, tmp_path)
    assert good == ["psnr", "ms-ssim"]
    lines = metrics.grouped(reasons)
    assert len(lines) == 4
    assert lines[2].startswith("lpips-vgg, dists: vgg16_features.safetensors is missing: put it, or torchvision's ")
    assert all("--metric-weights DIR" in line and "TORCH_HOME" in line and "\n" not in line for line in lines)


def test_a_missing_package_gives_one_clear_line(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda package: None)
    assert usable(["psnr", "ms-ssim"]) == (
        ["psnr"], {"ms-ssim": "the package pytorch_msssim is not installed: pip install 'cdcodec[eval]'"}
    )  # fmt: skip


def test_loading_names_the_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"alexnet_features\.safetensors is missing"):
        load_lpips("alex", tmp_path)
    with pytest.raises(WeightsError, match=r"vgg16_features\.safetensors is missing"):
        load_dists(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_wrong_network_is_refused(tmp_path, networks, content):
    path = tmp_path / metrics.BACKBONES["alex"]
    path.write_bytes((networks / metrics.BACKBONES["squeeze"]).read_bytes() if content is None else content)
    with pytest.raises(WeightsError, match="alexnet_features"):
        load_lpips("alex", tmp_path)


def test_dists_has_its_learned_weights(networks, pair):
    judge = Judge(["dists"], networks)
    assert judge(pair[0], pair[0].copy())["dists"] == pytest.approx(0, abs=1e-5)
    assert judge(*pair)["dists"] > 1e-4
    first, second = load_dists(networks), load_dists(networks)
    assert torch.equal(first.alpha, second.alpha)
    assert first.alpha.shape == (1, 1475, 1, 1)
    assert torch.equal(first.stage1[0].weight, load_lpips_vgg(networks))


def load_lpips_vgg(networks: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(networks / metrics.BACKBONES["vgg"])["features.0.weight"]


def test_measures_are_versioned_and_titled():
    found = metrics.versions(metrics.MEASURES)
    assert {"torch", "lpips", "pytorch_msssim", "torch_fidelity"} <= set(found)
    assert metrics.MEASURES["psnr"].arrow == "PSNR in dB ↑"
    assert metrics.MEASURES["kid"].arrow == "KID (256² patches) ↓"


if "CDCODEC_METRIC_WEIGHTS" in os.environ:
    REAL = Path(os.environ["CDCODEC_METRIC_WEIGHTS"])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "far", "near"), [("lpips-alex", 0.7219, 0.1376), ("lpips-squeeze", 0.7110, 0.1479)]
    )
    def test_lpips_of_the_examples_of_its_authors(name, far, near):
        reference, one, two = (np.asarray(Image.open(REAL / f"ex_{x}.png").convert("RGB")) for x in ("ref", "p0", "p1"))
        judge = Judge([name], REAL)
        assert judge(reference, one)[name] == pytest.approx(far, abs=1e-4)
        assert judge(reference, two)[name] == pytest.approx(near, abs=1e-4)


@pytest.mark.parametrize("net", list(metrics.LPIPS_SIDES))
def test_lpips_is_not_defined_on_pictures_that_its_network_pools_away(networks, net):
    random, side = np.random.default_rng(0), metrics.LPIPS_SIDES[net]
    judge = Judge([f"lpips-{net}"], networks)
    for height, known in ((side, True), (side - 1, False)):
        a, b = (random.integers(0, 256, (height, 70, 3), np.uint8) for _ in range(2))
        assert (judge(a, b)[f"lpips-{net}"] is not None) == known
    with pytest.raises(RuntimeError):
        judge._networks[f"lpips-{net}"](torch.zeros(1, 3, side - 1, 70), torch.zeros(1, 3, side - 1, 70))
