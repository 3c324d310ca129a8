"""Schedules, conversions, preconditioning and sampler, each against what can be said of it without a network."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cdcodec.nets import diffusion


@pytest.mark.parametrize("kind", ["x", "eps", "v"])
def test_conversions_are_mutual_inverses(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 2, 3, 4, 4, generator=generator).double()
    a = torch.tensor([0.3, 0.97]).double()[:, None, None, None]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    prediction = diffusion.from_x(x_0, kind, x_t, a)
    expected = {"x": x_0, "eps": eps, "v": a.sqrt() * eps - (1 - a).sqrt() * x_0}[kind]
    assert torch.allclose(prediction, expected, atol=1e-12)
    assert torch.allclose(diffusion.to_x(prediction, kind, x_t, a), x_0, atol=1e-12)


def test_unknown_parametrisations_are_refused() -> None:
    x = torch.zeros(1)
    for convert in (diffusion.to_x, diffusion.from_x):
        with pytest.raises(ValueError, match="x, eps or v"):
            convert(x, "w", x, x)


def test_sigma_and_alpha_bar_say_the_same() -> None:
    a = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(diffusion.alpha_bar_of_sigma(diffusion.sigma_of_alpha_bar(a)), a)
    assert diffusion.sigma_of_alpha_bar(a[:1]) == math.inf


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 65])
def test_the_grid_starts_without_signal_and_falls_through_the_noise_levels_that_matter(steps: int) -> None:
    grid = diffusion.sigma_grid(steps)
    assert len(grid) == steps
    assert grid[0] == 0
    assert all(a < b for a, b in pairwise(grid))
    if steps > 2:
        sigmas = [math.sqrt((1 - a) / a) for a in (grid[1], grid[-1])]
        assert sigmas == pytest.approx([diffusion.SIGMA_RANGE[1], diffusion.SIGMA_RANGE[0]])


def test_an_analytic_gaussian_denoiser_lands_on_the_posterior_path() -> None:
    """x_0 ~ N(m, s²): from x_N = γ·ε the exact flow ends at m + γ·s·ε (probability-flow ODE, linear in ε)."""
    mean, s, gamma = 0.3, 0.1, 1.0
    eps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def denoise(x_t: torch.Tensor, alpha_bar: float) -> torch.Tensor:
        gain = s**2 * math.sqrt(alpha_bar) / (s**2 * alpha_bar + 1 - alpha_bar)
        return mean + gain * (x_t - math.sqrt(alpha_bar) * mean)

    fine = [0.0] + [1 / (1 + math.exp(2 * v)) for v in torch.linspace(6, -9, 3000).tolist()]
    landed = diffusion.ddim(denoise, gamma * eps, fine)
    assert torch.allclose(landed, mean + gamma * s * eps, atol=2e-3)
    still = diffusion.ddim(denoise, 0 * eps, diffusion.sigma_grid(17))
    assert torch.allclose(still, torch.full_like(eps, mean), atol=1e-12)


def test_one_step_is_the_prediction_and_the_callback_sees_every_step() -> None:
    seen = []
    start = torch.ones(1, 3, 2, 2)
    grid = diffusion.sigma_grid(1)
    result = diffusion.ddim(lambda x, a: x * 3 + a, start, grid, lambda i, x: seen.append((i, x.clone())))
    assert torch.equal(result, start * 3)
    assert seen[0][0] == 0
    assert torch.equal(seen[0][1], result)
    seen.clear()
    diffusion.ddim(lambda x, a: x, start, diffusion.sigma_grid(5), lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]


def test_preconditioning_is_the_best_linear_estimate_at_unit_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(1, 3, 64, 64, generator=generator).double()
    variance = torch.tensor(0.02, dtype=torch.float64)
    x_0 = base + variance.sqrt() * torch.randn(1, 3, 64, 64, generator=generator).double()
    eps = torch.randn(1, 3, 64, 64, generator=generator).double()
    for sigma in (0.01, 0.1, 1.0, 30.0):
        a = torch.tensor(1 / (1 + sigma**2), dtype=torch.float64)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        state = diffusion.Preconditioned.of(x_t, base, variance, a)
        assert state.input.var().item() == pytest.approx(1, abs=0.05)
        k = 0.02 / (0.02 + sigma**2)
        assert torch.allclose(state.x_0(torch.zeros(())), base + k * (x_t / a.sqrt() - base), atol=1e-9)
        left = (x_0 - state.skip) / state.out
        assert left.var().item() == pytest.approx(1, abs=0.05), "what is left to predict has unit variance"


def test_preconditioning_is_finite_where_decoding_starts_and_ends() -> None:
    base, variance = torch.zeros(1, 3, 2, 2), torch.tensor(0.01)
    for a in (0.0, 1.0):
        state = diffusion.Preconditioned.of(torch.ones(1, 3, 2, 2), base, variance, torch.tensor(a))
        assert torch.isfinite(state.x_0(torch.ones(1))).all()
