"""Every random number of training, as a pure function of (seed, step, global sample index) and of what it is for.

A counter-based generator in plain integer tensor operations: the same numbers on the CPU and on a GPU, in one process
or several, before and after a resume. The 32-bit finaliser is "lowbias32" (C. Wellons, hash-prospector, public domain).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def _mix(v: Tensor) -> Tensor:
    """int64 tensors holding 32-bit values → int64 tensors holding well-mixed 32-bit values."""
    v = ((v ^ (v >> 16)) * 0x7FEB352D) & MASK
    v = ((v ^ (v >> 15)) * 0x846CA68B) & MASK
    return v ^ (v >> 16)


def keys(seed: int, step: int, samples: Tensor) -> Tensor:
    """int64 keys (B,) for the global sample indices (B,) of a step."""
    key = torch.full_like(samples, seed & MASK)
    for word in (step & MASK, (step >> 32) & MASK):
        key = _mix(key ^ word) + 0x9E3779B9 & MASK
    return _mix(key ^ _mix(samples & MASK))


def uniform(key: Tensor, stream: int, count: int) -> Tensor:
    """float32 (B, count) uniform in the open interval (0, 1), for keys (B,); streams are independent of each other."""
    counter = torch.arange(count, device=key.device, dtype=torch.int64)
    start = _mix(key ^ (stream * 0x9E3779B9 & MASK))[:, None]
    bits = _mix(_mix((start + counter * 0x9E3779B1) & MASK) ^ start)
    return (((bits >> 8).to(torch.float32) + 0.5) * 2.0**-24).clamp(max=1 - 2.0**-24)


def normal(key: Tensor, stream: int, count: int) -> Tensor:
    """float32 (B, count) standard normal (Box–Muller)."""
    half = (count + 1) // 2
    u = uniform(key, stream, 2 * half)
    radius = (-2 * u[:, :half].log()).sqrt()
    angle = u[:, half:] * (2 * math.pi)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count]
