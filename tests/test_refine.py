"""Effort: a latent refined for one picture costs less for what it shows, and the judge is LPIPS by SqueezeNet."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import data

import cdcodec
from cdcodec import codec, target, weights
from cdcodec.config import PRESETS
from cdcodec.errors import SettingError, WeightsError
from cdcodec.lab import judge as judge_command
from cdcodec.lab.judge import tensors_of
from cdcodec.lab.recipe import load_recipe
from cdcodec.nets import refine
from cdcodec.nets.judge import SMALLEST, Judge
from cdcodec.nets.refine import Refiner

ROOT = weights.find_weights()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> weights.Checkpoint:
    return weights.load_model(ROOT, precision="float32")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(weights.read(ROOT / "compact-x" / weights.JUDGE)[1], CPU, torch.float32)


def photograph(side: int) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:side, 100 : 100 + side])


def pair(side: int = 97) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    original = torch.from_numpy(photograph(side)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return (original + 0.2 * torch.randn_like(original)).clamp(-1, 1), original


def cost(pixels: np.ndarray, coded: bytes, model: weights.Checkpoint, judge: Judge, rho: float) -> float:
    """The objective, of a real file."""
    lam = cdcodec.read_header(coded).lam
    decoded = codec.decode(coded, model, steps=0, rho=rho)[0]
    a, b = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (decoded, pixels))
    bpp = 8 * len(coded) / (pixels.shape[0] * pixels.shape[1])
    error = (a - b).square().mean().item()
    looks = judge.distance(refine.continued(a), refine.continued(b)).item() if rho else 0.0
    rate = model.config.lambda_eff(lam) * bpp
    return rate + (1 - rho / 2) * refine.MSE_WEIGHT * error + refine.LPIPS_WEIGHT * rho * looks


def test_the_judge_is_lpips(judge):
    import lpips

    torch.manual_seed(1)
    with warnings.catch_warnings():  # of torchvision, about how lpips asks for its network
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    ours = Judge(tensors_of(theirs), CPU, torch.float32)
    noisy, original = pair()
    noisy.requires_grad_()
    values = ours.distance(noisy, original), theirs(noisy, original).flatten()
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), noisy)[0] for value in values]
    assert torch.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.999
    assert judge.distance(original, original).item() == pytest.approx(0, abs=1e-6)
    assert 0.02 < judge.distance(noisy.detach(), original).item() < 2


def test_a_judge_that_lacks_something_is_refused(judge):
    tensors = weights.read(ROOT / "compact-x" / weights.JUDGE)[1]
    del tensors["features.7.squeeze.bias"]
    with pytest.raises(ValueError, match=r"no 'features\.7\.squeeze\.bias'"):
        Judge(tensors, CPU, torch.float32)


@pytest.mark.parametrize("lam", [0.0048, 0.0512])
def test_a_file_is_best_at_the_rho_it_was_made_for(shipped, judge, lam):
    pixels = photograph(256)
    plain, looks = (codec.encode(pixels, shipped, lam, rho=rho) for rho in (0.0, 0.9))
    assert codec.encode(pixels, shipped, lam) == looks
    assert cost(pixels, plain, shipped, judge, 0.0) < 0.99 * cost(pixels, looks, shipped, judge, 0.0)
    assert cost(pixels, looks, shipped, judge, 0.9) < 0.99 * cost(pixels, plain, shipped, judge, 0.9)


@pytest.mark.parametrize(
    ("lam", "rho", "share"), [(0.0048, 0.0, 0.97), (0.0512, 0.0, 0.985), (0.0048, 0.9, 0.9), (0.0512, 0.9, 0.93)]
)
def test_effort_lowers_the_objective(shipped, judge, lam, rho, share):
    pixels = photograph(192)
    plain, refined = (codec.encode(pixels, shipped, lam, effort=effort, rho=rho) for effort in (0, 4))
    before, after = (cost(pixels, coded, shipped, judge, rho) for coded in (plain, refined))
    assert after < share * before
    assert codec.encode(pixels, shipped, lam, effort=4, rho=rho) == refined


def test_larger_pictures_are_refined_in_tiles(shipped, judge, monkeypatch):
    pixels, lam = np.ascontiguousarray(data.astronaut()[:160, :288]), 0.0128
    plain = codec.encode(pixels, shipped, lam)
    whole = codec.encode(pixels, shipped, lam, effort=4, rho=0.0)
    monkeypatch.setattr(refine, "TILE", 144)
    tiled = codec.encode(pixels, shipped, lam, effort=4, rho=0.0)
    costs = [cost(pixels, coded, shipped, judge, 0.0) for coded in (plain, whole, tiled)]
    assert tiled != whole
    assert costs[2] - costs[1] < 0.1 * (costs[0] - costs[1])


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_wished_size_takes_few_refinements(shipped, share):
    pixels = photograph(192)
    least, most = (len(codec.encode(pixels, shipped, lam)) for lam in (shipped.ladder[-1], shipped.ladder[0]))
    limit = round(least + share * (most - least))
    hit = target.encode(pixels, shipped, target.Target("size", limit), effort=2, settings={"rho": 0.0})
    assert 0.97 * limit <= len(hit.data) <= limit
    assert hit.encodes <= 2
    assert hit.data == codec.encode(pixels, shipped, hit.lam, effort=2, rho=0.0)


@pytest.mark.parametrize("size", [(16, 300), (48, 48), (SMALLEST + 2, 70)])
def test_pictures_too_small_for_the_judge_are_continued_for_it(shipped, judge, size):
    pixels = np.ascontiguousarray(data.astronaut()[: size[0], 100 : 100 + size[1]])
    plain, refined = (codec.encode(pixels, shipped, 0.0128, effort=effort) for effort in (0, 6))
    before, after = (cost(pixels, coded, shipped, judge, 0.9) for coded in (plain, refined))
    assert after < before


def test_one_pixel_can_be_refined(shipped):
    pixels = photograph(1)
    assert codec.decode(codec.encode(pixels, shipped, 0.0128, effort=2), shipped)[0].shape == (1, 1, 3)


def test_pictures_are_continued_by_mirroring():
    picture = torch.arange(3.0 * 40 * 70).view(1, 3, 40, 70)
    wide = refine.continued(picture)
    assert wide.shape == (1, 3, 80, 70)
    assert torch.equal(wide[:, :, :40], picture)
    assert torch.equal(wide[:, :, 40:], picture.flip(2))
    assert refine.continued(wide) is wide


def test_bits_are_those_of_the_densities():
    config = PRESETS["compact-x"]
    refiner = Refiner(config, lambda y: (y, y), lambda y: y, None, 0.0128, 0.0)
    y, index = torch.tensor([[-0.3, 4.0]]), torch.tensor([[0.0, 128.0]])
    sigma = 0.1 * 2560 ** (index.double() / 255)
    expected = 0.0
    for j in range(2):
        total = 0.0
        for share, scale in zip(config.density_weights, config.density_scales, strict=True):
            normal = torch.distributions.Normal(0.0, max(0.1, scale * sigma[0, j].item()))
            ends = torch.tensor([y[0, j] + 0.5, y[0, j] - 0.5], dtype=torch.float64)
            total += share * (normal.cdf(ends[0]) - normal.cdf(ends[1])).item()
        expected -= np.log2(total)
    assert refiner._bits(y, torch.zeros_like(y), index).item() == pytest.approx(expected, rel=1e-4)


def test_views_show_both_pictures_alike():
    _, original = pair(150)
    for seen, known in refine.views(original, original, random.Random(3)):
        assert torch.equal(seen, known)
        assert seen.shape[2:] in {(147, 147), (74, 74)}
    shown = [seen for seen, _ in refine.views(original, original, random.Random(3))]
    assert len({tuple(seen.flatten()[:5].tolist()) for seen in shown}) == refine.VIEWS


def test_the_objective_is_that_of_training():
    for name in ("compact-x", "compact-x-further"):
        recipe = load_recipe(name)
        weights = recipe.weights
        assert (weights.lambda_scale, weights.lambda_power) == (recipe.model.lambda_scale, recipe.model.lambda_power)
        assert {phase.lpips for phase in recipe.phases if phase.lpips} == {refine.LPIPS_WEIGHT}


def test_what_cannot_be_is_refused(shipped, tmp_path: Path):
    pixels = photograph(64)
    for wrong in ({"effort": -1}, {"effort": 1, "rho": 0.95}, {"rho": -0.1}):
        with pytest.raises(SettingError, match="effort ≥ 0"):
            codec.encode(pixels, shipped, 0.0128, **wrong)
    for path in (ROOT / "compact-x").iterdir():
        if path.name != weights.JUDGE:
            (tmp_path / "compact-x").mkdir(exist_ok=True)
            (tmp_path / "compact-x" / path.name).symlink_to(path.resolve())
    without = weights.load_model(tmp_path, precision="float32")
    with pytest.raises(WeightsError, match=r"judge\.safetensors is missing; encode with --effort 0"):
        codec.encode(pixels, without, 0.0128, effort=1)
    (tmp_path / "compact-x" / weights.JUDGE).symlink_to((ROOT / "compact-x" / "critic.safetensors").resolve())
    with pytest.raises(WeightsError, match=r"this is no judge: it has no .*; encode with --effort 0"):
        codec.encode(pixels, without, 0.0128, effort=1)
    assert codec.encode(pixels, without, 0.0128, effort=1, rho=0.0)


def test_the_api_takes_effort(shipped):
    picture = Image.fromarray(photograph(96))
    refined = cdcodec.encode(picture, 0.0128, effort=1, rho=0.3, model=shipped)
    assert refined == codec.encode(photograph(96), shipped, 0.0128, effort=1, rho=0.3)
    assert refined != cdcodec.encode(picture, 0.0128, model=shipped)
    assert replace(cdcodec.read_header(refined), symbol_check=0) == replace(
        cdcodec.read_header(cdcodec.encode(picture, 0.0128, model=shipped)), symbol_check=0
    )


def test_a_judge_is_put_beside_weights(tmp_path: Path, monkeypatch):
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    monkeypatch.setattr(judge_command, "load_lpips", lambda net, folder: network)
    refused = CliRunner().invoke(judge_command.main, [str(tmp_path)])
    assert (refused.exit_code, refused.output) == (1, f"Error: {tmp_path / weights.BASE} is missing\n")
    (tmp_path / weights.BASE).symlink_to((ROOT / "compact-x" / weights.BASE).resolve())
    assert CliRunner().invoke(judge_command.main, [str(tmp_path)]).output == f"{tmp_path / weights.JUDGE}\n"
    Judge(weights.read(tmp_path / weights.JUDGE)[1], CPU, torch.float32)
