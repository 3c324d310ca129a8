"""h_a and h_s: the content latent's own side information, in floats; `integer.py` holds the exact twin of h_s."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig
from cdcodec.nets.layers import conv3
from cdcodec.nets.transform import BlockTransform

SCALE_MIN, SCALE_MAX = 0.1, 256.0
"""Range of the Gaussian scales σ of y; the 256 coding tables are log-spaced over it."""


class HyperAnalysis(nn.Module):
    """h_a: y (B, C_y, h, w), with its gain → z (B, C_z, ⌈h/4⌉, ⌈w/4⌉), float32. Sees no λ."""

    scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.hyper_widths[0]
        self.register_buffer("scale", 0.25 / BlockTransform(config).spread, persistent=False)
        self.layers = nn.ModuleList(
            (conv3(config.latent, inner), conv3(inner, inner, stride=2), conv3(inner, config.hyper, stride=2))
        )

    def forward(self, y: Tensor) -> Tensor:
        h = self.layers[0](y * self.scale)
        for layer in self.layers[1:]:
            h = layer(F.leaky_relu(h, 0.1))
        return h


class HyperSynthesis(nn.Module):
    """h_s: ẑ (B, C_z, ⌈h/4⌉, ⌈w/4⌉) → log σ and μ of y, each (B, C_y, h, w), float32. Sees no λ.

    Two convolutions with pixel-shuffle and (leaky) ReLU, then one to [log σ, μ] or [σ, μ]: only operations that have an
    exact twin in integers. Rows and columns beyond (h, w) are cropped.
    """

    layers: Any  # of Conv2d, which nn.ModuleList cannot say

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a, b = config.hyper_widths
        self.slope, self.logarithmic = config.hyper_slope, config.hyper_scale == "log"
        self.layers = nn.ModuleList(
            (conv3(config.hyper, 4 * a), conv3(a, 4 * b), conv3(b, 2 * config.latent, side=config.hyper_kernel))
        )

    def forward(self, z: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        h = z
        for layer in self.layers[:-1]:
            h = F.leaky_relu(F.pixel_shuffle(layer(h), 2), self.slope)
        scale, mean = self.layers[-1](h)[:, :, : size[0], : size[1]].chunk(2, dim=1)
        log_scale = scale if self.logarithmic else scale.clamp(min=SCALE_MIN).log()
        return Bounded.apply(log_scale, math.log(SCALE_MIN), math.log(SCALE_MAX)), mean


class Bounded(torch.autograd.Function):
    """clamp(x, low, high) whose gradient still reaches what lies outside, where following it leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), (gradient,) = ctx.saved_tensors, ctx.bounds, gradients
        lost = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(lost, 0), None, None


def quantise(x: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """round(x - mean) + mean, with a straight-through gradient where one is asked for."""
    rounded = torch.round(x - mean) + mean
    return x + (rounded - x).detach() if x.requires_grad else rounded
