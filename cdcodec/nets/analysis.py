"""g_a and g_c: image to content latent y, and decoded ŷ to the context pyramid with its light RGB head."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.layers import Block, Linear, Upsample, conv3, fourier, norm
from cdcodec.nets.smoothing import Smoothing
from cdcodec.nets.transform import BlockTransform


class Ladder(nn.Module):
    """What depends on λ alone: one row per rung, interpolated in log λ between two of them.

    condition (R, K): vectors that stand for λ in every network but the hyper-networks.
    log_gain, log_inverse_gain (R, C_y): y·exp(log_gain) is quantised, ŷ·exp(log_inverse_gain) is decoded.
    log_variance (R,): log of s², the error variance of the light head's picture, for the denoiser's preconditioning.
    """

    log_lambda: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        log_lambda = torch.tensor([math.log(rung) for rung in config.ladder], dtype=torch.float32)
        self.register_buffer("log_lambda", log_lambda)
        middle, half = (log_lambda[0] + log_lambda[-1]) / 2, (log_lambda[-1] - log_lambda[0]).clamp(min=1e-6) / 2
        self.condition = nn.Parameter(fourier((log_lambda - middle) / half, config.condition // 2))
        log_gain = torch.zeros(len(log_lambda), config.latent)
        if config.blocks == "compact":
            # The best step of a quantiser grows with √λ_eff, at first λ_eff = a·λ^1.3, and is the same for all
            # coefficients of an orthonormal transform.
            spread = BlockTransform(config).spread.log()[:, 0, 0].to(log_gain)
            log_gain += -0.3 - 0.65 * (log_lambda - middle)[:, None] + spread
        self.log_gain = nn.Parameter(log_gain)
        self.log_inverse_gain = nn.Parameter(-log_gain)
        self.log_variance = nn.Parameter(torch.full((len(log_lambda),), math.log(0.01)))

    def weights(self, lam: Tensor) -> Tensor:
        """Interpolation weights (B, R) of λ (B,): two neighbours in log λ, clamped to the ends of the ladder."""
        knots = self.log_lambda
        if len(knots) == 1:
            return torch.ones(len(lam), 1, device=knots.device)
        x = lam.to(knots.dtype).log().clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
        share = ((x - knots[right - 1]) / (knots[right] - knots[right - 1]))[:, None]
        rows = torch.arange(len(knots), device=knots.device)
        return (rows == right[:, None]) * share + (rows == right[:, None] - 1) * (1 - share)


class Analysis(nn.Module):
    """g_a(x; λ, ρ): picture (B, 3, H, W) float32 in [-1, 1] → y (B, C_y, H/16, W/16) float32, before the gain.

        x ─┬─ unshuffle 4 ─ conv ─ blocks ─ ↓2 ─ blocks ─ ↓2 ─ blocks ─ norm ─ conv ─ + ─ y
           └────────────────────────── cosine transform ─────────────────────────────┘

    condition (B, K), ρ (B,): at which ρ y shall decode best; it decodes at any.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.analysis_widths
        self.unshuffle = config.unshuffle
        self.embed = Linear(config.condition, config.embedding)
        self.embed_rho = Linear(1, config.embedding, bias=False)
        nn.init.zeros_(self.embed_rho.weight)
        self.stem = conv3(3 * config.unshuffle**2, widths[0])
        self.levels = nn.ModuleList(_blocks(width, config) for width in widths)
        self.downs = nn.ModuleList(conv3(a, b, stride=2) for a, b in pairwise(widths))
        self.out = conv3(widths[-1], config.latent, zero=True)
        self.transform = BlockTransform(config)

    def forward(self, x: Tensor, condition: Tensor, rho: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = F.silu(self.embed(condition) + self.embed_rho(rho[:, None]))
        h = self.stem(F.pixel_unshuffle(x.to(dtype), self.unshuffle))
        for i, blocks in enumerate(self.levels):
            if i:
                h = self.downs[i - 1](h)
            for block in blocks.children():
                h = block(h, embedding)
        y: Tensor = self.transform(x) + self.out(norm(h.float()))
        return y


class Synthesis(nn.Module):
    """g_c(ŷ; λ, ρ): decoded latent → context pyramid, finest first, and the light head's picture b.

        ŷ ─┬─ conv ─ blocks ─ ↑2 ─ blocks ─ ↑2 ─ blocks ─ norm ─ conv + ρ·conv ─ shuffle 4 ─ + ─ smoothing ─ b
           └─────────────────────────── inverse cosine transform ──────────────────────────┘

    In: ŷ (B, C_y, h, w) float32 behind the inverse gain, condition (B, K), ρ (B,). Out: normed (B, C_i, 4h, 4w),
    (…, 2h, 2w), (…, h, w) in `dtype`, and b (B, 3, 16h, 16w) float32, the base reconstruction that `--steps 0` shows.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.analysis_widths
        self.embed = Linear(config.condition, config.embedding)
        self.embed_rho = Linear(1, config.embedding, bias=False)
        nn.init.zeros_(self.embed_rho.weight)
        self.stem = conv3(config.latent, widths[-1])
        self.levels = nn.ModuleList(_blocks(width, config) for width in widths)
        self.ups = nn.ModuleList(Upsample(b, a) for a, b in pairwise(widths))
        self.head = conv3(widths[0], 3 * config.unshuffle**2, zero=True)
        self.realism = conv3(widths[0], 3 * config.unshuffle**2, zero=True)
        self.unshuffle = config.unshuffle
        self.transform = BlockTransform(config)
        self.smoothing = Smoothing(config.condition) if config.smoothing else None

    def forward(
        self, latent: Tensor, condition: Tensor, rho: Tensor, dtype: torch.dtype
    ) -> tuple[list[Tensor], Tensor]:
        embedding = F.silu(self.embed(condition) + self.embed_rho(rho[:, None]))
        h = self.stem(latent.to(dtype))
        pyramid: list[Tensor] = []
        for i in reversed(range(len(self.levels))):
            for block in self.levels[i].children():
                h = block(h, embedding)
            # The levels are residual streams of very different sizes: unnormed, the finest would drown all else.
            pyramid.insert(0, norm(h))
            if i:
                h = self.ups[i - 1](h)
        added = self._head(pyramid[0], rho)
        base = self.transform.inverse(latent) + F.pixel_shuffle(added, self.unshuffle).float()
        return pyramid, base if self.smoothing is None else self.smoothing(base, condition, rho)

    def _head(self, h: Tensor, rho: Tensor) -> Tensor:
        """head(h) + ρ·realism(h); for one picture their kernels are joined first."""
        if len(rho) > 1:
            return self.head(h) + rho[:, None, None, None].to(h.dtype) * self.realism(h)
        weight, bias = (a + rho * b for a, b in zip(self.head.parameters(), self.realism.parameters(), strict=True))
        return F.conv2d(h, weight.to(h.dtype), bias.to(h.dtype), padding=1)


def _blocks(width: int, config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(Block(width, config.embedding) for _ in range(config.analysis_depth))

