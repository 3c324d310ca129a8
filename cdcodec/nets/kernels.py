"""The bilateral filter of smoothing.py on a GPU: one Triton kernel forward and one back.

Written with plain operations each way is some two hundred passes over a batch of pictures, a third of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
SPREAD = 64
"""Rows over which the sums of the gradient of `place` are spread, so that few wait for each other."""

Places = Sequence[tuple[int, int]]


@cache
def _offsets(half: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """int32 (2·len(half), 2): rows and columns to each pixel mixed in, and as far the other way behind it."""
    both = [[sign * down, sign * right] for down, right in half for sign in (1, -1)]
    return torch.tensor(both, dtype=torch.int32).to(device)


def mix(wide: Tensor, guide: Tensor, place: Tensor, half: Places, radius: int) -> tuple[Tensor, Tensor]:
    """The mixture (B, 3, H, W) and the sums of its weights (B, 1, H, W), float32, as of smoothing.Mixture."""
    batch, _, height, width = wide.shape
    height, width = height - 2 * radius, width - 2 * radius
    mixed = torch.empty((batch, 3, height, width), device=wide.device)
    weights = torch.empty((batch, 1, height, width), device=wide.device)
    offsets, count = _offsets(tuple(half), wide.device), weights.numel()
    _mix[triton.cdiv(count, BLOCK),](
        wide.contiguous(), guide.contiguous(), place, offsets, mixed, weights, count, height, width, radius,
        len(offsets), BLOCK,
    )  # fmt: skip
    return mixed, weights


def unmix(  # noqa: PLR0917
    wide: Tensor,
    guide: Tensor,
    place: Tensor,
    mixed: Tensor,
    weights: Tensor,
    gradient: Tensor,
    half: Places,
    radius: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of wide, guide and place, from that of the mixture."""
    of_total = (gradient / weights).contiguous()
    of_count = -(of_total * mixed).sum(dim=1, keepdim=True).contiguous()
    height, width = mixed.shape[2:]
    wide, guide = wide.contiguous(), guide.contiguous()
    to_wide, to_guide = torch.empty_like(wide), torch.empty_like(guide)
    offsets, count = _offsets(tuple(half), wide.device), wide[:, 0].numel()
    to_place = torch.zeros((SPREAD, len(half)), device=wide.device)
    _unmix[triton.cdiv(count, BLOCK),](
        wide, guide, place, offsets, of_total, of_count, to_wide, to_guide, to_place, count, height, width, radius,
        len(offsets), SPREAD, BLOCK,
    )  # fmt: skip
    return to_wide, to_guide, to_place.sum(dim=0)


