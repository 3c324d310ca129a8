"""The blocks all networks are built of.

Precision is that of the input: a layer casts its float32 weights to the dtype of what it is given, so that one set of
master weights serves float32 and bfloat16 alike without autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose weights follow the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.weight.to(x.dtype), bias, self.stride, self.padding, self.dilation, self.groups)


class Linear(nn.Linear):
    """nn.Linear whose weights follow the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def conv3(c_in: int, c_out: int, stride: int = 1, zero: bool = False, side: int = 3) -> Conv2d:
    """A dense 3×3 (or side²) convolution, zero-padded to keep the size; `zero` starts it at zero output."""
    layer = Conv2d(c_in, c_out, side, stride, side // 2)
    if zero:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def norm(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels at each pixel: keeps the receptive field finite."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(x)·scale + shift, of which scale and shift are (B, C)."""
    if len(scale) == 1:  # layer_norm does it in its own pass
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), scale[0], shift[0]).permute(0, 3, 1, 2)
    return torch.addcmul(shift[:, :, None, None], norm(x), scale[:, :, None, None])


def silu(x: Tensor) -> Tensor:
    """SiLU; in the memory of x, which is the caller's own, where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y; in the memory of x, which is the caller's own, where no gradient needs it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class Upsample(nn.Module):
    """Twice the resolution: 1×1 convolution to four times the channels, then pixel-shuffle."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, 4 * c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Block(nn.Module):
    """Residual block, modulated by an embedding and optionally told a context.

        x ── norm ── ·(1 + scale) + shift ── SiLU ── conv 3×3 ── + ── SiLU ── conv 3×3 ── + ──
        │                    ↑                                   ↑                        │
        │                embedding                      1×1 conv of context               │
        └──────────────────────────────────────────────────────────────────────────────────┘

    Shapes: x (B, width, H, W), embedding (B, E) float32, context contribution (B, width, H, W).
    The first convolution over [x, context] is split: `contribute` may be computed once and used at every step.
    """

    def __init__(self, width: int, embedding: int, context: int = 0) -> None:
        super().__init__()
        self.modulation = Linear(embedding, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.conv1 = conv3(width, width)
        self.contribute = Conv2d(context, width, 1) if context else None
        self.conv2 = conv3(width, width, zero=True)

    def forward(self, x: Tensor, embedding: Tensor, contribution: Tensor | None = None) -> Tensor:
        scale, shift = self.modulation(embedding).to(x.dtype).chunk(2, dim=1)
        h = self.conv1(silu(modulated(x, 1 + scale, shift)))
        if contribution is not None:
            h = added(h, contribution)
        return added(self.conv2(silu(h)), x)


def fourier(u: Tensor, pairs: int) -> Tensor:
    """Sines and cosines of u (B,) in [-1, 1] at octave-spaced frequencies from a quarter period up: (B, 2·pairs)."""
    frequencies = (math.pi / 2) * 2.0 ** torch.arange(pairs, device=u.device, dtype=u.dtype)
    angles = u[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)
