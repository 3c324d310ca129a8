"""Schedules, conversions between parametrisations, the preconditioned output and the DDIM sampler: pure functions.

Notation (paper §3; ᾱ is written alpha_bar): x_t = √ᾱ·x_0 + √(1 − ᾱ)·ε, σ² = (1 − ᾱ)/ᾱ. A network is told σ, which is
continuous, so that trained once it serves any number of steps (paper v1 §2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIGMA_RANGE = (0.015, 0.6)
"""Noise levels that matter behind the first step: around the size of the texture the light head leaves out."""
SIGMA_START = 20.0
"""Where a network that predicts the noise starts: at infinite noise its prediction says nothing about the picture."""


def alpha_bar_of_sigma(sigma: Tensor) -> Tensor:
    """ᾱ = 1/(1 + σ²)."""
    return 1 / (1 + sigma**2)


def sigma_of_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """σ = √((1 − ᾱ)/ᾱ), inf at ᾱ = 0."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def to_x(prediction: Tensor, kind: str, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """A prediction of kind "x", "eps" or "v" as x̂_0. v = √ᾱ·ε − √(1 − ᾱ)·x_0. alpha_bar broadcasts against x_t."""
    if kind == "x":
        return prediction
    if kind == "eps":
        return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
    if kind == "v":
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
    raise ValueError(f"unknown parametrisation {kind!r}: x, eps or v")


def from_x(x_0: Tensor, kind: str, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x̂_0 as a prediction of kind "x", "eps" or "v": the inverse of `to_x` for 0 < ᾱ < 1."""
    if kind == "x":
        return x_0
    eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    if kind == "eps":
        return eps
    if kind == "v":
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    raise ValueError(f"unknown parametrisation {kind!r}: x, eps or v")


@dataclass(frozen=True)
class Preconditioned:
    """How the raw network is fed and read, given a base reconstruction b of error variance s².

    The network sees the residual x_t − √ᾱ·b at unit variance and predicts what the best linear estimate of x_0 from
    (b, x_t) leaves over: x̂_0 = b + c_skip·input + c_out·network(input), c_skip·input = k·(x_t/√ᾱ − b),
    k = s²/(s² + σ²). Finite for every ᾱ in [0, 1].
    """

    input: Tensor | None
    skip: Tensor
    out: Tensor

    @classmethod
    def blank(cls, base: Tensor, variance: Tensor) -> Preconditioned:
        """At ᾱ = 0 of x_t = 0, where there is nothing to see: input is None."""
        return cls(input=None, skip=base, out=variance.sqrt())

    @classmethod
    def of(cls, x_t: Tensor, base: Tensor, variance: Tensor, alpha_bar: Tensor) -> Preconditioned:
        """x_t, base (B, 3, H, W); variance, alpha_bar broadcastable, float32."""
        total = variance * alpha_bar + 1 - alpha_bar
        scaled = torch.addcmul(x_t, base, -alpha_bar.sqrt()) / total.sqrt()
        skip = torch.addcmul(base, scaled, variance * (alpha_bar / total).sqrt())
        return cls(input=scaled, skip=skip, out=(variance * (1 - alpha_bar) / total).sqrt())

    def x_0(self, output: Tensor) -> Tensor:
        """The network's output as x̂_0."""
        return torch.addcmul(self.skip, output, self.out)


def sigma_grid(steps: int) -> list[float]:
    """ᾱ of `steps` ≥ 1 sampling steps: 0 first, where decoding starts, then σ log-spaced over SIGMA_RANGE."""
    return [0.0, *_log_spaced(SIGMA_RANGE[1], steps - 1)]


def noise_grid(steps: int) -> list[float]:
    """ᾱ of `steps` ≥ 1 sampling steps of a network that predicts ε: σ log-spaced from SIGMA_START on."""
    return _log_spaced(SIGMA_START, steps)


def _log_spaced(high: float, steps: int) -> list[float]:
    """ᾱ of σ from `high` down to the lower end of SIGMA_RANGE."""
    ratio = math.log(SIGMA_RANGE[0] / high) / max(steps - 1, 1)
    return [1 / (1 + (high * math.exp(ratio * i)) ** 2) for i in range(steps)]


def authors_alpha_bar(schedule: str, timesteps: int) -> NDArray[np.float32]:
    """ᾱ_n, n = 0 … N − 1, of the authors' discrete schedules: computed in float64, kept in float32 as theirs are.

    "linear": β from 0.1/N to 20/N. "cosine": Nichol & Dhariwal 2021 (arXiv 2102.09672) over n/N, β at most 0.999.
    """
    if schedule == "linear":
        betas = np.linspace(0.1 / timesteps, 20 / timesteps, timesteps)
    elif schedule == "cosine":
        x = np.linspace(0, timesteps + 1, timesteps + 1) / (timesteps + 1)
        f = np.cos((x + 0.008) / 1.008 * (np.pi / 2)) ** 2
        betas = np.clip(1 - f[1:] / f[:-1], 0, 0.999)
    else:
        raise ValueError(f"unknown schedule {schedule!r}: cosine or linear")
    return np.cumprod(1 - betas).astype(np.float32)


def authors_grid(schedule: str, timesteps: int, steps: int) -> tuple[list[float], list[float]]:
    """(ᾱ, time told to the network) of `steps` ≥ 1 sampling steps, falling noise, as the authors' samplers have them.

    n = 0 … N − 1 in equal parts, truncated; one step is n = N − 1. The network of the cosine schedule is told n/N, that
    of the linear one i/steps, i being the step's index counted from the picture.
    """
    last = timesteps - 1
    indices = [last] if steps == 1 else torch.linspace(0, last, steps, device="cpu").long().tolist()
    alpha_bar = authors_alpha_bar(schedule, timesteps)
    by_index = schedule == "cosine" or steps == 1
    times = [n / timesteps if by_index else i / steps for i, n in enumerate(indices)]
    return [float(alpha_bar[n]) for n in reversed(indices)], times[::-1]


Denoiser = Callable[[Tensor, float], Tensor]
"""(x_t, ᾱ) → x̂_0, all (B, 3, H, W) float32."""


def ddim(
    denoise: Denoiser,
    start: Tensor,
    alpha_bars: list[float],
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Deterministic DDIM (η = 0) from `start` = x_N over falling noise to x_0; the last step returns its x̂_0.

    callback(i, x̂_0) is called behind each step with the picture as it stands.
    """
    x_t = x_0 = start
    del start  # of a large picture every copy counts
    for i, alpha_bar in enumerate(alpha_bars):
        x_0 = denoise(x_t, alpha_bar)
        if callback is not None:
            callback(i, x_0)
        if i + 1 < len(alpha_bars):
            following = alpha_bars[i + 1]
            # √ᾱ'·x̂_0 + √(1 − ᾱ')·ε̂ with ε̂ = (x_t − √ᾱ·x̂_0)/√(1 − ᾱ), collected by x_t and x̂_0.
            kept = math.sqrt((1 - following) / (1 - alpha_bar))
            x_t = torch.add(kept * x_t, x_0, alpha=math.sqrt(following) - kept * math.sqrt(alpha_bar))
    return x_0