@triton.jit
def _mix(  # noqa: PLR0917
    wide, guide, place, offsets, mixed, weights, count,
    height: tl.constexpr, width: tl.constexpr, radius: tl.constexpr, others: tl.constexpr, block: tl.constexpr,
) -> Any:  # fmt: skip
    """A block of the pixels of the mixture."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    valid = i < count
    plane: tl.constexpr = (height + 2 * radius) * (width + 2 * radius)
    row: tl.constexpr = width + 2 * radius
    n = i // (height * width)
    p = i % (height * width)
    here = n * (3 * plane) + (p // width + radius) * row + p % width + radius
    g0 = tl.load(guide + here, mask=valid, other=0.0)
    g1 = tl.load(guide + here + plane, mask=valid, other=0.0)
    g2 = tl.load(guide + here + 2 * plane, mask=valid, other=0.0)
    t0 = tl.load(wide + here, mask=valid, other=0.0)
    t1 = tl.load(wide + here + plane, mask=valid, other=0.0)
    t2 = tl.load(wide + here + 2 * plane, mask=valid, other=0.0)
    total = tl.zeros_like(t0) + 1.0
    for k in range(others):
        there = here + tl.load(offsets + 2 * k) * row + tl.load(offsets + 2 * k + 1)
        d0 = tl.load(guide + there, mask=valid, other=0.0) - g0
        d1 = tl.load(guide + there + plane, mask=valid, other=0.0) - g1
        d2 = tl.load(guide + there + 2 * plane, mask=valid, other=0.0) - g2
        w = tl.exp(tl.load(place + k // 2) - (d0 * d0 + d1 * d1 + d2 * d2))
        t0 += w * tl.load(wide + there, mask=valid, other=0.0)
        t1 += w * tl.load(wide + there + plane, mask=valid, other=0.0)
        t2 += w * tl.load(wide + there + 2 * plane, mask=valid, other=0.0)
        total += w
    out = mixed + n * (3 * height * width) + p
    tl.store(out, t0 / total, mask=valid)
    tl.store(out + height * width, t1 / total, mask=valid)
    tl.store(out + 2 * height * width, t2 / total, mask=valid)
    tl.store(weights + i, total, mask=valid)


@triton.jit
def _unmix(  # noqa: PLR0915, PLR0917
    wide, guide, place, offsets, of_total, of_count, to_wide, to_guide, to_place, count,
    height: tl.constexpr, width: tl.constexpr, radius: tl.constexpr, others: tl.constexpr, spread: tl.constexpr,
    block: tl.constexpr,
) -> Any:  # fmt: skip
    """A block of the pixels of the wide pictures; of_total and of_count are 0 outside of the mixture."""
    rows: tl.constexpr = height + 2 * radius
    row: tl.constexpr = width + 2 * radius
    plane: tl.constexpr = rows * row
    small: tl.constexpr = height * width
    i = tl.program_id(0) * block + tl.arange(0, block)
    valid = i < count
    n = i // plane
    p = i % plane
    y = p // row
    x = p % row
    here = n * (3 * plane) + p
    inner = valid & (y >= radius) & (y < height + radius) & (x >= radius) & (x < width + radius)
    at = n * (3 * small) + (y - radius) * width + x - radius
    at_count = n * small + (y - radius) * width + x - radius
    g0 = tl.load(guide + here, mask=valid, other=0.0)
    g1 = tl.load(guide + here + plane, mask=valid, other=0.0)
    g2 = tl.load(guide + here + 2 * plane, mask=valid, other=0.0)
    b0 = tl.load(wide + here, mask=valid, other=0.0)
    b1 = tl.load(wide + here + plane, mask=valid, other=0.0)
    b2 = tl.load(wide + here + 2 * plane, mask=valid, other=0.0)
    t0 = tl.load(of_total + at, mask=inner, other=0.0)
    t1 = tl.load(of_total + at + small, mask=inner, other=0.0)
    t2 = tl.load(of_total + at + 2 * small, mask=inner, other=0.0)
    c = tl.load(of_count + at_count, mask=inner, other=0.0)
    u0 = t0
    u1 = t1
    u2 = t2
    v0 = tl.zeros_like(t0)
    v1 = tl.zeros_like(t0)
    v2 = tl.zeros_like(t0)
    for k in range(others):
        down = tl.load(offsets + 2 * k)
        right = tl.load(offsets + 2 * k + 1)
        yy = y + down
        xx = x + right
        known = valid & (yy >= 0) & (yy < rows) & (xx >= 0) & (xx < row)
        asked = known & (yy >= radius) & (yy < height + radius) & (xx >= radius) & (xx < width + radius)
        there = here + down * row + right
        beside = at + down * width + right
        d0 = tl.load(guide + there, mask=known, other=0.0) - g0
        d1 = tl.load(guide + there + plane, mask=known, other=0.0) - g1
        d2 = tl.load(guide + there + 2 * plane, mask=known, other=0.0) - g2
        e0 = tl.load(wide + there, mask=known, other=0.0)
        e1 = tl.load(wide + there + plane, mask=known, other=0.0)
        e2 = tl.load(wide + there + 2 * plane, mask=known, other=0.0)
        s0 = tl.load(of_total + beside, mask=asked, other=0.0)
        s1 = tl.load(of_total + beside + small, mask=asked, other=0.0)
        s2 = tl.load(of_total + beside + 2 * small, mask=asked, other=0.0)
        sc = tl.load(of_count + at_count + down * width + right, mask=asked, other=0.0)
        w = tl.exp(tl.load(place + k // 2) - (d0 * d0 + d1 * d1 + d2 * d2))
        share = w * (t0 * e0 + t1 * e1 + t2 * e2 + s0 * b0 + s1 * b1 + s2 * b2 + c + sc)
        share = tl.where(known, share, 0.0)
        u0 += w * s0
        u1 += w * s1
        u2 += w * s2
        v0 += 2 * share * d0
        v1 += 2 * share * d1
        v2 += 2 * share * d2
        # Each pair is met twice, from either side.
        tl.atomic_add(to_place + (tl.program_id(0) % spread) * (others // 2) + k // 2, tl.sum(share) * 0.5)
    tl.store(to_wide + here, u0, mask=valid)
    tl.store(to_wide + here + plane, u1, mask=valid)
    tl.store(to_wide + here + 2 * plane, u2, mask=valid)
    tl.store(to_guide + here, v0, mask=valid)
    tl.store(to_guide + here + plane, v1, mask=valid)
    tl.store(to_guide + here + 2 * plane, v2, mask=valid)
