"""A fixed linear transform under the learned ones: before any training the codec already is one of cosine blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcodec.config import ModelConfig

OPPONENT = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
"""Rows: luma and two chroma axes, orthogonal, over R, G and B."""
SPREAD, CORNER, FALL, CHANNEL_SPREAD = 5.2, 0.5, 1.5, (1.0, 0.28, 0.13)
"""Standard deviation of a coefficient (u, v) of channel c: SPREAD·CHANNEL_SPREAD[c] / (CORNER + √(u² + v²))^FALL.

Fitted to 512 crops of the training photographs in [-1, 1] and blocks of 16²; within 18 % (luma, all frequencies).
"""


class BlockTransform(nn.Module):
    """The orthonormal two-dimensional DCT of stride² blocks over opponent colours, its C_y largest coefficients.

    `forward` gives them divided by the standard deviations they have in photographs, `inverse` undoes both.
    Nothing in it is learned or stored.
    """

    forward_kernel: Tensor
    inverse_kernel: Tensor
    spread: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.side = n = config.stride
        with torch.device("cpu"):  # known, not loaded: also where the rest is built without memory
            k = torch.arange(n, dtype=torch.float64)
            cosines = (math.pi * (2 * k + 1) * k[:, None] / (2 * n)).cos() * math.sqrt(2 / n)
            cosines[0] /= math.sqrt(2)
            colours = F.normalize(torch.tensor(OPPONENT, dtype=torch.float64), dim=1)
            basis = torch.einsum("cd,ui,vj->cuvdij", colours, cosines, cosines).reshape(3 * n * n, 3 * n * n)
            radius = torch.hypot(k[:, None], k)
            weights = torch.tensor(CHANNEL_SPREAD, dtype=torch.float64)[:, None, None]
            spread = (SPREAD * weights / (CORNER + radius) ** FALL).reshape(-1)
            order = spread.argsort(descending=True, stable=True)[: config.latent]
            basis, spread = basis[order], spread[order, None]
            kernels = {"forward_kernel": basis / spread, "inverse_kernel": (basis * spread).T}
        for name, value in {**kernels, "spread": spread.view(-1, 1, 1)}.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C_y, H/stride, W/stride), float32."""
        return F.conv2d(F.pixel_unshuffle(x.float(), self.side), self.forward_kernel[:, :, None, None])

    def inverse(self, latent: Tensor) -> Tensor:
        """(B, C_y, h, w) → (B, 3, stride·h, stride·w), float32: the transpose of the basis."""
        return F.pixel_shuffle(F.conv2d(latent, self.inverse_kernel[:, :, None, None]), self.side)
