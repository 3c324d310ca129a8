"""The bilateral filter behind the light head: what block transforms ring around edges, and the head's 4 × 4 grid."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

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

EVERY = slice(None)
INNER = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
Place = tuple[slice, slice, slice, slice]


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
        wide = F.pad(b.contiguous(), (RADIUS,) * 4, mode="reflect")
        plain, more = self.strictness(condition).unbind(1)
        told = (self.colours @ wide.flatten(2)).view_as(wide)  # by a convolution it takes fifty times as long on a CPU
        guide = told * (plain + rho * more).exp()[:, None, None, None]
        mixed: Tensor = Mixture.apply(wide, guide, self.place)
        return mixed


class Mixture(torch.autograd.Function):
    """Σ w·b / Σ w of a picture and its guide k·C·b, both (B, 3, H + 8, W + 8), and a (14,): (B, 3, H, W).

    With a gradient of its own, that computes the weights again instead of keeping a hundred pictures; on the CPU one
    picture at a time, which stays in the cache: twice as fast as what torch derives. In training on a GPU in one kernel
    each way (kernels.py), where there is Triton.
    """

    @staticmethod
    def forward(ctx: Any, wide: Tensor, guide: Tensor, place: Tensor) -> Tensor:
        if wide.is_cuda and any(ctx.needs_input_grad) and (kernels := _kernels()):
            mixed, weights = kernels.mix(wide, guide, place, HALF, RADIUS)
            ctx.save_for_backward(wide, guide, place, mixed, weights)
            return mixed
        mixed = wide[INNER].clone()
        weights = torch.ones_like(mixed[:, :1])
        for b, g, total, count in _pieces(wide, guide, mixed, weights):
            for a, (down, right) in zip(place, HALF, strict=True):
                apart = torch.sub(*_pair(g, down, right))
                weight = apart.mul_(apart).sum(dim=1, keepdim=True).neg_().add_(a).exp_()
                for there, share in _both(weight, b.shape, down, right):
                    total.addcmul_(share, b[there])
                    count.add_(share)
        mixed.div_(weights)
        ctx.save_for_backward(wide, guide, place, mixed, weights)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide, guide, place, mixed, weights = ctx.saved_tensors
        if wide.is_cuda and (kernels := _kernels()):
            found: tuple[Tensor, Tensor, Tensor] = kernels.unmix(
                wide, guide, place, mixed, weights, gradients[0], HALF, RADIUS
            )
            return found
        of_total = gradients[0] / weights
        of_count = -(of_total * mixed).sum(dim=1, keepdim=True)
        to_wide, to_guide, to_place = (torch.zeros_like(tensor) for tensor in (wide, guide, place))
        to_wide[INNER] += of_total
        for b, g, total, count, to_b, to_g in _pieces(wide, guide, of_total, of_count, to_wide, to_guide):
            for i, (down, right) in enumerate(HALF):
                apart = torch.sub(*_pair(g, down, right))
                weight = apart.square().sum(dim=1, keepdim=True).neg_().add_(place[i]).exp_()
                to_weight = torch.zeros_like(weight)
                shares = _both(weight, b.shape, down, right), _both(to_weight, b.shape, down, right)
                for (there, share), (_, to_share) in zip(*shares, strict=True):
                    to_share.add_((total * b[there]).sum(dim=1, keepdim=True)).add_(count)
                    to_b[there].addcmul_(total, share)
                to_weight.mul_(weight)
                to_place[i] = to_place[i] + to_weight.sum()
                apart.mul_(to_weight.mul_(-2))
                first, second = _pair(to_g, down, right)
                first.add_(apart)
                second.sub_(apart)
        return to_wide, to_guide, to_place


@cache
def _kernels() -> Any:
    """The module kernels.py, or None: Triton comes with some builds of PyTorch only, and needs a C compiler."""
    try:
        from cdcodec.nets import kernels

        tried = torch.zeros(1, 3, 2 * RADIUS + 1, 2 * RADIUS + 1, device="cuda")
        kernels.mix(tried, tried, torch.zeros(len(HALF), device="cuda"), HALF, RADIUS)
    except Exception:
        return None
    return kernels


def _pieces(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of batches of equal length: of one picture each on the CPU, of all elsewhere."""
    size = 1 if batches[0].device.type == "cpu" else len(batches[0])
    return zip(*(batch.split(size) for batch in batches), strict=True)


def _pair(g: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """All places of g (B, 3, H + 8, W + 8) moved by (down, right), and the same not moved."""
    first, last = max(-right, 0), g.shape[3] - max(right, 0)
    return g[..., down:, first + right : last + right], g[..., : g.shape[2] - down, first:last]


def _both(weight: Tensor, shape: torch.Size, down: int, right: int) -> list[tuple[Place, Tensor]]:
    """Where the pixels at (down, right) and opposite lie in pictures of `shape` (B, 3, H + 8, W + 8); their weights.

    The weight between p and p + (down, right) is that between the latter and p: it is computed once.
    """
    height, width, first = shape[2] - 2 * RADIUS, shape[3] - 2 * RADIUS, max(-right, 0)
    both = []
    for sign, top, left in ((1, RADIUS, RADIUS), (-1, RADIUS - down, RADIUS - right)):
        y, x = RADIUS + sign * down, RADIUS + sign * right
        there = (EVERY, EVERY, slice(y, y + height), slice(x, x + width))
        both.append((there, weight[..., top : top + height, left - first : left - first + width]))
    return both
