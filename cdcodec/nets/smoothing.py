"""The bilateral filter behind the light head: what block transforms ring around edges, and the head's 4 × 4 grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.nets.layers import Linear

HALF = (
    *((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (2, 1), (1, -2), (2, -1)),
    *((0, 4), (4, 0), (3, 3), (3, -3)),
)
"""Rows and columns to the pixels that are mixed in, and as far the other way."""
RADIUS = max(max(abs(down), abs(right)) for down, right in HALF)
COLOURS = ((0.299, 0.587, 0.114), (0.27, -0.226, -0.044), (-0.115, -0.226, 0.341))
"""Axes of luma, and of red and blue less luma at 0.385 of their size, over R, G and B: how colours are told apart."""
SHARPNESS = 8.6
"""1/(σ_r·√2) at which training begins, pixels in [-1, 1]: σ_r of about 10 grey levels of 255."""


class Smoothing(nn.Module):
    """b'(p) = Σ w(p, q)·b(q) / Σ w(p, q), w = exp(a(q − p) − ‖k·C·(b(q) − b(p))‖²), over p and 28 pixels around it.

    A bilateral filter (Tomasi and Manduchi 1998) whose weights by place a, colour axes C and strictness k are learned;
    log k is linear in λ's condition, with a part that grows with ρ. In: b (B, 3, H, W) float32, H and W above 4,
    condition (B, K), ρ (B,). Out: b' like b.
    """

    def __init__(self, condition: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([-(down**2 + right**2) / 18 for down, right in HALF]))
        self.colours = nn.Parameter(SHARPNESS * torch.tensor(COLOURS))
        self.strictness = Linear(condition, 2)
        nn.init.zeros_(self.strictness.weight)
        nn.init.zeros_(self.strictness.bias)

    def forward(self, b: Tensor, condition: Tensor, rho: Tensor) -> Tensor:
        height, width = b.shape[2:]
        wide = F.pad(b.contiguous(), (RADIUS,) * 4, mode="reflect")
        plain, more = self.strictness(condition).unbind(1)
        guide = F.conv2d(wide, self.colours[:, :, None, None]) * (plain + rho * more).exp()[:, None, None, None]

        def cut(picture: Tensor, top: int, left: int) -> Tensor:
            return picture[..., top : top + height, left : left + width]

        total, weights = b, torch.ones_like(b[:, :1])
        for place, (down, right) in zip(self.place, HALF, strict=True):
            # The weight between p and p + (down, right) is that between the latter and p: it is computed once.
            first, last = max(-right, 0), wide.shape[3] - max(right, 0)
            apart = guide[..., down:, first + right : last + right] - guide[..., : wide.shape[2] - down, first:last]
            weight = (place - apart.square().sum(dim=1, keepdim=True)).exp()
            for sign, top, left in ((1, RADIUS, RADIUS), (-1, RADIUS - down, RADIUS - right)):
                share = cut(weight, top, left - first)
                moved = cut(wide, RADIUS + sign * down, RADIUS + sign * right)
                total, weights = torch.addcmul(total, share, moved), weights + share
        return total / weights
