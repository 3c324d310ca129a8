"""The conditional denoiser, raw network only: what it is told and what its output means is decided in diffusion.py."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.layers import Block, Linear, Upsample, added, conv3, fourier, norm

NOISE_FEATURES = 6
LOG_SIGMA_RANGE = (-6.0, 3.0)
"""log σ is told to the network clamped to this range: outside of it more or less noise changes nothing."""


class UNet(nn.Module):
    """Picture-shaped input (B, 3, H, W) → picture-shaped output (B, 3, H, W) float32, given context and embedding.

        x ─ unshuffle 4 ─ conv ─ + ───────────────────────── + ─ blocks ─ norm ─ conv ─ shuffle 4 ─
        b ─ unshuffle 4 ─ conv ─ ┘ ↓2                        ↑2
                                   └─ blocks ───── + ─ blocks
                                        ↓2         ↑2
                                        └─ blocks ─┘            every block is told the context of its resolution

    `contributions` (what it takes from the base reconstruction b and from the context pyramid) and the embedding do
    not depend on x: compute the first once per picture, the second once per step.
    """

    stem: Any  # whose bias is there
    down_blocks: Any  # lists of lists of Block, which nn.ModuleList cannot say
    up_blocks: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, context, e = config.unet_widths, config.analysis_widths, config.embedding
        self.unshuffle = config.unshuffle
        self.embed_in = Linear(2 * NOISE_FEATURES + config.condition + 1, e)
        self.embed_out = Linear(e, e)
        self.stem = conv3(3 * self.unshuffle**2, widths[0])
        self.base = conv3(3 * self.unshuffle**2, widths[0])
        depth = range(config.unet_depth)
        levels = list(zip(widths, context, strict=True))
        self.down_blocks = nn.ModuleList(nn.ModuleList(Block(w, e, c) for _ in depth) for w, c in levels[1:])
        self.downs = nn.ModuleList(conv3(a, b, stride=2) for a, b in pairwise(widths))
        self.up_blocks = nn.ModuleList(nn.ModuleList(Block(w, e, c) for _ in depth) for w, c in levels[:-1])
        self.ups = nn.ModuleList(Upsample(b, a) for a, b in pairwise(widths))
        self.head = conv3(widths[0], 3 * self.unshuffle**2, zero=True)

    def embed(self, sigma: Tensor, condition: Tensor, rho: Tensor) -> Tensor:
        """σ (B,) > 0 or inf, λ's vector (B, K), ρ (B,) → embedding (B, E) float32."""
        low, high = LOG_SIGMA_RANGE
        u = (sigma.clamp(math.exp(low), math.exp(high)).log() - low) / (high - low) * 2 - 1
        features = torch.cat((fourier(u, NOISE_FEATURES), condition, rho[:, None]), dim=1)
        return F.silu(self.embed_out(F.silu(self.embed_in(features))))

    def contributions(self, pyramid: list[Tensor], base: Tensor) -> list[list[Tensor]]:
        """Of the base (B, 3, H, W) to the stem, then per level of the context to the blocks down and up.

        Each (B, width, H_i, W_i) in the pyramid's dtype.
        """
        told = [
            [block.contribute(level) for block in (*down, *up)]
            for down, up, level in zip([(), *self.down_blocks], [*self.up_blocks, ()], pyramid, strict=True)
        ]
        return [[self.base(self._unshuffled(base, pyramid[0].dtype))], *told]

    def _unshuffled(self, picture: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, 3, H, W) as channels of a quarter of the resolution, laid out as the convolutions are fastest."""
        return F.pixel_unshuffle(picture.to(dtype).contiguous(memory_format=torch.channels_last), self.unshuffle)

    def forward(self, x: Tensor | None, embedding: Tensor, contributions: list[list[Tensor]]) -> Tensor:
        """x None stands for zeros, of which the stem makes its bias."""
        (base,), *told = contributions
        if x is None:
            h = base + self.stem.bias.to(base.dtype)[:, None, None]
        else:
            h = added(self.stem(self._unshuffled(x, base.dtype)), base)
        skips: list[Tensor] = []
        for down, blocks, parts in zip(self.downs, self.down_blocks, told[1:], strict=True):
            skips.append(h)
            h = down(h)
            for block, part in zip(blocks, parts, strict=False):
                h = block(h, embedding, part)
        for up, blocks, parts in reversed(list(zip(self.ups, self.up_blocks, told[:-1], strict=True))):
            h = added(up(h), skips.pop())
            for block, part in zip(blocks, parts[-len(blocks) :], strict=True):
                h = block(h, embedding, part)
        return F.pixel_shuffle(self.head(norm(h)), self.unshuffle).float()
