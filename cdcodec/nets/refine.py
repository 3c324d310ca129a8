"""What `--effort` buys: y moved, step by step, to what this picture's bits and looks gain most from.

The encoder's networks give one answer for all pictures of a kind; a few steps of gradient descent on y itself find a
better one for this picture (Campos et al. 2019, arXiv 1906.01223; Yang et al. 2020, arXiv 2006.04240). The objective is
that of training: λ_eff·R + (1 − ρ/2)·2·D + ρ·0.7·LPIPS, R from the integers that code y, D and LPIPS of the light
head's picture at ρ. LPIPS is SqueezeNet's, seen as in training from all sides (Kettunen et al. 2019, arXiv 1906.03973).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cdcodec.config import ModelConfig
from cdcodec.nets.hyperprior import SCALE_MAX, SCALE_MIN
from cdcodec.nets.judge import SMALLEST, Judge
from cdcodec.nets.tiles import Box, Tiling

MSE_WEIGHT, LPIPS_WEIGHT = 2.0, 0.7
JUDGED_RATE = 0.06
RATE, RATE_POWER = 0.027, -0.22
LAST_RATE = 0.2
"""Adam's step in units of y's rounding is JUDGED_RATE where LPIPS judges, RATE·λ_eff^RATE_POWER where squared error
does alone, and falls linearly to LAST_RATE of that."""
JUDGED_ROUNDED, ROUNDED = 0.75, 0.5
"""How far y is rounded for the decoder here, with LPIPS and without: a step moves many elements that answer for the
same error, and wholly rounded they jump together, too far, or not at all."""
VIEWS = 6
"""From how many sides LPIPS looks at each step, every second time from twice as far away."""
SHIFTS = 4
TILE, MARGIN = 1024, 64
"""Larger pictures are decoded in tiles of this side in pixels, grown by a margin, for bounded memory."""

Coded = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y (1, C_y, h, w) → μ and the scale index of every element under which y would be coded, both like y."""
Decoded = Callable[[Tensor], Tensor]
"""ŷ (1, C_y, h, w), of a picture's part → the light head's picture (1, 3, 16h, 16w)."""


@dataclass(frozen=True)
class Refiner:
    """How one picture's y is coded and decoded, and who judges it. judge None: squared error alone."""

    config: ModelConfig
    coded: Coded
    decoded: Decoded
    judge: Judge | None
    lam: float
    rho: float

    def __call__(self, y: Tensor, picture: Tensor, steps: int) -> Tensor:
        """y (1, C_y, h, w), float32 with its gain, of a picture (1, 3, H, W) in [-1, 1] → y after so many steps."""
        y = y.clone().requires_grad_()
        rate = RATE * self.config.lambda_eff(self.lam) ** RATE_POWER if self.judge is None else JUDGED_RATE
        adam = torch.optim.Adam([y], lr=rate, betas=(0.8, 0.95))
        group, draw = adam.param_groups[0], random.Random(0)
        for step in range(steps):
            adam.zero_grad()
            if step % 2 == 0:  # they change slowly
                densities = self.coded(y.detach())
            self._descend(y, *densities, picture, draw)
            if step == 0:  # what hardly matters shall hardly move: Adam alone gives every element steps of one size
                assert y.grad is not None
                group["eps"] = max(y.grad.square().mean().sqrt().item(), 1e-12)
            group["lr"] = rate * (1 - (1 - LAST_RATE) * step / steps)
            adam.step()
        return y.detach()

    def _descend(self, y: Tensor, mean: Tensor, index: Tensor, picture: Tensor, draw: random.Random) -> None:
        """Adds the gradient of the objective to that of y, whose densities have these means and scale indices."""
        whole = Box(0, picture.shape[2], 0, picture.shape[3])
        pixels = whole.bottom * whole.right
        (self.config.lambda_eff(self.lam) / pixels * self._bits(y, mean, index)).backward()
        rounded = ROUNDED if self.judge is None else JUDGED_ROUNDED
        apart = rounded * (y.detach().sub(mean).round_().add_(mean) - y.detach())
        for box in Tiling.of((whole.bottom, whole.right), self.config, TILE).boxes:
            wide = box.grown(MARGIN, whole)
            latent = wide.of(y, whole) + wide.of(apart, whole)
            decoded, original = box.of(self.decoded(latent), wide), box.of(picture, whole)
            share = (box.bottom - box.top) * (box.right - box.left) / pixels
            loss = (1 - self.rho / 2) * MSE_WEIGHT * (decoded - original).square().mean()
            if self.judge is not None:
                seen, known = (continued(p.to(self.judge.dtype)) for p in (decoded, original))
                for pair in views(seen, known, draw):
                    loss = loss + self.rho * LPIPS_WEIGHT / VIEWS * self.judge.distance(*pair).mean()
            (share * loss).backward()

    def _bits(self, y: Tensor, mean: Tensor, index: Tensor) -> Tensor:
        """Of y as it stands, unrounded, under the densities that its tables were made of: 0-dim."""
        ratio = math.log(SCALE_MAX / SCALE_MIN)
        sigma, apart = SCALE_MIN * (index * (ratio / 255)).exp(), (y - mean).abs()
        likelihood = torch.zeros_like(y)
        for share, scale in zip(self.config.density_weights, self.config.density_scales, strict=True):
            spread = (scale * sigma).clamp(min=SCALE_MIN) * math.sqrt(2)
            likelihood = likelihood + share / 2 * (
                torch.erfc((apart - 0.5) / spread) - torch.erfc((apart + 0.5) / spread)
            )
        return -likelihood.clamp(min=1e-9).log2().sum()


def continued(picture: Tensor) -> Tensor:
    """(1, 3, H, W), its sides below SMALLEST + SHIFTS doubled by mirroring until they are not, for a judge to see."""
    for axis in (2, 3):
        while picture.shape[axis] < SMALLEST + SHIFTS:
            picture = torch.cat((picture, picture.flip(axis)), dim=axis)
    return picture


def views(picture: Tensor, original: Tensor, draw: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """VIEWS pairs of both (1, 3, H, W), moved by the same 0 to 3 pixels, mirrored, turned and with their colours
    exchanged at random; every second one at half the resolution, where that leaves enough."""
    both = torch.cat((picture, original))
    height, width = (side - SHIFTS + 1 for side in both.shape[2:])
    for number in range(VIEWS):
        down, right, colours = draw.randrange(SHIFTS), draw.randrange(SHIFTS), draw.sample(range(3), 3)
        mirrored = [axis for axis in (2, 3) if draw.random() < 0.5]
        moved = both[:, :, down : down + height, right : right + width]
        seen = torch.stack([moved[:, c] for c in colours], dim=1).flip(mirrored)
        if draw.random() < 0.5:
            seen = seen.mT
        if number % 2 and min(height, width) >= 2 * SMALLEST:
            seen = F.avg_pool2d(seen, 2, ceil_mode=True)  # at 254 × 254 oneDNN is eight times slower
        yield seen[:1], seen[1:]
