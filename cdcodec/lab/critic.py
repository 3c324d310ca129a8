"""A second judge in training, beside LPIPS: a patch discriminator (Isola et al. 2017, arXiv 1611.07004) that learns to
tell decoded pictures from originals. Exported beside the weights it judged, for trainings that go on from them.

LPIPS on one network is in part satisfied by patterns that no other network, nor the eye, takes for the original's. What
the decoder gets used to, a judge that learns along finds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.weights import read

CRITIC = "critic.safetensors"
WARMUP = 100.0
"""Steps over which the critic gets its say, while it learns what there is to see."""
SLOPE = 0.2


class Critic(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] → how much like an original each place looks, (B, 1, H/8, W/8).

    At half resolution, each place sees about 70 pixels. Computes in the pictures' dtype.
    """

    layers: Any  # of Conv2d, which nn.ModuleList cannot say
    age: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (
                nn.Conv2d(12, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1),
                nn.Conv2d(4 * width, 1, 3, padding=1),
            )
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.layers[-1].weight.mul_(0.1)
        self.register_buffer("age", torch.zeros(()))

    def forward(self, pictures: Tensor, *, frozen: bool = False) -> Tensor:
        """frozen: without a gradient for the critic itself."""
        height, width = (side // 4 * 4 for side in pictures.shape[2:])
        h = F.pixel_unshuffle(pictures[:, :, :height, :width], 2).contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.layers):
            weight, bias = (p.detach() if frozen else p for p in (layer.weight, layer.bias))
            h = F.leaky_relu(h, SLOPE) if i else h
            h = F.conv2d(h, weight.to(h.dtype), bias.to(h.dtype), layer.stride, layer.padding)
        return h.float()

    def losses(self, decoded: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder, and what the critic is to minimise, 0-dim: each of a decoded picture against its original
        (relativistic: Jolicoeur-Martineau 2019, arXiv 1807.00734), each with no gradient for the other."""
        real = self(originals)
        own = F.softplus(self(decoded.detach()) - real).mean()
        return F.softplus(real.detach() - self(decoded, frozen=True)).mean(), own

    @property
    def say(self) -> Tensor:
        """0-dim, rising from 0 to 1 over the first steps."""
        return (self.age / WARMUP).clamp(max=1.0)


def beside(folder: Path) -> dict[str, Tensor]:
    """The tensors, under critic., of the critic that judged the weights in a folder; none where there is none. Raises
    WeightsError."""
    path = folder / CRITIC
    return {f"critic.{name}": value for name, value in read(path)[1].items()} if path.exists() else {}


class Shared(torch.autograd.Function):
    """A picture (B, C, H, W), handed to two judges. The second's gradient is scaled, sample by sample, to `share`
    (0-dim) of the first's norm, whatever loss it comes from (as Esser et al. 2021, arXiv 2012.09841, eq. 7)."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(share)
        return picture.view_as(picture), picture.view_as(picture)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (share,) = ctx.saved_tensors
        first, second = (g.float() for g in gradients)
        norms = [g.flatten(1).norm(dim=1).clamp(min=1e-12) for g in (first, second)]
        scale = share * norms[0] / norms[1]
        return (first + scale[:, None, None, None] * second).to(gradients[0].dtype), None
