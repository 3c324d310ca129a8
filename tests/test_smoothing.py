"""The bilateral filter behind the light head."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cdcodec.config import PRESETS
from cdcodec.errors import TrainingError
from cdcodec.lab.recipe import parse_recipe
from cdcodec.nets.networks import Networks
from cdcodec.nets.smoothing import COLOURS, HALF, RADIUS, SHARPNESS, Mixture, Smoothing


def step_edge(noise: float) -> tuple[Tensor, Tensor]:
    """A dark and a bright half, clean and with noise, (1, 3, 48, 48)."""
    clean = torch.full((1, 3, 48, 48), -0.6)
    clean[..., 24:] = 0.6
    random = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, 48, 48)).astype(np.float32))
    return clean, clean + noise * random


def test_it_is_the_mean_weighted_by_place_and_colour() -> None:
    filtering = Smoothing(4)
    torch.manual_seed(0)
    torch.nn.init.normal_(filtering.strictness.weight)
    b, condition, rho = 0.1 * torch.randn(2, 3, 9, 12), torch.randn(2, 4), torch.tensor([0.0, 0.9])
    given = np.pad(b.double().numpy(), ((0, 0), (0, 0), (RADIUS,) * 2, (RADIUS,) * 2), mode="reflect")
    plain, more = (condition @ filtering.strictness.weight.T).double().detach().numpy().T
    strict = np.exp(plain + rho.double().numpy() * more)
    expected = np.zeros(b.shape)
    for n, row, column in np.ndindex(2, 9, 12):
        centre, total, weights = given[n, :, row + RADIUS, column + RADIUS], 0.0, 0.0
        for down, right in ((0, 0), *HALF, *((-y, -x) for y, x in HALF)):
            q = given[n, :, row + RADIUS + down, column + RADIUS + right]
            apart = strict[n] * SHARPNESS * np.array(COLOURS) @ (q - centre)
            weight = math.exp(-(down**2 + right**2) / 18 - apart @ apart)
            total, weights = total + weight * q, weights + weight
        expected[n, :, row, column] = total / weights
    with torch.inference_mode():
        assert np.allclose(filtering(b, condition, rho).numpy(), expected, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    picture, guide = (torch.randn(2, 3, 11, 13, dtype=torch.float64, requires_grad=True) for _ in range(2))
    place = torch.randn(len(HALF), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Mixture.apply, (picture, 0.5 * guide, place))


def test_noise_goes_and_the_edge_stays() -> None:
    clean, noisy = step_edge(0.03)
    with torch.inference_mode():
        smooth = Smoothing(4)(noisy, torch.zeros(1, 4), torch.zeros(1))
    assert (smooth - clean).square().mean() < (noisy - clean).square().mean() / 4
    edge = slice(22, 26)
    assert (smooth - clean)[..., edge].abs().max() < 0.1


def test_a_strict_filter_leaves_the_picture_alone() -> None:
    filtering = Smoothing(1)
    torch.nn.init.constant_(filtering.strictness.weight, 8.0)
    _, noisy = step_edge(0.1)
    with torch.inference_mode():
        loose, strict = (filtering(noisy, torch.tensor([[told]]), torch.zeros(1)) for told in (0.0, 1.0))
    assert (strict - noisy).abs().max() < 0.02 < (loose - noisy).abs().max()


def test_only_presets_that_say_so_have_it_and_it_learns() -> None:
    config = replace(PRESETS["tiny-x"], smoothing=True)
    assert not any("smoothing" in name for name in Networks(PRESETS["tiny-x"]).state_dict())
    networks = Networks(config)
    y, condition = torch.randn(1, config.latent, 2, 2), torch.randn(1, config.condition)
    networks.synthesis(y, condition, torch.tensor([0.9]), torch.float32)[1].square().mean().backward()
    grown = {name: p.grad for name, p in networks.synthesis.smoothing.named_parameters()}
    assert grown.keys() == {"place", "colours", "strictness.weight", "strictness.bias"}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grown.values())


def test_a_recipe_trains_it_alone_only_where_there_is_one() -> None:
    phases = {"phase": [{"kind": "smoothing", "steps": 1}]}
    assert parse_recipe({"preset": "compact-x", **phases}, "here").phases[0].kind == "smoothing"
    with pytest.raises(TrainingError, match="here: tiny-x has no filter"):
        parse_recipe({"preset": "tiny-x", **phases}, "here")
