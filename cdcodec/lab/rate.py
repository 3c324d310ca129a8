"""The continuous rate of a latent, by CompressAI's entropy models (the only module that imports compressai).

float32 throughout. "The model's estimate" of a rate always means this: -log2 of a likelihood under a continuous
density convolved with a unit box, Ballé et al. 2018 (arXiv 1802.01436), with the means of Minnen et al. 2018.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.hyperprior import SCALE_MIN, HyperSynthesis
from cdcodec.symbols import Symbols

with warnings.catch_warnings():  # compressai 1.2 still uses torch.jit.script, which newer versions of torch deprecate
    warnings.simplefilter("ignore", FutureWarning)
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional


class RateModel(nn.Module):
    """Bits of z under a learned factorised density and of y under N(μ, σ²), or the configuration's mixture of such;
    medians of z are zero by construction.

    Likelihoods are bounded from below at 1e-9, by CompressAI's bound whose gradient still reaches what lies under it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bottleneck = EntropyBottleneck(config.hyper)
        self.bottleneck.quantiles.requires_grad_(False)
        self.gaussian = GaussianConditional(None, scale_bound=SCALE_MIN)
        self.mixture = list(zip(config.density_weights, config.density_scales, strict=True))

    def bits_z(self, z: Tensor) -> Tensor:
        """z (B, C_z, h, w) with noise or rounded → bits (B,). CompressAI's own forward permutes by a tensor, which
        breaks graph capture; this goes straight to its likelihood."""
        batch, channels = z.shape[:2]
        values = z.permute(1, 0, 2, 3).reshape(channels, 1, -1)
        likelihood, _, _ = self.bottleneck._likelihood(values)
        bits = -self.bottleneck.likelihood_lower_bound(likelihood).log2()
        return bits.reshape(channels, batch, -1).sum(dim=(0, 2))

    def bits_y(self, y: Tensor, log_scale: Tensor, mean: Tensor) -> Tensor:
        """y (B, C_y, h, w) with noise or rounded, log σ and μ likewise → bits (B,)."""
        sigma = log_scale.exp()
        likelihood = torch.zeros_like(y)
        for share, scale in self.mixture:
            likelihood = likelihood + share * self.gaussian._likelihood(y, scale * sigma, mean)
        return -self.gaussian.likelihood_lower_bound(likelihood).log2().sum(dim=(1, 2, 3))

    @torch.no_grad()
    def pmf_z(self, limit: int = 4096, tail: float = 1e-7) -> list[tuple[int, Tensor]]:
        """Per channel (first value, float64 probabilities) of the integers within ±limit, less tails of mass `tail`."""
        bottleneck = self.bottleneck.double()
        values = torch.arange(-limit, limit + 1, dtype=torch.float64).repeat(bottleneck.channels, 1, 1)
        _, lower, upper = bottleneck._likelihood(values)
        bottleneck.float()
        # Differences of sigmoids are taken on the side where they do not cancel.
        sign = -torch.sign(lower + upper)
        pmf = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()[:, 0]
        rows = []
        for row in pmf:
            total = row.cumsum(0)
            first = int((total < tail / 2).sum())
            last = int((total < total[-1] - tail / 2).sum())
            rows.append((first - limit, row[first : last + 1]))
        return rows


@torch.no_grad()
def estimate_bits(floats: dict[str, Tensor], config: ModelConfig, symbols: Symbols) -> float:
    """The model's estimate for a coded picture: continuous likelihoods of its ẑ and ŷ, by the float hyper-synthesis.

    floats: as `weights.load_tensors` gives them. Real bytes differ from it by the tables' and the integers' rounding.
    """
    rate, synthesis = RateModel(config), HyperSynthesis(config)
    rate.load_state_dict({**rate.state_dict(), **_part(floats, "rate.")})
    synthesis.load_state_dict(_part(floats, "hyper_synthesis."))
    z = torch.from_numpy(symbols.z)[None].float()
    y = torch.from_numpy(symbols.latent(config.fraction_bits))[None].float() / 2.0**config.fraction_bits
    log_scale, mean = synthesis(z, y)
    return (rate.bits_z(z) + rate.bits_y(y, log_scale, mean)).item()


def _part(floats: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.float() for name, value in floats.items() if name.startswith(prefix)}
