"""Three rates side by side: with noise as in training, of the rounded latent, and of the real bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cdcodec.bits import coder
from cdcodec.bits.tables import SCALES, gaussian_tables, ideal_bits
from cdcodec.config import PRESETS
from cdcodec.lab.rate import RateModel, estimate_bits
from cdcodec.weights import Checkpoint, load_model, load_tensors

CONFIG = PRESETS["tiny-x"]


@pytest.fixture(scope="module")
def rate() -> RateModel:
    torch.manual_seed(0)
    return RateModel(CONFIG).requires_grad_(False)


def test_a_wide_gaussian_costs_its_entropy_and_heavy_tails_are_cheaper_as_a_mixture(rate: RateModel) -> None:
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor(12.0)
    plain = RateModel(dataclasses.replace(CONFIG, density_weights=(1.0,), density_scales=(1.0,)))

    def bits(model: RateModel, y: torch.Tensor) -> float:
        return model.bits_y(y.round(), sigma.log().expand_as(y), torch.zeros_like(y)).item() / y.numel()

    y = sigma * torch.randn(1, CONFIG.latent, 64, 64, generator=generator)
    assert bits(plain, y) == pytest.approx(0.5 * np.log2(2 * np.pi * np.e * 12**2), rel=0.005)
    assert bits(plain, y) < bits(rate, y)
    wide = torch.rand(y.shape, generator=generator) < CONFIG.density_weights[1]
    heavy = y * torch.where(wide, *(torch.tensor(scale) for scale in reversed(CONFIG.density_scales)))
    assert bits(rate, heavy) < 0.995 * bits(plain, heavy)


def test_noise_stands_for_rounding_and_the_wrong_scale_costs_more_than_the_right_one(rate: RateModel) -> None:
    generator = torch.Generator().manual_seed(2)
    for sigma in (0.5, 1.0, 5.0):
        y = sigma * torch.randn(1, CONFIG.latent, 96, 96, generator=generator)
        log_scale, zero = torch.full_like(y, np.log(sigma)), torch.zeros_like(y)
        noisy = rate.bits_y(y + torch.rand(y.shape, generator=generator) - 0.5, log_scale, zero)
        rounded = rate.bits_y(y.round(), log_scale, zero)
        assert noisy.item() == pytest.approx(rounded.item(), rel=0.02)
        assert rate.bits_y(y.round(), log_scale + 0.5, zero) > rounded


def test_the_tables_of_z_are_its_density(rate: RateModel) -> None:
    rows = rate.pmf_z()
    assert len(rows) == CONFIG.hyper
    first, pmf = rows[0]
    assert pmf.sum().item() == pytest.approx(1, abs=1e-6)
    z = torch.zeros(1, CONFIG.hyper, 1, 1) + 2
    expected = -sum(torch.log2(pmf[2 - first]).item() for first, pmf in rows)
    assert rate.bits_z(z).item() == pytest.approx(expected, rel=1e-4)
    assert first < 0 < first + len(pmf)


def test_real_bytes_stay_close_to_tables_and_estimate(tiny: Checkpoint, tiny_weights: Path) -> None:
    """A latent that is what the model believes, so that no estimate is cut off at the least likelihood."""
    from skimage import data

    floats, _, config = load_tensors(tiny_weights)
    given = tiny.model.analyse(data.astronaut()[:384, :512], 0.0048)
    random = np.random.default_rng(0)

    def believed(places: NDArray[np.int64], index: NDArray[np.uint8], mean: NDArray[np.int32]) -> NDArray[np.int32]:
        return (random.standard_normal(len(places)) * SCALES[index]).round().astype(np.int32)

    symbols = tiny.model.integer(given.z, given.y.shape[1:], believed)
    z_rows = np.broadcast_to(np.arange(config.hyper)[:, None, None], symbols.z.shape)
    ideal = ideal_bits(symbols.y, symbols.index, tiny.tables.y) + ideal_bits(symbols.z, z_rows, tiny.tables.z)
    real = 8 * len(coder.write(symbols, tiny.tables))
    estimate = estimate_bits(floats, config, symbols)
    assert ideal <= real <= 1.0005 * ideal + 64
    assert abs(real - estimate) <= 0.002 * estimate + 256


def test_the_shipped_weights_code_within_two_thousandths_of_their_estimate() -> None:
    """Their tables were made for their own density, and their integers are the twins of their floats."""
    from skimage import data

    root = Path(__file__).parents[1] / "weights"
    floats, integers, config = load_tensors(root)
    expected = gaussian_tables(config.density_weights, config.density_scales)
    assert np.array_equal(integers["tables.y.counts"].numpy(), expected.packed())
    model = load_model(root, device="cpu")
    for lam in (0.0032, 0.0512):
        symbols = model.model.analyse(np.ascontiguousarray(data.astronaut()[:256, :384]), lam)
        real = 8 * len(coder.write(symbols, model.tables))
        assert real <= 1.002 * estimate_bits(floats, config, symbols) + 256
